"""Progress as events: whoever wants to know listens; a progress bar is one listener."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Event:
    """Something that a run did.

    Attributes
    ----------
    stage
        "statistics", "nucleus shards", "write" and the like.
    done, total
        Tasks of the stage; resumed ones count as done from the start.
    """

    stage: str
    done: int
    total: int


_image: ContextVar[str] = ContextVar("image", default="")
_listeners: list[Callable[[Event], None]] = []


@contextmanager
def listen(listener: Callable[[Event], None]) -> Iterator[None]:
    """Call ``listener`` with every event of the runs inside the ``with`` block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def of_image(name: str) -> Iterator[None]:
    """Name the image in all stages that this thread tells of inside the ``with`` block."""
    token = _image.set(f"{name}: ")
    try:
        yield
    finally:
        _image.reset(token)


def prefix() -> str:
    """Return what stands before the stages that this thread tells of."""
    return _image.get()


def emit(event: Event) -> None:
    """Tell every listener."""
    event = replace(event, stage=_image.get() + event.stage)
    for listener in tuple(_listeners):
        listener(event)


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Show a bar a stage while the block runs."""
    if not shown:
        yield
        return
    bars: dict[str, Any] = {}

    def show(event: Event) -> None:
        if event.stage not in bars:
            bars[event.stage] = tqdm(total=event.total, desc=event.stage, initial=event.done, leave=True)
        bar = bars[event.stage]
        bar.update(event.done - bar.n)
        if event.done >= event.total:
            bar.close()

    with listen(show):
        try:
            yield
        finally:
            for bar in bars.values():
                bar.close()
