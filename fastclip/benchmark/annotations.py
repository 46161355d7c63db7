"""Captions from the annotation files that COCO and Flickr30k are published with.

Three forms: COCO's own (`captions_val2014.json`), Karpathy's (`dataset_coco.json`,
`dataset_flickr30k.json`: all splits in one), and a list of {"image": ..., "caption": [...]}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastclip.benchmark.dataset import Captioned
from fastclip.data.tar_index import Place
from fastclip.errors import DataError, InputMissing


def read_annotated(folder: Path, annotations: Path, split: str) -> Captioned:
    """The pictures in `folder` that the file names, in its order (of Karpathy's, those of `split`).

    Raises InputMissing or DataError. A picture that is not in the folder is an error, not a miss.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputMissing(f"--annotations {annotations}: no such file") from None
    except OSError as error:
        raise InputMissing(f"--annotations {annotations}: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, or no JSON
        raise DataError(f"--annotations {annotations}: not a JSON file: {error}") from None
    if not folder.is_dir():
        raise InputMissing(f"--data {folder}: no such folder")
    try:
        pairs = [(name, captions) for name, captions in _pairs(content, split) if captions]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"--annotations {annotations}: neither COCO's form, nor Karpathy's, nor a list of image and caption "
            f"({type(error).__name__}: {error})"
        ) from None
    if not pairs:
        raise DataError(f"--annotations {annotations}: no pictures of split {split!r} in it")
    return Captioned(
        name=folder.name,
        places=[Place(str(_found(folder, name, annotations))) for name, _ in pairs],
        captions=[captions for _, captions in pairs],
    )


def _pairs(content: Any, split: str) -> Iterator[tuple[str, list[str]]]:
    """Path below the folder, and captions, of each picture."""
    if isinstance(content, list):
        for entry in content:
            captions = entry["caption"]
            yield entry["image"], [captions] if isinstance(captions, str) else list(captions)
    elif "annotations" in content:
        yield from _coco(content)
    else:
        for image in content["images"]:
            if image["split"] == split:
                name = (
                    f"{image['filepath']}/{image['filename']}"
                    if image.get("filepath")
                    else image["filename"]
                )
                yield name, [sentence["raw"] for sentence in image["sentences"]]


def _coco(content: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    captions: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    for image in content["images"]:
        yield image["file_name"], captions.get(image["id"], [])


def _found(folder: Path, name: str, annotations: Path) -> Path:
    """The picture at its path below `folder`, or by its file name alone."""
    for path in (folder / name, folder / Path(name).name):
        if path.is_file():
            return path
    raise InputMissing(f"{folder / name}: no such picture, though {annotations.name} names it")
