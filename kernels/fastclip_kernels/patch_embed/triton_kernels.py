"""The Triton kernels of `patch_embed`: pixels go from bytes to tensor cores in registers.

A row is a patch: K = 3·p·p bytes, p runs of 3·p that lie together. Bytes of a picture dense within
its rows of pixels; folded weights (D, KP), KP the next multiple of BLOCK_K above K, zeros beyond K.

    tensor    shape         dtype                 note
    pixels    (B, H, W, 3)  uint8
    weights   (D, KP)       bf16, fp16, fp32
    centre    (KP,)         fp32                  2^23 + an integer in 0 ... 255
    table     (P, D)        fp32
    kept      (B, N)        int64                 where HAS_KEPT
    out, grad (B, 1 + N, D) bf16, fp16, fp32      row 0, the class token, is neither written nor read
    sums      (S, D, K)     fp32                  of S slices of the rows
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..loss.triton_kernels import tile_of_program

# No address is the better for knowing these to be 1 or a multiple of 16; each would compile anew.
COUNTS = ["M", "N", "columns", "slice_rows"]


@triton.jit
def _centred(at, k, centre, K: tl.constexpr, WHOLE: tl.constexpr):
    """byte - centre, fp32; for the k-th bytes of patches, which are all there if WHOLE.

    A byte in the last bits of 2^23 is a float without a conversion.
    """
    byte = tl.load(at) if WHOLE else tl.load(at, mask=(k < K)[None, :], other=0)
    return (byte.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - centre


@triton.jit
def _corner(
    row, kept, N, columns, picture_stride, line_stride, PATCH: tl.constexpr, HAS_KEPT: tl.constexpr
):
    """(picture, patch within it, offset of the patch's first byte) of each row."""
    picture = row // N
    patch = row - picture * N
    if HAS_KEPT:
        patch = tl.load(kept + row).to(tl.int32)
    down = patch // columns
    within = down * PATCH * line_stride + (patch - down * columns) * (3 * PATCH)
    return picture, patch, picture.to(tl.int64) * picture_stride + within


@triton.jit
def _byte_offset(k, line_stride, PATCH: tl.constexpr):
    """Of the k-th byte of a patch from its first."""
    return k // (3 * PATCH) * line_stride + k % (3 * PATCH)


@triton.jit(do_not_specialize=COUNTS)
def patch_embed_kernel(
    pixels,
    weights,
    centre,
    table,
    kept,
    out,
    M,  # B · N
    N,
    D,
    columns,  # patches side by side in a picture
    picture_stride,
    line_stride,
    PATCH: tl.constexpr,
    HAS_KEPT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out = (byte - centre) / 256 · Wᵀ + table, for BLOCK_M patches by BLOCK_D columns."""
    K: tl.constexpr = 3 * PATCH * PATCH
    KP: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    tile_row, tile_column = tile_of_program(M, D, BLOCK_M, BLOCK_D, GROUP)
    row = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tile_column * BLOCK_D + tl.arange(0, BLOCK_D)
    picture, patch, first = _corner(
        row % M, kept, N, columns, picture_stride, line_stride, PATCH, HAS_KEPT
    )
    pixel_at = pixels + first[:, None]
    depth = tl.arange(0, BLOCK_K)
    weight_at = weights + (d % D)[None, :] * KP + depth[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, KP, BLOCK_K):
        k = start + depth
        at = pixel_at + _byte_offset(k, line_stride, PATCH)[None, :]
        c = _centred(at, k, tl.load(centre + k)[None, :], K, KP == K)
        weight = tl.load(weight_at)
        sums = tl.dot(c.to(weight.dtype), weight, sums, input_precision="ieee")
        weight_at += BLOCK_K

    inside = (row < M)[:, None] & (d < D)[None, :]
    added = tl.load(table + patch[:, None] * D + d[None, :], mask=inside, other=0.0)
    token = (row + picture + 1).to(tl.int64) * D  # one class token before each picture's patches
    value = sums * 0.00390625 + added
    tl.store(out + token[:, None] + d[None, :], value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def patch_embed_weight_kernel(
    grad,
    pixels,
    centre,
    kept,
    sums,
    M,
    N,
    D,
    columns,
    picture_stride,
    line_stride,
    slice_rows,  # a multiple of BLOCK_M; slice s has rows from s · slice_rows
    PATCH: tl.constexpr,
    HAS_KEPT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """sums[s] = Σ g · (byte - centre) / 256 over the rows of slice s, for BLOCK_D by BLOCK_K weights."""
    K: tl.constexpr = 3 * PATCH * PATCH
    TILES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    tile_d, tile_k = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    byte_at = pixels + _byte_offset(k, line_stride, PATCH)[None, :]
    shift = tl.load(centre + k)[None, :]
    begin = tl.program_id(1) * slice_rows
    end = tl.minimum(begin + slice_rows, M)
    total = tl.zeros((BLOCK_D, BLOCK_K), dtype=tl.float32)
    for start in range(begin, end, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        inside = row < end
        picture, _, first = _corner(
            tl.where(inside, row, 0), kept, N, columns, picture_stride, line_stride, PATCH, HAS_KEPT
        )
        c = _centred(byte_at + first[:, None], k, shift, K, TILES * BLOCK_K == K)
        token = (row + picture + 1).to(tl.int64) * D
        wanted = (d < D)[:, None] & inside[None, :]
        g = tl.load(grad + token[None, :] + d[:, None], mask=wanted, other=0.0)
        total = tl.dot(g, c.to(g.dtype), total, input_precision="ieee")

    slice_at = sums + tl.program_id(1).to(tl.int64) * D * K
    wanted = (d < D)[:, None] & (k < K)[None, :]
    tl.store(slice_at + d[:, None] * K + k[None, :], total * 0.00390625, mask=wanted)
