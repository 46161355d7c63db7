"""How far a pack has come: written after each shard, so that a pack that was cut short goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastclip.curate.whole_file import write_json
from fastclip.errors import DataError, UserError

MANIFEST = "manifest.json"


@dataclass(slots=True)
class PackedShard:
    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(slots=True)
class Manifest:
    options: dict[str, Any]  # what decides the output
    shards: list[PackedShard] = field(default_factory=list)
    read_shards: int = 0  # source shards that are read to their end
    read_samples: int = 0  # of the one after those, whether used or not
    dropped: dict[str, int] = field(default_factory=dict)  # by cause
    finished: bool = False

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def save(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))


def load_or_begin(folder: Path, options: dict[str, Any]) -> Manifest:
    """The manifest in `folder`, or a new one for an empty folder.

    Raises UserError if the folder holds something else, or was packed with other options; DataError if the
    manifest cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        others = [e.name for e in folder.iterdir() if not e.name.endswith(".partial")]
        if others:
            raise UserError(
                f"--out {folder}: holds {others[0]} and no {MANIFEST}: give a new folder"
            )
        return Manifest(options)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shards = [PackedShard(**shard) for shard in content.pop("shards")]
        manifest = Manifest(**content, shards=shards)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    for name, value in options.items():
        if manifest.options.get(name) != value:
            raise UserError(
                f"--out {folder}: was begun with {name} {_short(manifest.options.get(name))}, now it is "
                f"{_short(value)}: give a new folder, or the same command as before"
            )
    return manifest


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
