"""What `--train-data` and `--val-data` name: which kind of data, which shards, how many samples.

    dir/{0000..0099}.tar      braces, expanded
    a/{00..09}.tar::b/00.tar  several sources
    dir                       a folder: every archive in it, sorted by name
    dir/*.tar                 glob characters, where no file has that very name
    shards.txt                a list: one of the other forms a line, `#` starts a comment
    https://…/0.tar, s3://…   opened through a program, see `data/shard_opener.py`
    pipe:COMMAND              the output of a shell command
    ${NAME}                   the environment variable WDS_NAME, as webdataset has it

The reference knows braces, `::`, variables, addresses and pipes; folders, globs and lists are ours.
"""

from __future__ import annotations

import ast
import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastclip.config.train_config import DatasetType
from fastclip.errors import DataError, InputMissing, UserError

DataKind = Literal["webdataset", "csv", "synthetic"]

# What Python's tarfile reads; plain first.
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class ShardList:
    """The shards of one `--train-data`, in order; `source[i]` is the `::` part that named shard i."""

    urls: tuple[str, ...]
    source: tuple[int, ...]

    def weights(self, factors: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """One weight per SHARD (not per source), as the reference weighs them; None: all alike."""
        if factors is None:
            return None
        sources = self.source[-1] + 1
        if len(factors) != sources:
            raise UserError(
                f"--train-data-upsampling-factors has {len(factors)} numbers and --train-data has {sources} "
                "sources: give one number for each part between `::`"
            )
        return tuple(factors[source] for source in self.source)


def data_kind(spec: str | None, dataset_type: DatasetType, flag: str) -> DataKind:
    """Which loader reads `spec`; `auto` looks at how the whole string ends, as the reference does.

    Beyond the reference, `auto` knows folders, compressed archives and `pipe:`. Raises UserError.
    """
    if dataset_type != "auto":
        return dataset_type
    if spec is None:
        raise UserError(f"{flag} is missing: --dataset-type auto has nothing to look at")
    last = spec.split("::")[-1]
    if last.endswith((".csv", ".tsv")):
        return "csv"
    if last.endswith(ARCHIVE_ENDINGS) or last.startswith("pipe:") or Path(last).is_dir():
        return "webdataset"
    if _is_list_file(last):
        return "webdataset"
    raise UserError(
        f"{flag} {spec}: --dataset-type auto cannot tell what this is (csv and tsv files, {', '.join(ARCHIVE_ENDINGS)} "
        "archives and folders of them are known); add --dataset-type webdataset or --dataset-type csv"
    )


def expand_shards(spec: str, flag: str, *, allow_pipe_from_files: bool = False) -> ShardList:
    """All shards that `spec` names. Local files are not opened, only looked for where a folder or glob needs it.

    Raises InputMissing when nothing matches, UserError for a malformed pattern or a refused `pipe:`.
    """
    urls: list[str] = []
    source: list[int] = []
    for index, part in enumerate(spec.split("::")):
        if not part:
            raise UserError(f"{flag} {spec}: nothing stands on one side of `::`")
        found = list(_expand_part(part, flag, allow_pipe_from_files, from_file=None))
        urls += found
        source += [index] * len(found)
    _check_any_exists(urls, spec, flag)
    return ShardList(tuple(urls), tuple(source))


def is_local(url: str) -> bool:
    return not (_SCHEME.match(url) or url.startswith("pipe:"))


def shard_name(url: str) -> str:
    """The last part of a shard's address, by which messages and sample keys call it."""
    if url.startswith("pipe:"):
        words = [word for word in re.split(r"[\s'\"]+", url) if word.endswith(ARCHIVE_ENDINGS)]
        url = words[-1] if words else "pipe"
    elif not is_local(url):
        url = url.split("?")[0]
    return url.rstrip("/").rsplit("/", 1)[-1]


def display(url: str) -> str:
    """`url` fit for a log: user names, passwords and query strings, which may hold keys, removed."""
    url = re.sub(r"(\w://)[^/@\s]*@", r"\1", url)
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", url)


def count_samples(urls: tuple[str, ...], flag: str) -> int | None:
    """How many samples the shards hold, from the files `sizes.json` or `__len__` beside them; None if unknown.

    The folder of the first shard decides where it can, as in the reference: its sizes.json if that names every
    shard, else its `__len__`. Otherwise each shard is looked up beside itself.
    """
    first = _size_file(_folder(urls[0]))
    if isinstance(first, int):
        return first
    if first is not None and all(shard_name(url) in first for url in urls):
        return sum(_entry(first, url) for url in urls)
    total = 0
    whole_folders: set[str] = set()
    known: dict[str, dict[str, object] | int | None] = {_folder(urls[0]): first}
    for url in urls:
        folder = _folder(url)
        if folder not in known:
            known[folder] = _size_file(folder)
        sizes = known[folder]
        if isinstance(sizes, int):
            if folder not in whole_folders:
                whole_folders.add(folder)
                total += sizes
        elif sizes is None:
            return None
        elif shard_name(url) not in sizes:
            raise DataError(
                f"{flag}: {folder}/sizes.json has no entry for {shard_name(url)}; "
                "add it, or give --train-num-samples"
            )
        else:
            total += _entry(sizes, url)
    return total


def _entry(sizes: dict[str, object], url: str) -> int:
    value = sizes[shard_name(url)]
    if not isinstance(value, (int, float, str)):
        raise DataError(f"sizes.json: the entry of {shard_name(url)} is no number: {value!r}")
    try:
        return int(value)
    except ValueError:
        raise DataError(
            f"sizes.json: the entry of {shard_name(url)} is no number: {value!r}"
        ) from None


def _folder(url: str) -> str:
    return os.path.dirname(url) if is_local(url) else ""


def _size_file(folder: str) -> dict[str, object] | int | None:
    """sizes.json as a dict, or `__len__` as a number, or None; `folder` "" is that of a shard named without one."""
    sizes, length = Path(folder, "sizes.json"), Path(folder, "__len__")
    if sizes.is_file():
        try:
            content = json.loads(sizes.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{sizes}: cannot be read as JSON: {error}") from None
        if not isinstance(content, dict):
            raise DataError(f"{sizes}: must be an object of file name to number of samples")
        return content
    if length.is_file():
        text = length.read_text(encoding="utf-8", errors="replace").strip()
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if not isinstance(value, int):
            raise DataError(f"{length}: must hold one whole number, holds {text[:40]!r}")
        return value
    return None


def _is_list_file(part: str) -> bool:
    return part.endswith(".txt") and Path(part).is_file()


def _expand_part(
    part: str, flag: str, allow_pipe_from_files: bool, from_file: str | None
) -> Iterator[str]:
    if part.startswith("pipe:") and from_file is not None and not allow_pipe_from_files:
        raise UserError(
            f"{flag}: {from_file} holds a `pipe:` entry, which would run a command from a file; "
            "if you trust that file add --allow-pipe-from-files"
        )
    if _is_list_file(part):
        if from_file is not None:
            raise UserError(f"{flag}: {from_file} names another list, {part}: lists do not nest")
        yield from _expand_list(part, flag, allow_pipe_from_files)
        return
    for url in _expand_braces(part, flag):
        if not is_local(url):
            yield url
        elif not url.endswith(ARCHIVE_ENDINGS) and Path(url).is_dir():
            # (by its name first: asking a cluster's file system about every shard takes minutes)
            found = sorted(
                str(entry)
                for entry in Path(url).iterdir()
                if entry.name.endswith(ARCHIVE_ENDINGS) and entry.is_file()
            )
            if not found:
                raise InputMissing(
                    f"{flag} {url}: the folder holds no shards ({', '.join(ARCHIVE_ENDINGS)})"
                )
            yield from found
        elif glob.has_magic(url) and not Path(url).exists():
            found = sorted(glob.glob(url))
            if not found:
                raise InputMissing(f"{flag} {url}: no file matches")
            yield from found
        else:
            yield url


def _expand_list(path: str, flag: str, allow_pipe_from_files: bool) -> Iterator[str]:
    lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    entries = [line.strip() for line in lines]
    entries = [line for line in entries if line and not line.startswith("#")]
    if not entries:
        raise InputMissing(f"{flag} {path}: the list is empty")
    for entry in entries:
        yield from _expand_part(entry, flag, allow_pipe_from_files, from_file=path)


def _expand_braces(part: str, flag: str) -> list[str]:
    from webdataset.shardlists import expand_urls  # lazily: it imports torch's data loader

    try:
        return list(expand_urls(part))
    except AssertionError as error:  # its way to say that a WDS_ variable is not set
        raise UserError(f"{flag} {part}: {str(error).replace('wds_', 'WDS_')}") from None
    except ValueError as error:  # braceexpand: unbalanced braces
        raise UserError(f"{flag} {part}: {error}") from None


def _check_any_exists(urls: list[str], spec: str, flag: str) -> None:
    """InputMissing if every shard is a local file that is not there. Stops at the first one that is."""
    for url in urls:
        if not is_local(url) or Path(url).exists():
            return
    more = f" (and {len(urls) - 1} more)" if len(urls) > 1 else ""
    shown = f"{flag} {spec}" if spec == urls[0] else f"{flag} {spec}: {urls[0]}{more}"
    raise InputMissing(f"{shown}: no such file")
