"""docs/flags.md says what the parser does: every flag once, with its default."""

from __future__ import annotations

import re

from fastclip.config.aug_cfg import KEYS
from fastclip.config.parse import TrainParser
from fastclip.config.resolve import REFUSED
from tests.config.flag_lists import OWN, by_name
from tests.config.flags_page import AUG_KEYS, BY_MODEL, PAGE, default, page


def sections(text: str) -> dict[str, list[list[str]]]:
    """Heading -> the cells of its table's rows."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `--"):
            found.setdefault(heading, []).append([c.strip() for c in line.strip("|").split("|")])
    return found


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.config.flags_page`"


def test_every_flag_is_in_the_page_once() -> None:
    rows = [row for rows in sections(PAGE.read_text()).values() for row in rows]
    flags = [row[0].strip("`") for row in rows]
    assert sorted(flags) == sorted(set(by_name(TrainParser())) - {"-h", "--help"})


def test_refused_flags_and_ours_have_their_tables() -> None:
    found = sections(PAGE.read_text())
    assert [row[0].strip("`") for row in found["Refused"]] == list(REFUSED)
    assert all(len(row) == 3 and row[1] and row[2] for row in found["Refused"])
    assert {row[0].strip("`") for row in found["Ours"]} == set(OWN)


def test_every_augmentation_key_is_explained() -> None:
    assert set(AUG_KEYS) == set(KEYS)


def test_defaults_in_the_page_are_the_parsers() -> None:
    ours = by_name(TrainParser())
    for heading, rows in sections(PAGE.read_text()).items():
        if heading == "Refused":
            continue
        for flag, _, shown, meaning in rows:
            action = ours[flag.strip("`")]
            assert shown == default(action)
            assert meaning
            if isinstance(action.default, (int, float)) and not isinstance(action.default, bool):
                assert float(re.sub("`", "", shown)) == action.default


def test_defaults_that_depend_on_the_model() -> None:
    from open_clip_train.params import get_default_params

    vit, other = get_default_params("ViT-B-32"), get_default_params("RN50")
    for dest, shown in BY_MODEL.items():
        numbers = [float(n) for n in re.findall(r"[\d.]+(?:e-\d+)?", shown)]
        assert numbers == ([vit[dest]] if vit[dest] == other[dest] else [vit[dest], other[dest]])
