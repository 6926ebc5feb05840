"""torch on the CPU: one thread a window, and windows side by side."""

# torch's functions are untyped calls
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import threading
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_threads = Lock()
_running = 0
_usual: int | None = None
_known = threading.local()
_MAIN = threading.main_thread()


@contextmanager
def one_thread() -> Iterator[None]:
    """On the CPU a window runs on one thread, and windows side by side: the same result however many there are.

    torch keeps the number a thread, and one for threads to come: both are put back.
    """
    global _running, _usual
    with _threads:
        if _running == 0:
            now = torch.get_num_threads()  # 1 in a thread that came while others ran: of no account
            if now != 1 or _usual is None or getattr(_known, "thread", threading.current_thread() is _MAIN):
                _usual = now
        _known.thread = True
        _running += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads:
            _running -= 1
            assert _usual is not None
            torch.set_num_threads(_usual)
