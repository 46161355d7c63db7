"""A chunk of logits in plain torch, for any device and dtype; see `sweeps.Chunks`.

Passes over a chunk are as dear as its GEMM on a CPU (D = 512: 6 ns of GEMM and 0.1 to 0.5 ns a pass for
each logit), so they are few, and they work in place on buffers that stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..onednn import close_product, product, takes
from .checks import sum_dtype
from .cpu import log1p_sum, multiplies
from .sweeps import LOG2_E, Chunk, Sigmoid, Sums

# Of one buffer of float32 logits; there are two, or four. A CPU's second and third level of cache, and
# enough to fill the device elsewhere.
CHUNK_BYTES_CPU = 4 << 20
CHUNK_BYTES = 32 << 20

# Binary orders of magnitude that one shared exponent may span. Beyond, what float32 flushes to 0
# could count, and each column gets an exponent of its own.
_SPAN = 60.0

# Logits below which the number of calls counts, not that of passes.
_FEW = 1 << 16


class TorchChunks:
    """`dtype` is that of the features as they are multiplied; buffers live as long as this."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._dtype, self._wide = dtype, sum_dtype(dtype)
        # A GEMM's result has its inputs' dtype, but for CUDA's half precision
        self._half = device.type == "cuda" and self._wide != dtype and torch.version.hip is None
        self._on_cpu = device.type == "cpu"
        # of coefficients, whose products may be rounded: their sum will be, to the features' dtype
        self._narrow = self._half or (self._on_cpu and multiplies(dtype))
        # of half precision the features' own rounding is larger
        self._logits = close_product if self._wide == dtype else product
        self._empty = torch.empty(0, dtype=self._wide, device=device)
        self._buffers = [self._empty] * 4
        # Keeps coefficients of a softmax over 86,000 keys, 1e-5, out of float16's subnormal range
        # in a GEMM. They are at most 2, so that nothing overflows.
        self.lift = 1024.0 if self._half and dtype == torch.float16 else 1.0

    def bounds(self, queries: int, keys: int, *, forward: bool) -> tuple[int, int]:
        del forward
        budget = (CHUNK_BYTES_CPU if self._on_cpu else CHUNK_BYTES) // 4
        # close to square, so that features and gradients are read and written few times
        height = min(queries, max(1, int(budget**0.5)))
        width = min(keys, max(1, budget // height))
        return min(queries, max(1, budget // width)), width

    def softmax_sums(
        self,
        queries: Tensor,
        keys: Tensor,
        scale2: Tensor,
        first: int,
        *,
        columns: bool,
        moment: bool,
    ) -> Chunk:
        u = self._exponents(queries, keys, scale2)
        pairs = u.diagonal(first).clone()
        top = u.amax(1)
        weight = torch.sub(u, top.unsqueeze(1), out=self._buffer(1, u.shape)).exp2_()
        weight.diagonal(first).zero_()
        rows = Sums(top, weight.sum(1), (weight * u).sum(1) if moment else None)
        if not columns:
            return Chunk(rows, None, pairs)
        return Chunk(rows, self._column_sums(u, weight, top, pairs, first), pairs)

    def _column_sums(
        self, u: Tensor, weight: Tensor, top: Tensor, pairs: Tensor, first: int
    ) -> Sums:
        """`weight` = 2^(u - top of its row) without the pairs, and is lost."""
        # elsewhere the question below would wait for the device; on few logits it does not pay
        if self._on_cpu and u.numel() > _FEW:
            shift = top.max()
            # a product with a vector would add rows up one by one, with its rounding error
            rest = weight.mul_(torch.exp2(top - shift).unsqueeze(1)).sum(0)
            with_pair = rest.clone()
            start = max(first, 0)
            with_pair[start : start + len(pairs)] += torch.exp2(pairs - shift)
            if float(with_pair.min()) > 2.0**-_SPAN:  # what was flushed to 0 is below 2^-126
                return Sums(shift.expand(len(rest)), rest, None)
        top = u.amax(0)
        weight = torch.sub(u, top, out=weight).exp2_()
        weight.diagonal(first).zero_()
        return Sums(top, weight.sum(0), None)

    def softmax_coefficients(
        self,
        queries: Tensor,
        keys: Tensor,
        scale2: Tensor,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor] | None,
        first: int,
    ) -> Tensor:
        top, factor = rows[0].unsqueeze(1), rows[1].unsqueeze(1)
        c = self._exponents(queries, keys, scale2)
        if columns is None:
            c.sub_(top).exp2_().mul_(factor)
        else:
            column_top, column_factor = columns
            other = self._buffer(1, c.shape)
            highest = self._shared_top(c, rows[0], column_top)
            if highest is not None:
                # one exponential: 2^(u - top) = 2^(u - h) 2^(h - top), of the row as of the column
                row_part = torch.exp2(highest - rows[0]) * rows[1]
                column_part = torch.exp2(highest - column_top) * column_factor
                torch.add(row_part.unsqueeze(1), column_part, out=other)
                c.sub_(highest).exp2_().mul_(other)
            else:
                torch.sub(c, column_top, out=other).exp2_().mul_(column_factor)
                c.sub_(top).exp2_().mul_(factor).add_(other)
        c.diagonal(first).zero_()
        return self._as_operand(c)

    def _shared_top(self, u: Tensor, row_top: Tensor, column_top: Tensor) -> Tensor | None:
        """The largest top, where 2^(u - it) says enough of all rows and columns: no top is far below."""
        if not self._on_cpu or u.numel() <= _FEW:
            return None
        highest = torch.maximum(row_top.max(), column_top.max())
        lowest = torch.minimum(row_top.min(), column_top.min())
        return highest if float(highest - lowest) < _SPAN else None

    def sigmoid(
        self,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor,
        first: int | None,
        *,
        slopes: bool,
    ) -> tuple[Sigmoid, Tensor]:
        x = self._products(queries, keys)
        u = torch.mul(x, scale * LOG2_E, out=self._buffer(1, x.shape)).add_(bias * LOG2_E)
        if first is not None:  # a positive is a negative whose logit has the other sign
            u.diagonal(first).neg_()
        scratch = self._buffer(2, x.shape)
        if self._on_cpu and float(u.max()) < _SPAN:
            grown = u.exp2_()  # of -log σ(-z) = log(1 + e^z) and σ(z) = e^z / (1 + e^z)
            more = torch.add(grown, 1, out=scratch)
            loss = log1p_sum(grown, more, self._buffer(3, x.shape))
            slope = grown.div_(more)
        else:
            z = u.div_(LOG2_E)
            loss = F.softplus(z, threshold=40).sum()  # e^-40 is nothing beside 40, in float64 too
            slope = z.sigmoid_()
        if first is not None:
            slope.diagonal(first).neg_()
        sums = Sigmoid(loss, x.mul_(slope).sum(), slope.sum())
        if not slopes:
            return sums, slope
        return sums, self._as_operand(slope if self.lift == 1 else slope.mul_(self.lift))

    def accumulate(self, total: Tensor, coefficients: Tensor, features: Tensor) -> None:
        if self._half:
            total += torch.mm(coefficients, features, out_dtype=torch.float32)
        elif self._narrow:
            total += torch.mm(coefficients, features)
        else:
            features = features.to(self._wide)
            if takes(coefficients, features):
                total += product(coefficients, features)
            else:
                total.addmm_(coefficients, features)

    def _as_operand(self, coefficients: Tensor) -> Tensor:
        return coefficients.to(self._dtype) if self._narrow else coefficients

    def _exponents(self, queries: Tensor, keys: Tensor, scale2: Tensor) -> Tensor:
        if self._half:  # a scaled query would be rounded
            return self._products(queries, keys).mul_(scale2)
        return self._products(queries.to(self._wide) * scale2, keys)

    def _products(self, queries: Tensor, keys: Tensor) -> Tensor:
        if self._half:
            return torch.mm(queries, keys.T, out_dtype=torch.float32)
        queries, keys = queries.to(self._wide), keys.to(self._wide)
        if takes(queries, keys):  # which cannot be told where to write
            return self._logits(queries, keys.T)
        return torch.mm(queries, keys.T, out=self._buffer(0, (len(queries), len(keys))))

    def _buffer(self, which: int, shape: tuple[int, int] | torch.Size) -> Tensor:
        rows, columns = shape
        if self._buffers[which].numel() < rows * columns:
            self._buffers[which] = self._empty.new_empty(rows * columns)
        return self._buffers[which][: rows * columns].view(rows, columns)
