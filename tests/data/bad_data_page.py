"""The table in docs/data.md of what becomes of each kind of bad sample: `python -m tests.data.bad_data_page`."""

from __future__ import annotations

from pathlib import Path

from tests.data.bad_kinds import Kind, all_kinds

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
START, END = "<!-- table from tests/data/bad_kinds.py -->\n", "<!-- end of table -->\n"


def table() -> str:
    rows = [f"| {name} | {_outcome(kind)} |" for name, kind in all_kinds().items()]
    return "\n".join(["| sample | what happens |", "|---|---|", *rows, ""])


def _outcome(kind: Kind) -> str:
    causes = ", ".join(f"`{cause}`" for cause in kind.causes)
    if kind.used == 0:
        return f"left out: {causes}"
    used = "used" if kind.used == 1 else "used, as two samples"
    return f"{used}; counted: {causes}" if causes else used


def page(text: str) -> str:
    """`text` with the table of now between its marks."""
    before, after = text.split(START)[0], text.split(END)[1]
    return before + START + table() + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
