"""Samples that cannot be used: counted by cause, named in the log a few times, never fatal one by one.

A loader process notes what it meets; the notes travel with its batches to the main process, which counts and logs.
So the counts are those of the samples up to the batch in hand, and one process writes the lines.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, NamedTuple

from fastclip.errors import DataError

logger = logging.getLogger(__name__)

LINES_PER_CAUSE = 20
HOPELESS_SAMPLES = 2000
HOPELESS_SHARDS = 32
JUDGED_AFTER = 10_000  # samples, before the share of bad ones says something about the rest
_SHOWN = 200  # characters of a name or of a reason

# Causes that leave the sample in use, or that are not about one sample.
EMPTY_CAPTION = "empty caption (kept)"
NO_CAPTION = "no caption"
NO_PICTURE = "no picture"
BAD_CAPTION = "caption is not UTF-8"
BAD_PICTURE = "unreadable picture"
LARGE_MEMBER = "file too large"
MISSING_FILE = "missing file"
CUT_SHARD = "shard cut short"
BAD_SHARD = "unreadable shard"
CHANGED_DATA = "resumed at another sample than was left"

DROPS_NOTHING = frozenset({EMPTY_CAPTION, CUT_SHARD, BAD_SHARD, CHANGED_DATA})


class BadEvent(NamedTuple):
    cause: str
    where: str  # "shard/key", a path, or a row
    detail: str


class BadReport(NamedTuple):
    """What one loader process met since its last report; `events` are the first few of each cause."""

    counts: dict[str, int]
    events: list[BadEvent]


class BadSampleNotes:
    """Kept by whoever reads samples in one process; `take()` empties it.

    `note` raises DataError once it is plain that the data is not what the flags say: many bad samples and not
    one good. A shard that is bad as a whole, among good ones, must pass, so two shards have to agree.
    """

    def __init__(self, data: str) -> None:
        self.good = 0  # samples, since the start; counted by whoever makes batches
        self.dropped = 0
        self.shards = 0  # opened; stays 0 for data that has none
        self._data = data  # flag and value, for the message
        self._bad_shards = 0
        self._counts: Counter[str] = Counter()
        self._named: Counter[str] = Counter()
        self._events: list[BadEvent] = []
        self._last: BadEvent | None = None

    def note(self, cause: str, where: str, detail: str = "") -> None:
        self._counts[cause] += 1
        self.dropped += cause not in DROPS_NOTHING
        self._bad_shards += cause == BAD_SHARD
        event = BadEvent(cause, shown(where), shown(detail))
        if cause != EMPTY_CAPTION:
            self._last = event
        if self._named[cause] < LINES_PER_CAUSE:
            self._named[cause] += 1
            self._events.append(event)
        if self.good == 0 and (
            (self.dropped >= HOPELESS_SAMPLES and self.shards != 1)
            or (self._bad_shards >= HOPELESS_SHARDS and self.dropped == 0)
        ):
            raise self.hopeless()

    def hopeless(self) -> DataError:
        """The error for data without one usable sample."""
        if self._last is None:
            return DataError(f"{self._data}: holds no samples")
        cause, where, detail = self._last
        seen = f"{self.dropped:,} samples" if self.dropped else f"{self._bad_shards:,} shards"
        return DataError(
            f"{self._data}: not one usable sample among {seen}; "
            f"the last one: {cause} in {where}{': ' if detail else ''}{detail}"
        )

    def take(self) -> BadReport:
        report = BadReport(dict(self._counts), self._events)
        self._counts.clear()
        self._events = []
        return report


class BadSampleCounter:
    """The totals of a run, in the main process; logs at most LINES_PER_CAUSE warnings of a cause.

    `max_fraction` is the share of samples that may be dropped; above it `keep` and `judge` raise DataError.
    """

    def __init__(self, max_fraction: float = 1.0, data: str = "") -> None:
        self._max_fraction, self._data = max_fraction, data
        self._counts: Counter[str] = Counter()
        self._logged: Counter[str] = Counter()
        self.kept = 0  # samples handed to training

    @property
    def counts(self) -> dict[str, int]:
        """Number of occurrences by cause; `empty caption (kept)` and the two about shards drop no sample."""
        return dict(self._counts)

    @property
    def dropped(self) -> int:
        """Samples that were left out."""
        return sum(count for cause, count in self.counts.items() if cause not in DROPS_NOTHING)

    def keep(self, samples: int) -> None:
        """Count samples handed to training, and judge once there are JUDGED_AFTER of them with the dropped ones."""
        self.kept += samples
        if self.kept + self.dropped >= JUDGED_AFTER:
            self.judge()

    def judge(self) -> None:
        """Raise DataError if too large a part of the samples so far was dropped."""
        dropped = self.dropped
        if dropped > self._max_fraction * (self.kept + dropped):
            causes = ", ".join(
                f"{cause}: {count:,}"
                for cause, count in self._counts.most_common()
                if cause not in DROPS_NOTHING
            )
            raise DataError(
                f"{self._data}: {dropped:,} of the first {self.kept + dropped:,} samples are bad, more than "
                f"--max-bad-fraction {self._max_fraction:g} ({causes})"
            )

    def absorb(self, report: BadReport) -> None:
        self._counts.update(report.counts)
        for event in report.events:
            if self._logged[event.cause] >= LINES_PER_CAUSE:
                continue
            self._logged[event.cause] += 1
            logger.warning("%s", self._line(event))
            if self._logged[event.cause] == LINES_PER_CAUSE:
                logger.warning("%s: further ones are counted, not named", event.cause)

    def state(self) -> dict[str, Any]:
        """For a run that goes on from here: see `load`."""
        return {"counts": dict(self._counts), "logged": dict(self._logged), "kept": self.kept}

    def load(self, state: dict[str, Any]) -> None:
        self._counts, self._logged = Counter(state["counts"]), Counter(state["logged"])
        self.kept = int(state["kept"])

    def summary(self) -> str:
        """One line for the log: "" while nothing bad was met."""
        return ", ".join(f"{cause}: {count}" for cause, count in sorted(self.counts.items()))

    def _line(self, event: BadEvent) -> str:
        if event.cause == EMPTY_CAPTION:
            return f"Empty caption in {event.where}: the sample is kept, as in OpenCLIP."
        detail = f": {event.detail}" if event.detail else ""
        # The wording of the reference's own warning, which people grep for, around what it does not say.
        return f"Handling webdataset error ({event.cause} in {event.where}{detail}). Ignoring."


def shown(text: str) -> str:
    """`text` fit for one line of a log: names in an archive may be of any length and hold any character."""
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"
    return text if text.isprintable() else repr(text)[1:-1]
