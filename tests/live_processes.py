"""Which processes are alive, by what binds them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

# Places in /proc/PID/stat, counted after the command's name, which may hold blanks: see proc(5).
_FIELDS = {"parent": 1, "group": 2, "session": 3}


def live_processes(bond: Literal["parent", "group", "session"], number: int) -> list[int]:
    """Those whose parent, process group or session is `number`, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it ended since it was listed
            continue
        if int(fields[_FIELDS[bond]]) == number and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
