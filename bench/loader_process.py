"""A process that holds one of the two loaders and runs an epoch of it for each line that it is sent.

    python -m bench.loader_process ours|reference MODEL SHARDS PICTURES BATCH_SIZE WORKERS [DEVICE]

The reference's runs under .venv-reference. Answers on standard output, a line of JSON each: first "ready", then for
each epoch what came out of it. Between epochs neither loader works ahead: each starts its epoch when it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

USER_AUG = (
    "scale=(0.4,1.0) color_jitter=(0.32,0.32,0.32,0.08) color_jitter_prob=0.8 gray_scale_prob=0.2"
)
# Looking at every pixel costs a core more than a training run's copy to its device does.
_ROWS_APART = 64


class Epoch(NamedTuple):
    """What came out of one, and the mean of its normalised pixels, of some rows, which tells a wrong decoder."""

    pictures: int
    tokens: int  # ids up to the end of text, of all captions
    pixel_mean: float


def flags_of(model: str, shards: str, pictures: str, batch_size: str, workers: str) -> list[str]:
    return [
        *("--model", model, "--train-data", shards, "--train-num-samples", pictures),
        *("--batch-size", batch_size, "--workers", workers, "--dataset-type", "webdataset"),
        *("--aug-cfg", *USER_AUG.split(), "use_timm=True", "--seed", "0"),
    ]


def ours(flags: list[str], device_name: str) -> Iterator[Epoch]:
    import torch

    import fastclip
    from fastclip.config.parse import parse_args
    from fastclip.config.resolve import resolve
    from fastclip.data.build import build_data
    from fastclip.data.packing import PackRule
    from fastclip.data.tokenizer import build_tokenizer
    from fastclip.model.model_config import tokenizer_spec

    device = torch.device(device_name)
    config = resolve(parse_args([*flags, "--logs", "none", "--device", device_name]))
    spec = tokenizer_spec(
        config.model.name, context_length=None, tokenizer_file=None, cache_dir=None
    )
    preprocess: Any = fastclip.create_model(config.model.name).preprocess_cfg
    loader = build_data(
        config.data, preprocess, build_tokenizer(spec), seed=0, rank=0, world_size=1, device=device,
        pack=PackRule(eos_id=None),
    ).train  # fmt: skip
    assert loader is not None
    mean, std = (torch.tensor(each, device=device) for each in (preprocess.mean, preprocess.std))
    yield Epoch(0, 0, 0.0)
    for epoch in range(sys.maxsize):
        pictures, tokens, pixels = 0, 0, torch.zeros((), device=device)
        for batch in loader.epoch(epoch):
            pictures += len(batch.images)
            tokens += _packed_tokens(batch.texts)
            seen = batch.images[:, ::_ROWS_APART].float().mean(dim=(0, 1, 2))
            pixels += ((seen / 255 - mean) / std).mean()
        yield Epoch(pictures, tokens, float(pixels) / loader.num_batches)


def _packed_tokens(texts: Any) -> int:
    """Each caption's end has its position in it."""
    return int((texts.positions.flatten()[texts.ends] + 1).sum())


def reference(flags: list[str], device_name: str) -> Iterator[Epoch]:
    import open_clip
    from open_clip_train.data import get_data
    from open_clip_train.params import parse_args

    args = parse_args(flags)
    args.distributed, args.rank, args.world_size = False, 0, 1
    _, train, val = open_clip.create_model_and_transforms(args.model, aug_cfg=args.aug_cfg)
    data = get_data(args, (train, val), epoch=0, tokenizer=open_clip.get_tokenizer(args.model))
    yield Epoch(0, 0, 0.0)
    for epoch in range(sys.maxsize):
        data["train"].set_epoch(epoch)
        pictures, tokens, pixels, count = 0, 0, 0.0, 0
        for images, texts in data["train"].dataloader:
            on_device = images.to(device_name, non_blocking=True)
            pictures, count = pictures + len(images), count + 1
            tokens += int((texts.argmax(dim=1) + 1).sum())
            pixels += float(on_device[:, :, ::_ROWS_APART].mean())
        yield Epoch(pictures, tokens, pixels / count)


class LoaderProcess:
    """The other end. `epoch()` returns when the epoch is over."""

    def __init__(self, python: str | Path, which: str, *words: str) -> None:
        root = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            [str(python), "-m", "bench.loader_process", which, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        )  # fmt: skip
        self.last = self._answer()

    def epoch(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.last = self._answer()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=30)

    def _answer(self) -> Epoch:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the loader's process ended with {self._process.wait()}")
        return Epoch(*json.loads(line))


def main() -> None:
    import torch

    which, *words, device = sys.argv[1:]
    torch.set_num_threads(1)  # what looks at pixels here takes no core from the loader processes
    make = {"ours": ours, "reference": reference}[which]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    for epoch in make(flags_of(*words), device):
        print(json.dumps(epoch), file=answers, flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
