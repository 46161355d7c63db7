"""Pictures with a caption each, from the shards that `--val-data` of training names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fastclip.benchmark.dataset import Captioned, causes
from fastclip.data.bad_samples import BAD_CAPTION, NO_CAPTION, NO_PICTURE
from fastclip.data.shard_spec import display, expand_shards, is_local, shard_name
from fastclip.data.shards import CAPTION_SUFFIX
from fastclip.data.tar_index import IndexedSample, Place, index_tar
from fastclip.errors import DataError, UserError


def read_shard_pairs(spec: str) -> Captioned:
    """Samples that training's own evaluation would leave out are left out here too, and counted.

    Raises InputMissing, DataError for a damaged or compressed shard, or where nothing is left; UserError for shards
    that are not files of this machine.
    """
    urls = expand_shards(spec, "--data").urls
    for url in urls:
        if not is_local(url):
            raise UserError(
                f"--data {display(url)}: evaluation reads pictures by their place in a file; "
                "copy the shards here first"
            )
    places: list[Place] = []
    captions: list[list[str]] = []
    left_out: Counter[str] = Counter()
    for url in urls:
        for sample in index_tar(Path(url), frozenset({CAPTION_SUFFIX})):
            caption = _caption(sample, left_out)
            if caption is not None and sample.picture is not None:
                places.append(sample.picture)
                captions.append([caption])
    if not places:
        why = causes(left_out) or "it holds no samples"
        raise DataError(f"--data {spec}: nothing to evaluate on ({why})")
    name = Path(shard_name(urls[0])).stem if len(urls) == 1 else spec
    return Captioned(name=name, places=places, captions=captions, left_out=dict(left_out))


def _caption(sample: IndexedSample, left_out: Counter[str]) -> str | None:
    """The whole `.txt`, lines and all, as the trainer takes it; None and a count where there is none to use."""
    if sample.picture is None:
        left_out[NO_PICTURE] += 1
        return None
    if CAPTION_SUFFIX not in sample.fields:
        left_out[NO_CAPTION] += 1
        return None
    try:
        return sample.fields[CAPTION_SUFFIX].decode("utf-8")
    except UnicodeDecodeError:
        left_out[BAD_CAPTION] += 1
        return None
