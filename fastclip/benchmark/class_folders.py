"""Labelled pictures in one folder a class, with or without a folder of the split above."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from fastclip.benchmark.dataset import Labelled
from fastclip.benchmark.webdataset_folder import CLASSNAMES, TEMPLATES
from fastclip.benchmark.words import PLAIN_TEMPLATE, read_classnames, read_templates
from fastclip.data.imagenet import imagenet_files, imagenet_v2_files
from fastclip.data.tar_index import Place
from fastclip.errors import DataError
from fastclip.eval.prompts import imagenet_classnames, imagenet_templates

_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


def has_class_folders(folder: Path, split: str) -> bool:
    return any(entry.is_dir() for entry in _root(folder, split).iterdir())


def read_class_folders(
    folder: Path, split: str, *, classnames: Path | None = None, templates: Path | None = None
) -> Labelled:
    """Classes are numbered in the order of their folders' names; ImageNet-V2's folders by number.

    Names and templates come from the files given, or from CLIP_benchmark's files in `folder`; else
    1,000 folders that are named as ImageNet's (or numbered as ImageNet-V2's) have ImageNet's, and
    others are named by their folders and asked for with a plain sentence.
    """
    root = _root(folder, split)
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    numbered = len(folders) == _IMAGENET_CLASSES and all(name.isdecimal() for name in folders)
    imagenet = numbered or (
        len(folders) == _IMAGENET_CLASSES and all(map(_WORDNET_ID.fullmatch, folders))
    )
    files = (imagenet_v2_files if numbered else imagenet_files)(str(root), "--data")
    own_names, own_templates = folder / CLASSNAMES, folder / TEMPLATES
    if classnames is not None or own_names.is_file():
        names = read_classnames(classnames or own_names)
    else:
        names = imagenet_classnames() if imagenet else tuple(n.replace("_", " ") for n in folders)
    if len(names) != len(folders):
        raise DataError(f"{root}: {len(folders)} class folders, but {len(names)} class names")
    if templates is not None or own_templates.is_file():
        sentences = read_templates(templates or own_templates)
    else:
        sentences = imagenet_templates() if imagenet else (PLAIN_TEMPLATE,)
    return Labelled(
        name=folder.name,
        places=[Place(file.path) for file in files],
        labels=torch.tensor([file.label for file in files]),
        classnames=names,
        templates=sentences,
    )


def _root(folder: Path, split: str) -> Path:
    return folder / split if (folder / split).is_dir() else folder
