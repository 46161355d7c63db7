"""What NVIDIA documents of two chips; no number here was fitted to a measurement.

Sources: [A] "NVIDIA A100 Tensor Core GPU Architecture", 2020; [H] "NVIDIA H100 Tensor Core GPU
Architecture", 2022; [P] CUDA C++ Programming Guide, tables "Throughput of Native Arithmetic
Instructions" and "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Chip(NamedTuple):
    """Rates are per multiprocessor and clock unless a unit is named."""

    name: str
    capability: int
    multiprocessors: int
    clock: float  # Hz, the boost clock that the tensor peak is quoted at
    tensor_flops: int  # dense, half precision in, float32 out
    fma_lanes: int  # float32 add, multiply, fma
    hbm: float  # bytes/s, whole chip
    l2: int  # bytes/clock, whole chip
    block_shared: int  # bytes that one block may have
    shared: int  # bytes

    # the same on both chips [P]
    issue: int = 4  # warp instructions: four schedulers, one each
    alu_lanes: int = 64  # integer add, compare, minimum, select, logic
    imad_lanes: int = 64
    mufu_lanes: int = 16  # ex2, rcp, and conversions
    shared_bytes: int = 128  # to and from shared memory; a shuffle of a warp moves as much
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    reserved: int = 1024  # bytes of shared memory that the system takes of each block

    @property
    def peak(self) -> float:
        """FLOP/s, dense, half precision."""
        return self.tensor_flops * self.multiprocessors * self.clock

    def resident(self, registers: int, warps: int, shared: int) -> int:
        """Blocks of `warps` warps that one multiprocessor holds at a time."""
        per_warp = -(-registers * 32 // 256) * 256  # handed out in units of 256 [P]
        of_shared = math.inf if shared == 0 else self.shared // (shared + self.reserved)
        of_registers = self.registers // per_warp // warps
        return int(min(self.blocks, self.warps // warps, of_registers, of_shared))


CHIPS = {
    # [A] 312 TFLOP/s; 40 GB at 1,555 GB/s; L2 read 5,120 bytes/clock
    "sm_80": Chip(
        "A100 SXM 40 GB", 80, 108, 1.410e9, 2048, 64, 1.555e12, 5120, 163 << 10, 164 << 10
    ),
    # [H] 989.4 TFLOP/s at 1,830 MHz; 3,352 GB/s. NVIDIA gives no rate for its L2: the A100's stands in
    "sm_90": Chip(
        "H100 SXM 80 GB", 90, 132, 1.830e9, 4096, 128, 3.352e12, 5120, 227 << 10, 228 << 10
    ),
}
