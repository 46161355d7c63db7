"""The Triton kernels of the losses: what is done to one tile of logits while it is in registers.

A tile is BLOCK_M queries by BLOCK_K keys. Its products come from `tl.dot`, or, where GIVEN, from a
chunk that a vendor GEMM wrote. Exponents are in units of log 2, for `ex2` is what the hardware has:
`scale` is the logit scale times log2(e). Offsets into features are 64 bits wide; a chunk of
products or coefficients is small enough for 32.

    tensor       shape            dtype
    queries      (M, D) strided   bf16, fp16, fp32; D a multiple of BLOCK_D, rows dense
    keys         (K, D) strided   as queries
    chunk        (M, K)           products in, coefficients out
"""

from __future__ import annotations

import triton
import triton.language as tl

# Added to a logit that does not count. Finite, because its product with a weight of 0 has to be 0.
NONE: tl.constexpr = tl.constexpr(-1.0e35)

# No address is the better for knowing these to be 1 or a multiple of 16; each would compile anew.
ROWS = ["M", "first"]


@triton.jit
def tile_of_program(
    rows, columns, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr
):
    """(tile row, tile column): bands of GROUP tile rows, each walked column by column, so that
    programs that run together share keys in L2.
    """
    program = tl.program_id(0)
    tile_rows = tl.cdiv(rows, BLOCK_M)
    tile_columns = tl.cdiv(columns, BLOCK_K)
    band = program // (GROUP * tile_columns)
    height = tl.minimum(tile_rows - band * GROUP, GROUP)
    within = program % (GROUP * tile_columns)
    return band * GROUP + within % height, within // height


@triton.jit
def wide(size):
    """In 64 bits. Triton makes a size of 1 a constant, which has no `to`."""
    return size + tl.zeros((), tl.int64)


@triton.jit
def holds_pairs(tile_row, tile_column, first, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Whether a tile may: few do, and the others need not look."""
    ahead = tile_row * BLOCK_M + first - tile_column * BLOCK_K
    return (ahead > -BLOCK_M) & (ahead < BLOCK_K)


@triton.jit
def tile_products(
    queries,
    keys,
    chunk,
    row,  # (BLOCK_M,) which queries
    column,  # (BLOCK_K,) which keys
    M,
    K,
    D,
    query_stride,
    key_stride,
    chunk_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GIVEN: tl.constexpr,
):
    """<query, key> of a tile, fp32. Beyond the last row or column: some other row's, to be masked."""
    if GIVEN:
        inside = (row < M)[:, None] & (column < K)[None, :]
        at = row[:, None] * chunk_stride + column[None, :]
        return tl.load(chunk + at, mask=inside, other=0.0)
    depth = tl.arange(0, BLOCK_D)
    query_rows = (row % M).to(tl.int64)
    key_rows = (column % K).to(tl.int64)
    query_at = queries + query_rows[:, None] * query_stride + depth[None, :]
    key_at = keys + key_rows[None, :] * key_stride + depth[:, None]
    products = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
    for _ in range(0, D, BLOCK_D):
        products = tl.dot(tl.load(query_at), tl.load(key_at), products, input_precision="ieee")
        query_at += BLOCK_D
        key_at += BLOCK_D
    return products


@triton.jit(do_not_specialize=ROWS)
def softmax_sums_kernel(
    queries,
    keys,
    chunk,  # products, if GIVEN
    scale,  # () fp32, times log2(e)
    row_sums,  # (2 or 3, tile columns, M) fp32: largest exponent, Σ 2^, [Σ 2^ · exponent]
    column_sums,  # (2 or 3, tile rows, K), if BOTH_WAYS
    pairs,  # (M,) fp32: the exponent of each query's pair; written where the pair is here
    M,
    K,
    D,
    query_stride,
    key_stride,
    chunk_stride,
    first,  # query i's pair is key i + first; anywhere, also outside of these keys
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    GIVEN: tl.constexpr,
    BOTH_WAYS: tl.constexpr,
    MOMENT: tl.constexpr,
):
    """Per tile: the largest exponent and the sums of each row [and column] without its pair."""
    if not GIVEN:
        # 0 is added that no compiler knows to be 0: used to align masks of a K that 16 divides, or to
        # fold a K of 1, it runs out of registers on an H100
        K += tl.program_id(1)
    tile_row, tile_column = tile_of_program(M, K, BLOCK_M, BLOCK_K, GROUP)
    row = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_column * BLOCK_K + tl.arange(0, BLOCK_K)
    x = tile_products(
        queries, keys, chunk, row, column, M, K, D, query_stride, key_stride, chunk_stride,
        BLOCK_M, BLOCK_K, BLOCK_D, GIVEN,
    )  # fmt: skip
    # sums, not selections: predicates for each logit would cost registers that are not there
    exponent = x * tl.load(scale) + tl.where(column < K, 0.0, NONE)[None, :]
    if BOTH_WAYS:
        exponent += tl.where(row < M, 0.0, NONE)[:, None]
        column_top = tl.max(exponent, 0)
    top = tl.max(exponent, 1)

    if holds_pairs(tile_row, tile_column, first, BLOCK_M, BLOCK_K):
        is_pair = row[:, None] + first == column[None, :]
        pair = tl.sum(tl.where(is_pair, exponent, 0.0), 1)
        exponent = tl.where(is_pair, NONE, exponent)
        pair_column = row + first - tile_column * BLOCK_K
        pair_is_here = (row < M) & (pair_column >= 0) & (pair_column < BLOCK_K) & (row + first < K)
        tl.store(pairs + row, pair, mask=pair_is_here)

    # in another order of sums, or with a store among them, the registers of an H100 would not do
    weight = tl.exp2(exponent - top[:, None])
    if MOMENT:
        moment = tl.sum(weight * exponent, 1)
    rest = tl.sum(weight, 1)
    if BOTH_WAYS:
        weight = tl.exp2(exponent - column_top[None, :])
        column_rest = tl.sum(weight, 0)
        if MOMENT:
            column_moment = tl.sum(weight * exponent, 0)

    here = row_sums + tile_column.to(tl.int64) * M + row
    stride = tl.cdiv(K, BLOCK_K) * wide(M)
    tl.store(here, top, mask=row < M)
    tl.store(here + stride, rest, mask=row < M)
    if MOMENT:
        tl.store(here + 2 * stride, moment, mask=row < M)
    if BOTH_WAYS:
        here = column_sums + tile_row.to(tl.int64) * K + column
        stride = tl.cdiv(M, BLOCK_M) * wide(K)
        tl.store(here, column_top, mask=column < K)
        tl.store(here + stride, column_rest, mask=column < K)
        if MOMENT:
            tl.store(here + 2 * stride, column_moment, mask=column < K)


@triton.jit(do_not_specialize=ROWS)
def softmax_coefficients_kernel(
    queries,
    keys,
    chunk,  # (M, K): products in, if GIVEN; coefficients out
    scale,  # () fp32, times log2(e)
    row_top,  # (M,) fp32: the largest exponent of each query's softmax
    row_factor,  # (M,): weight / Σ
    column_top,  # (K,): of each key's softmax, if BOTH_WAYS
    column_factor,  # (K,)
    M,
    K,
    D,
    query_stride,
    key_stride,
    chunk_stride,
    first,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    GIVEN: tl.constexpr,
    BOTH_WAYS: tl.constexpr,
):
    """c_ij = p_ij [+ q_ij], and 0 at the pairs: what multiplies features in backward."""
    tile_row, tile_column = tile_of_program(M, K, BLOCK_M, BLOCK_K, GROUP)
    row = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_column * BLOCK_K + tl.arange(0, BLOCK_K)
    x = tile_products(
        queries, keys, chunk, row, column, M, K, D, query_stride, key_stride, chunk_stride,
        BLOCK_M, BLOCK_K, BLOCK_D, GIVEN,
    )  # fmt: skip
    exponent = x * tl.load(scale)
    top = tl.load(row_top + row, mask=row < M, other=0.0)
    factor = tl.load(row_factor + row, mask=row < M, other=0.0)
    # the sums came from another tiling, perhaps: without the minimum an exponent may be 1e-6
    coefficient = tl.exp2(_at_most_zero(exponent - top[:, None])) * factor[:, None]
    if BOTH_WAYS:
        top = tl.load(column_top + column, mask=column < K, other=0.0)
        factor = tl.load(column_factor + column, mask=column < K, other=0.0)
        coefficient += tl.exp2(_at_most_zero(exponent - top[None, :])) * factor[None, :]
    if holds_pairs(tile_row, tile_column, first, BLOCK_M, BLOCK_K):
        is_pair = row[:, None] + first == column[None, :]
        coefficient = tl.where(is_pair, 0.0, coefficient)
    _store_tile(chunk, coefficient, row, column, M, K, chunk_stride)


@triton.jit(do_not_specialize=ROWS)
def sigmoid_kernel(
    queries,
    keys,
    chunk,  # (M, K): products in, if GIVEN; slopes out, if SLOPES
    scale,  # () fp32
    bias,  # () fp32
    sums,  # (3, tiles) fp32: -Σ log σ(±z), its derivatives by the scale and by the bias
    lift,  # a power of two that the slopes are multiplied by
    M,
    K,
    D,
    query_stride,
    key_stride,
    chunk_stride,
    first,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    GIVEN: tl.constexpr,
    SLOPES: tl.constexpr,
):
    """The sums of each tile, and d(-log σ(±z))/dz of each logit."""
    tile_row, tile_column = tile_of_program(M, K, BLOCK_M, BLOCK_K, GROUP)
    row = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_column * BLOCK_K + tl.arange(0, BLOCK_K)
    x = tile_products(
        queries, keys, chunk, row, column, M, K, D, query_stride, key_stride, chunk_stride,
        BLOCK_M, BLOCK_K, BLOCK_D, GIVEN,
    )  # fmt: skip
    inside = (row < M)[:, None] & (column < K)[None, :]
    is_pair = row[:, None] + first == column[None, :]
    # of a negative; a positive is the same with the sign of its logit turned
    z = x * tl.load(scale) + tl.load(bias)
    z = tl.where(inside, tl.where(is_pair, -z, z), NONE)
    decay = tl.exp2(tl.abs(z) * -1.4426950408889634)
    slope = _logistic(z, decay)
    slope = tl.where(is_pair, -slope, slope)
    if SLOPES:
        _store_tile(chunk, slope * lift, row, column, M, K, chunk_stride)
    loss = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL) + _log1p(decay)
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0).to(tl.int64)
    tl.store(sums + program, tl.sum(loss))
    tl.store(sums + programs + program, tl.sum(slope * x))
    tl.store(sums + 2 * programs + program, tl.sum(slope))


@triton.jit
def _at_most_zero(exponent):
    return tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _logistic(z, decay):
    """σ(z) from exp(-|z|): exact on both sides, where 1 - σ(-z) is not."""
    return tl.where(z > 0, 1.0, decay) / (1.0 + decay)


@triton.jit
def _log1p(y):
    """log(1 + y) = 2 artanh(y / (2 + y)) for y in [0, 1], by its series to within fp32's rounding.

    The hardware's logarithm has an absolute error near 1: useless for the e-10 of a first step.
    """
    t = y / (2.0 + y)  # at most 1/3
    t2 = t * t
    series = 1 / 11 + t2 * (1 / 13)
    series = 1 / 9 + t2 * series
    series = 1 / 7 + t2 * series
    series = 1 / 5 + t2 * series
    series = 1 / 3 + t2 * series
    return 2.0 * t + 2.0 * t * (t2 * series)


@triton.jit
def _store_tile(chunk, values, row, column, M, K, chunk_stride):
    inside = (row < M)[:, None] & (column < K)[None, :]
    at = row[:, None] * chunk_stride + column[None, :]
    tl.store(chunk + at, values.to(chunk.dtype.element_ty), mask=inside)
