"""The data sets of DataComp (Gadre et al. 2023), from the table `datacomp.json`.

Names, main metrics, sizes and folders are those of github.com/mlfoundations/datacomp (tasklist.yml,
download_evalsets.py, commit 4a8df19). Class names and templates come with each set, in its folder.
40 sets are evaluated; FairFace and UTKFace have no main metric, so that the average is over 38.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

NUM_AVERAGED = 38


class SuiteSet(NamedTuple):
    key: str
    name: str
    task: str  # a name of `suite_tasks.TASKS`
    main_metric: str | None  # None: evaluated, but no part of the average
    folder: str  # below --data-root, as DataComp's download_evalsets.py writes it
    source: str  # where that tool takes it from
    size: int  # pictures; of WinoGAViL cues
    classes: int | None
    group: str | None  # of which DataComp gives averages

    @property
    def slug(self) -> str:
        return self.key.replace("/", "_")


@cache
def datacomp_sets() -> tuple[SuiteSet, ...]:
    """In DataComp's order."""
    text = Path(__file__).with_name("datacomp.json").read_text(encoding="utf-8")
    return tuple(SuiteSet(**entry) for entry in json.loads(text))
