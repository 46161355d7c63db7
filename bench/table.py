"""The table that `pytest bench/` prints: a line for each part and peer, and what is missing by name."""

from __future__ import annotations

from collections.abc import Iterator

from bench.rows import OURS, Row

HEAD = ("part", "case", "beside", "ours", "theirs", "ratio", "spread", "used, ours", "used, theirs")


def lines_of(rows: list[Row], wrong: list[str]) -> Iterator[str]:
    """The ratio is how many times as fast ours is. Used: useful FLOPs over what products of the model's shapes reach,
    or bytes over what a copy does, whichever is more.
    """
    cells = [HEAD, *(line for row in rows for line in _lines(row))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEAD))]
    for line in cells:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
    for row in rows:
        if "sent_bytes" in row:
            yield f"sent {sent_by(row)}"
    for text in wrong:
        yield f"FAILED {text}"
    missing = {f"{peer}: {why}" for row in rows for peer, why in row["missing"].items()}
    for text in sorted(missing):
        yield f"missing {text}"


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    ours = row["ways"].get(OURS, {"error": "not run"})
    others = [name for name in row["ways"] if name != OURS]
    first = (row["part"], row["case"])
    for name in others:
        ratio, way = row["ratios"].get(name), row["ways"][name]
        yield (
            *first, name, time_of(ours), time_of(way),
            f"{ratio['median']:.2f}" if ratio else "-",
            f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else "-",
            used(ours), used(way),
        )  # fmt: skip
    for name in row["missing"]:
        yield (*first, name, time_of(ours), "missing", "-", "-", used(ours), "-")
    if not others and not row["missing"]:
        yield (*first, "-", time_of(ours), "-", "-", "-", used(ours), "-")


def sent_by(row: Row) -> str:
    """What a rank puts into collectives in one step."""
    each = ", ".join(f"{who} {count / 1e6:.3g} MB" for who, count in row["sent_bytes"].items())
    return f"{row['case']}, by a rank in a step: {each}"


def time_of(way: dict[str, object]) -> str:
    """With a unit; or what kept it from being timed."""
    if "error" in way:
        return str(way["error"])[:40]
    seconds = float(way["median"])  # type: ignore[arg-type]
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError(seconds)


def used(way: dict[str, object]) -> str:
    """The larger share of a ceiling."""
    shares = [way.get("of_gemm_rate"), way.get("of_copy_rate")]
    known = [float(each) for each in shares if each is not None]  # type: ignore[arg-type]
    return f"{max(known):.0%}" if known else "-"
