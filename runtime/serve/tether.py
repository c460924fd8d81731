"""Processes that end with the server that started them, however it ends: its kill must leave no orphan behind."""

from __future__ import annotations

import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent() -> None:
    """End this process when the one that started it does.

    The parent keeps the other end of this process's standard input, a pipe, and writes nothing more to it: it is closed
    with the parent. A process that is stopped, or whose thread never runs, does not notice that; Linux kills it when
    the thread that started it ends.
    """
    threading.Thread(target=_end_with_input, name="tether", daemon=True).start()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)
