"""`fastclip data pack`: new shards of one size from old ones, without what is bad.

Samples keep their order. Output shard k depends on the source and the options alone, is written under another name and
renamed, and the manifest then says how far the source was read: so a pack that was killed goes on, to the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fastclip.curate.every_note import EveryNote
from fastclip.curate.manifest import Manifest, load_or_begin
from fastclip.curate.ordered_pool import map_in_order
from fastclip.curate.shard_writer import PackedSample, write_shard
from fastclip.curate.shrink import shrink
from fastclip.curate.whole_file import writable_folder, write_json
from fastclip.data.bad_samples import BAD_PICTURE, DROPS_NOTHING
from fastclip.data.image_header import BadImage
from fastclip.data.shard_spec import display, expand_shards
from fastclip.data.shards import RawSample, read_shards
from fastclip.errors import DataError


@dataclass(frozen=True, slots=True)
class PackConfig:
    shards: str  # as --train-data
    out: Path
    resize: int | None  # pixels of the shorter edge
    quality: int
    samples_per_shard: int
    processes: int
    allow_pipe_from_files: bool


class _Unit(NamedTuple):
    """A sample as it was read, or the end of a source shard; and what was wrong since the unit before."""

    sample: RawSample | None
    causes: tuple[str, ...]


class _Packed(NamedTuple):
    sample: PackedSample | None  # None: bad, or the end of a source shard
    causes: tuple[str, ...]
    ends_shard: bool


def pack(config: PackConfig) -> list[str]:
    """Write the shards that are not there yet; returns sentences for the screen.

    Raises DataError where no sample is usable, and UserError, InputMissing, CannotWrite and EnvironmentProblem.
    """
    urls = expand_shards(
        config.shards, "data pack", allow_pipe_from_files=config.allow_pipe_from_files
    ).urls
    out = writable_folder(config.out)
    options = {
        "source": hashlib.sha256("\n".join(urls).encode("utf-8", "surrogateescape")).hexdigest(),
        "source_shards": len(urls),
        "resize": config.resize,
        "quality": config.quality,
        "samples_per_shard": config.samples_per_shard,
    }
    manifest = load_or_begin(out, options)
    said = []
    if manifest.shards and not manifest.finished:
        said.append(f"went on after {len(manifest.shards):,} shards that were there already")
    if not manifest.finished:
        _write_shards(config, urls, out, manifest)
    dropped = sum(n for cause, n in manifest.dropped.items() if cause not in DROPS_NOTHING)
    causes = ", ".join(f"{cause}: {n:,}" for cause, n in sorted(manifest.dropped.items()))
    if not manifest.samples:
        raise DataError(f"data pack {display(config.shards)}: not one usable sample ({causes})")
    said.append(
        f"{manifest.samples:,} samples in {len(manifest.shards):,} shards in {out}, {dropped:,} left out"
        f"{f' ({causes})' if causes else ''}"
    )
    return said


def _write_shards(config: PackConfig, urls: tuple[str, ...], out: Path, manifest: Manifest) -> None:
    work = functools.partial(_shrunk, edge=config.resize, quality=config.quality)
    units = _units(urls, manifest.read_shards, manifest.read_samples)
    with (
        contextlib.closing(map_in_order(work, units, config.processes)) as packed,
        tqdm(desc="samples", unit="sample", initial=manifest.samples, disable=None) as bar,
    ):
        usable = _usable(packed, manifest)
        for sample in usable:
            start = itertools.chain([sample], usable)
            shard = itertools.islice(start, config.samples_per_shard)
            number, first = len(manifest.shards), manifest.samples
            manifest.shards.append(write_shard(out / f"{number:06d}.tar", first, shard))
            bar.update(manifest.samples - first)
            manifest.save(out)
    write_json(out / "sizes.json", {shard.name: shard.samples for shard in manifest.shards})
    manifest.finished = True
    manifest.save(out)


def _usable(packed: Iterator[_Packed], manifest: Manifest) -> Iterator[PackedSample]:
    """The samples to write; `manifest` is kept up to the one given last."""
    for item in packed:
        for cause in item.causes:
            manifest.dropped[cause] = manifest.dropped.get(cause, 0) + 1
        manifest.read_samples += 1
        if item.ends_shard:
            manifest.read_shards, manifest.read_samples = manifest.read_shards + 1, 0
        if item.sample is not None:
            yield item.sample


def _units(urls: tuple[str, ...], shard: int, skip: int) -> Iterator[_Unit]:
    """The units of shard number `shard` after its first `skip`, and of all later shards."""
    for url in urls[shard:]:
        notes = EveryNote()
        for sample in read_shards([(url, "")], notes):
            causes = tuple(event.cause for event in notes.take_events())
            if skip:
                skip -= 1
            else:
                yield _Unit(sample, causes)
        yield _Unit(None, tuple(event.cause for event in notes.take_events()))


def _shrunk(unit: _Unit, edge: int | None, quality: int) -> _Packed:
    if unit.sample is None:
        return _Packed(None, unit.causes, ends_shard=True)
    try:
        picture, suffix = shrink(unit.sample.image, edge, quality)
    except BadImage:
        return _Packed(None, (*unit.causes, BAD_PICTURE), ends_shard=False)
    sample = PackedSample(picture, suffix, unit.sample.caption)
    return _Packed(sample, unit.causes, ends_shard=False)
