"""Do both trainers learn the same? Several seeds, hundreds of steps on real shards, the same batches on both sides.

    python -m tests.e2e.learning_parity SHARDS [--steps 300] [--seeds 3] [--batch-size 32]

For each seed the reference's model, loss, schedule and train_one_epoch, and our trainer, start from the same weights
and see the same augmented batches (made by our loader). Prints the mean loss of the last 50 steps of each run, the
paired differences and their spread, and exits with 1 where the mean difference is above 1 % or, beyond what rounding
explains (1e-4 of the loss), above two standard errors.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys

import torch

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.config.tokenizers import TokenizerSpec
from fastclip.config.train_config import DataConfig
from fastclip.data.build import build_data
from fastclip.data.tokenizer import build_tokenizer
from tests.e2e.trajectories import our_model, our_trajectory, reference_model, reference_trajectory

MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
LAST = 50


def batches(
    shards: str, steps: int, size: int, seed: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    config = DataConfig(
        train_data=shards,
        dataset_type="webdataset",
        train_num_samples=steps * size,
        batch_size=size,
        workers=1,
        decoder="pillow",
        augment=AugmentConfig(
            scale=(0.4, 1.0), color_jitter=(0.32, 0.32, 0.32, 0.08), use_timm=True
        ),
    )
    loader = build_data(
        config,
        PreprocessConfig(size=(64, 64)),
        build_tokenizer(TokenizerSpec(context_length=MODEL["text_cfg"]["context_length"])),
        seed=seed,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    ).train
    assert loader is not None
    made = [(batch.images, batch.texts) for batch in loader.epoch(0)]
    loader.close()
    return made


def last_losses(shards: str, steps: int, size: int, seed: int) -> tuple[float, float, float]:
    """(ours, reference's, first loss)."""
    flags = (
        "--train-data unused --model ViT-B-32-256 --precision fp32 --warmup 50 --lr 1e-3 --beta1 0.9 --beta2 0.95 "
        f"--wd 0.2 --batch-size {size} --log-every-n-steps 1 --epochs 1 --device cpu "
        "--local-loss --gather-with-grad"
    ).split()
    data = batches(shards, steps, size, seed)
    model = reference_model(MODEL, seed)
    weights = copy.deepcopy(model.state_dict())
    theirs = reference_trajectory(model, data, flags)
    ours = our_trajectory(our_model(MODEL, weights), data, flags)
    return (
        statistics.fmean(ours.losses[-LAST:]),
        statistics.fmean(theirs.losses[-LAST:]),
        theirs.losses[0],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    differences, references = [], []
    for seed in range(arguments.seeds):
        ours, theirs, first = last_losses(
            arguments.shards, arguments.steps, arguments.batch_size, seed
        )
        print(
            f"seed {seed}: loss of step 0 {first:.4f}; of the last {LAST}: ours {ours:.5f}, "
            f"reference {theirs:.5f}, difference {ours - theirs:+.2e}",
            flush=True,
        )
        differences.append(ours - theirs)
        references.append(theirs)
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    level = statistics.fmean(references)
    spread = statistics.stdev(references) if len(references) > 1 else 0.0
    print(
        f"mean paired difference {mean:+.2e} ({100 * abs(mean) / level:.4f} % of {level:.4f}), "
        f"standard error {error:.1e}; spread of the reference over seeds {spread:.3f}"
    )
    return int(abs(mean) > 0.01 * level or abs(mean) > max(2 * error, 1e-4 * level))


if __name__ == "__main__":
    sys.exit(main())
