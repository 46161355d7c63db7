"""The modelled time of whole losses, forward and backward, against their floor.

Floor: the FLOPs of the matrix products that the loss makes (README.md of the loss, section 2) at the
chip's documented dense peak. Products that a vendor's GEMM makes count at that peak too, or at the time
that memory takes for what they cannot keep in L2. Launch latencies are left out: they are not work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..loss.triton_chunks import TritonChunks
from ..loss.triton_table import launch_for
from .build import Built
from .chips import Chip
from .model import model
from .variants import FORMS, Variant


class Loss(NamedTuple):
    name: str
    rows: int
    keys: int
    width: int
    forward: str  # form
    backward: str
    sides: int  # images and texts of a rank; 1: a square serves both
    vendor: int  # GEMMs of each side in backward

    @property
    def flops(self) -> float:
        """Of its matrix products: one forward, one made again backward, and the vendor's."""
        return 2.0 * self.rows * self.keys * self.width * self.sides * (2 + self.vendor)


LOSSES = (
    Loss("b = 896 of N = 86,016", 896, 86_016, 512, "sums of rows", "coefficients both ways", 2, 1),
    Loss(
        "B = 32,768 square", 32_768, 32_768, 512, "sums both ways", "coefficients both ways", 1, 2
    ),
)


class Estimate(NamedTuple):
    """Seconds."""

    loss: str
    floor: float
    forward: float
    backward: float  # our kernel
    vendor: float
    passes: float  # over partial sums, and the gradients' rounding
    serial: float  # all of it if no phase of a block is covered by another block's
    bound_by: dict[str, str]  # by form

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.vendor + self.passes

    @property
    def ratio(self) -> float:
        return self.seconds / self.floor


def estimate(
    loss: Loss, chip: Chip, arch: str, dtype: torch.dtype, build: Callable[[Variant], Built]
) -> Estimate:
    chunks = TritonChunks(torch.device("cpu"), dtype)
    forward = backward = vendor = passes = serial = 0.0
    bound_by = {}
    for form, is_forward in ((loss.forward, True), (loss.backward, False)):
        launch = launch_for(
            dtype, loss.width, kernel=FORMS[form].kind, keys=loss.keys, capability=chip.capability
        )
        built = build(Variant(form, dtype, launch, arch))
        height, width = chunks.bounds(loss.rows, loss.keys, forward=is_forward)
        for m, k, times in _chunk_sizes(loss.rows, loss.keys, height, width):
            tile_rows, tile_columns = -(-m // launch.block_m), -(-k // launch.block_k)
            blocks, feature = tile_rows * tile_columns, loss.width * dtype.itemsize
            stored = m * k * dtype.itemsize if FORMS[form].stores_chunk else 0
            bands = -(-tile_rows // launch.group)
            modelled = model(
                built,
                chip,
                blocks=blocks,
                flops_of_block=2.0 * launch.block_m * launch.block_k * loss.width,
                l2_bytes=blocks * (launch.block_m + launch.block_k) * feature + stored,
                hbm_bytes=(m + bands * k) * feature,  # coefficients stay in L2: chunks are cut so
            )
            bound_by[form] = modelled.bound_by
            times *= loss.sides
            serial += times * modelled.serial
            if is_forward:
                forward += times * modelled.seconds
                flags = FORMS[form].flags
                partial = tile_columns * m + (tile_rows * k if flags["BOTH_WAYS"] else 0)
                # amax, subtract, exp2, multiply, sum: what each reads and writes, 4 bytes a number
                kinds = 3 if flags["MOMENT"] else 2
                passes += times * 4 * partial * (kinds + 6 + 3 * (kinds - 1)) / chip.hbm
            else:
                backward += times * modelled.seconds
                product = 2.0 * m * k * loss.width / chip.peak
                # the features, and the float32 sums of the longer side, read and written
                moved = (
                    k * feature + 8 * max(m, k if loss.vendor > 1 else 0) * loss.width
                ) / chip.hbm
                vendor += times * loss.vendor * max(product, moved)
    gradients = 2 * loss.rows * loss.width
    passes += gradients * (4 + dtype.itemsize) / chip.hbm
    serial += vendor + passes
    floor = loss.flops / chip.peak
    return Estimate(loss.name, floor, forward, backward, vendor, passes, serial, bound_by)


def _chunk_sizes(rows: int, keys: int, height: int, width: int) -> list[tuple[int, int, int]]:
    """(rows, keys, how many) of the chunks that a sweep makes."""
    sizes = []
    for m, over_rows in ((height, rows // height), (rows % height, 1)):
        for k, over_keys in ((width, keys // width), (keys % width, 1)):
            if m and k and over_rows and over_keys:
                sizes.append((m, k, over_rows * over_keys))
    return sizes
