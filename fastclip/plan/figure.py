"""A figure with its uncertainty and where it comes from; and how figures are written."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A rate, a share or a time; `low` and `high` differ where it is known to a range only."""

    low: float
    high: float
    source: str  # counted, measured here, measured (FILE), data sheet, assumed; and of what

    @classmethod
    def exactly(cls, value: float, source: str) -> Figure:
        return cls(value, value, source)

    def times(self, low: float, high: float, source: str) -> Figure:
        return Figure(self.low * low, self.high * high, source)

    @property
    def middle(self) -> float:
        """The geometric mean: as many times above the low end as below the high one."""
        return (self.low * self.high) ** 0.5


def total(figures: list[Figure]) -> Figure:
    """One after the other."""
    return Figure(sum(f.low for f in figures), sum(f.high for f in figures), "sum")


def between(figure: Figure, scale: float, digits: int = 3) -> str:
    """`1.2 to 3.4`, or one number; in units of `scale`."""
    low, high = (number(value / scale, digits) for value in figure[:2])
    return low if low == high else f"{low} to {high}"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, thousands set off, never an exponent."""
    if abs(value) >= 10 ** (digits - 1) or value == 0:
        return f"{value:,.0f}"
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{value:.{digits + 3}f}" if "e" in text else text


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{count:.0f} bytes"
