"""What is wrong with shards, every case of it: training keeps the first few of a cause."""

from __future__ import annotations

from fastclip.data.bad_samples import BadEvent, BadSampleNotes, shown


class EveryNote(BadSampleNotes):
    """Keeps all events, and goes on however bad the data is: whoever reads them judges."""

    def __init__(self) -> None:
        super().__init__("")
        self._all: list[BadEvent] = []

    def note(self, cause: str, where: str, detail: str = "") -> None:
        self._all.append(BadEvent(cause, shown(where), shown(detail)))

    def take_events(self) -> list[BadEvent]:
        """Those since the last call."""
        events, self._all = self._all, []
        return events
