"""Loading alone: samples/s of both loaders and of our decoder by itself, and where the time of a picture goes.

    python -m bench.loading [--train-data SHARDS] [--workers 1 2] [--pictures 2560] [--rounds 5] [--out FOLDER]

Twice: on SHARDS (default: the bundled ones), and on photographs of 640 x 480 pixels that it makes. Both loaders have
the flags of a user's training script, ours decodes with Pillow. A round is an epoch of each, in turn; the decoder by
itself has the same pictures in memory and as many processes. Needs the environment that scripts/reference_env.sh makes.
Run nothing beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.decoder_alone import DecoderAlone
from bench.loader_process import LoaderProcess, flags_of
from bench.machine import machine, write
from bench.paired import Timing, alternate, ratios, with_spread
from bench.photographs import write_shards
from bench.reference_environment import PYTHON
from bench.rows import OURS, REFERENCE
from bench.whole_trainer import DEMO

_MODEL, _BATCH = "ViT-B-32-256", 32
_ALONE = "decoder alone"
_CPU = torch.device("cpu")


def compare(shards: str, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios are of times: how many times as fast our loader is. Prints three lines."""
    words = (_MODEL, shards, str(options.pictures), str(_BATCH), str(workers))
    loaders = {
        OURS: LoaderProcess(sys.executable, "ours", *words, "cpu"),
        REFERENCE: LoaderProcess(PYTHON, "reference", *words, "cpu"),
    }
    ways: dict[str, Callable[[], object]] = {
        **{name: loader.epoch for name, loader in loaders.items()},
        _ALONE: DecoderAlone(flags_of(*words)),
    }
    timed = alternate(ways, _CPU, options.rounds, warm_up=1)
    for loader in loaders.values():
        loader.close()
    ours = timed[OURS]
    found: dict[str, Any] = {}
    for name, timing in timed.items():
        if not isinstance(timing, Timing) or not isinstance(ours, Timing):
            raise SystemExit(f"{name}: {timing}")
        spread = with_spread(ratios(timing, ours))
        rate = options.pictures / timing.median
        found[name] = {"samples_per_second": rate, "seconds": timing.seconds, "ratio": spread}
        beside = f", ours {spread.median:.2f} times that ({spread.low:.2f} to {spread.high:.2f})"
        print(f"    {name}: {rate:,.0f} samples/s{'' if name == OURS else beside}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train-data", default=DEMO)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pictures", type=int, default=2560, help="of an epoch")
    parser.add_argument("--photographs", type=int, default=480, help="different ones to make")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(_CPU), "pictures": options.pictures, "sets": {}}
    with tempfile.TemporaryDirectory(prefix="photographs-") as folder:
        made = write_shards(Path(folder), options.photographs, shards=4)
        for shards in (options.train_data, made):
            name = "photographs" if shards is made else shards
            print(name)
            found = result["sets"][name] = {}
            for workers in options.workers:
                print(f"  {workers} loader process{'es' if workers > 1 else ''}", flush=True)
                found[workers] = compare(shards, workers, options)
            one = DecoderAlone(flags_of(_MODEL, shards, str(options.pictures), str(_BATCH), "1"))
            found["parts"] = parts = one.parts()
            for part, micros in parts.items():
                print(f"  {part}: {micros:,.0f} us a picture")
            print(f"  together: {sum(parts.values()):,.0f} us", flush=True)
    if options.out:
        write(options.out / "loading.json", result)


if __name__ == "__main__":
    main()
