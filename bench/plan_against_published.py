"""The dry run's scaling model beside throughputs that others published with their hardware. Prints Markdown.

    python -m bench.plan_against_published

[L] M. Cherti et al., trained_models_info.csv beside the models of "Reproducible scaling laws for contrastive
    language-image learning" (arXiv 2212.07143), https://huggingface.co/mehdidc/test/blob/main/trained_models_info.csv:
    OpenCLIP on JUWELS Booster, 4 A100 40 GB a node. Captions padded to 77 tokens, PyTorch of 2022, pictures decoded
    by Pillow on 12 cores a GPU.
[N] NVIDIA NeMo framework, CLIP performance, ViT-g/14 on DGX A100 (8 x 80 GB) and DGX H100,
    https://docs.nvidia.com/nemo-framework/user-guide/latest/multimodalmodels/clip/perf.html. It gives no batch size;
    32 a GPU is assumed here.

For [L] the model is given OpenCLIP's step: padded captions, every row of the last block, nothing fused. For [N] its
growth with nodes is what is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from fastclip.plan.estimate import Estimate, estimate, subject_of
from fastclip.plan.figure import between
from fastclip.plan.page_of_step import samples_per_second
from fastclip.plan.prepared import prepared_on_meta

AS_OPEN_CLIP = "--no-packed-text --no-prune-last-block --no-fused-patch-embed --no-fused-pointwise"


class Run(NamedTuple):
    model: str
    nodes: int
    batch_size: int
    flags: str
    samples_per_second: float  # of all GPUs, as published


# 4 A100 40 GB a node
OF_LAION = [
    Run("ViT-B-32", 32, 256, "", 108844.6),
    Run("ViT-B-32", 32, 256, "", 93294.3),
    Run("ViT-B-32", 32, 672, "", 52724.0),
    Run("ViT-B-32", 86, 256, "", 219759.0),
    Run("ViT-B-16", 86, 256, "", 136370.9),
    Run("ViT-L-14", 192, 112, "--grad-checkpointing --recompute full", 60327.9),
    Run("ViT-L-14", 256, 84, "--grad-checkpointing --recompute full", 79116.3),
]
# samples/s at 1, 2, 4, 8 and 16 nodes of 8
OF_NVIDIA = {
    "a100-80g": [559, 1115, 2190, 4407, 8633],
    "h100": [935, 1795, 3502, 6771, 13829],
}


def told(
    model: str, gpu: str, nodes: int, gpus_per_node: int, batch_size: int, flags: str
) -> Estimate:
    words = ["--dry-run", "--train-data", "unused", "--local-loss", "--gather-with-grad"]
    words += ["--precision", "amp_bf16", "--model", model, "--batch-size", str(batch_size)]
    words += ["--gpu", gpu, "--nodes", str(nodes), "--gpus-per-node", str(gpus_per_node)]
    config = resolve(parse_args([*words, *AS_OPEN_CLIP.split(), *flags.split()]))
    prepared, _ = prepared_on_meta(config, for_cpu=False)
    return estimate(config, subject_of(config), prepared, None)


def of_laion() -> Iterator[str]:
    yield "| OpenCLIP, A100 40 GB [L] | GPUs | pairs a GPU | samples/s a GPU | model | share of it |"
    yield "|---|---|---|---|---|---|"
    for run in OF_LAION:
        gpus = run.nodes * 4
        model = samples_per_second(
            told(run.model, "a100-40g", run.nodes, 4, run.batch_size, run.flags)
        )
        rate = run.samples_per_second / gpus
        yield (
            f"| {run.model} | {gpus} | {run.batch_size} | {rate:.0f} | {between(model, 1)} "
            f"| {rate / model.high:.2f} to {rate / model.low:.2f} |"
        )


def of_nvidia() -> Iterator[str]:
    yield "| ViT-g-14 [N] | nodes of 8 | samples/s | times one node | model, samples/s | times one node |"
    yield "|---|---|---|---|---|---|"
    for gpu, published in OF_NVIDIA.items():
        one = None
        for doubling, rate in enumerate(published):
            nodes = 2**doubling
            found = told("ViT-g-14", gpu, nodes, 8, 32, "--grad-checkpointing --recompute full")
            fast, slow = (found.work.samples * found.work.ranks / t.step for t in found.times)
            one = one or (fast, slow)
            low, high = sorted((fast / one[0], slow / one[1]))
            times, model = f"{low:.2f} to {high:.2f}", f"{slow:,.0f} to {fast:,.0f}"
            yield f"| {gpu} | {nodes} | {rate:,} | {rate / published[0]:.2f} | {model} | {times} |"


def main() -> None:
    for table in (of_laion(), of_nvidia()):
        for line in table:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
