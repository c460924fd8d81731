"""An interrupt from the keyboard, held back until an epoch is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Let an interrupt (SIGINT) through at once, except in blocks ``with held():``, which finish first.

    Compiled code and destructors can lose a KeyboardInterrupt or turn it into another error. So an interrupt is
    remembered: the next held block raises it at its end, and an error that follows an interrupt is raised as one.
    """
    came = holding = False

    def handle(signum: int, frame: object) -> None:
        nonlocal came
        came = True
        if not holding:
            raise KeyboardInterrupt

    @contextmanager
    def held() -> Iterator[None]:
        nonlocal holding
        holding = True
        try:
            yield
        finally:
            holding = False
        if came:
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield held  # whoever embeds this has a way of their own
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield held
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
