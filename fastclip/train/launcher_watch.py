"""A rank that torchrun started does not outlive it.

torchrun gives each rank a session of its own, so that kill -9 of torchrun, by a person or for want of memory, leaves
the ranks running: they would train on beside the job that is started in their place, and write to the same folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 30.0  # to save in; what torchrun gives, too


def end_with_launcher() -> None:
    """Have this process told to stop once torchrun is gone, and killed where that takes too long. Nothing without
    torchrun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        name = "fastclip-launcher-watch"
        threading.Thread(target=_watch, args=(os.getppid(),), name=name, daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_LOOK_SECONDS)
    with contextlib.suppress(OSError):  # its end of a pipe may be gone too
        os.write(2, b"fastclip: torchrun is gone: this rank stops\n")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
