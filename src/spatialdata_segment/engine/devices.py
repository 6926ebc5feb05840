"""Where networks run: the devices of a run, and what is loaded on each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Literal, NamedTuple

from spatialdata_segment.errors import InputError, MissingError, is_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spatialdata_segment.methods.base import Method

_NAME = re.compile(r"cpu|mps|cuda(:\d+)?")
_choosing = Lock()
_busy: Counter[str] = Counter()


def resolve_devices(given: str | int | Sequence[str], *, used: bool = True) -> tuple[str, ...]:
    """Return the devices of a run.

    Parameters
    ----------
    given
        "auto": all CUDA devices, else Apple's "mps", else "cpu". A name ("cpu", "cuda", "cuda:1", "mps") or several. A
        number: as "auto", at most so many.
    used
        Whether anything runs on them: "auto" does not look otherwise.

    Raises
    ------
    InputError, MissingError
        If a name is none, is given twice, or the device is not there.
    """
    if is_whole(given):
        if given < 0:
            raise InputError(f"devices={given}, expected a number of devices from 0 (the CPU), or names")
        return (_found() if used and given else ("cpu",))[: max(1, given)]
    if given == "auto":
        return _found() if used else ("cpu",)
    if not isinstance(given, str | Sequence):
        raise InputError(f"devices={given!r}, expected 'auto', names of devices, or how many")
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if _NAME.fullmatch(str(name)) is None:
            raise InputError(
                f"devices={given!r}: {name!r} is no device, expected 'auto', 'cpu', 'cuda', 'cuda:0', 'mps', or several"
            )
    devices = [_whole_name(name) for name in names]
    if not devices or len(set(devices)) < len(devices):
        raise InputError(f"devices={given!r}, expected at least one device, each once")
    for name in devices:
        _check(name)
    return tuple(devices)


def _whole_name(name: str) -> str:
    return "cuda:0" if name == "cuda" else name


def _found() -> tuple[str, ...]:
    if find_spec("torch") is None:
        return ("cpu",)
    import torch

    if torch.cuda.is_available():
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return ("mps",) if torch.backends.mps.is_available() else ("cpu",)


def _check(name: str) -> None:
    if name == "cpu":
        return
    if find_spec("torch") is None:
        raise MissingError(
            f"device {name!r} needs torch: pip install 'spatialdata-segment[cellpose]', or devices='cpu'"
        )
    import torch

    if name == "mps":
        if not torch.backends.mps.is_available():
            raise MissingError("device 'mps' is not there (it is Apple's GPU): pass devices='auto' or 'cpu'")
        return
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(name.partition(":")[2]) >= n:
        there = f"{n} CUDA devices are there" if n else "torch sees no CUDA device here"
        raise MissingError(
            f"device {name!r} is not there: {there}. Pass devices='auto' or 'cpu', or install a CUDA build of torch"
        )


@contextmanager
def borrowed(devices: Sequence[str]) -> Iterator[str]:
    """Hold the device that the fewest threads of this process hold, the first of several."""
    with _choosing:
        device = min(devices, key=lambda d: _busy[d])
        _busy[device] += 1
    try:
        yield device
    finally:
        with _choosing:
            _busy[device] -= 1


class Turns(NamedTuple):
    """How many shards may do something at the same time, of all that run with one executor.

    Attributes
    ----------
    name
        Of the executor.
    predict, decode
        Shards.
    """

    name: str
    predict: int
    decode: int


_turns: dict[str, tuple[BoundedSemaphore, BoundedSemaphore]] = {}


@contextmanager
def turn(turns: Turns | None, what: Literal["predict", "decode"]) -> Iterator[None]:
    """Hold one of the places that there are; None: as many as are asked for."""
    if turns is None:
        yield
        return
    with _choosing:
        if turns.name not in _turns:
            _turns[turns.name] = BoundedSemaphore(turns.predict), BoundedSemaphore(turns.decode)
        places = _turns[turns.name][what == "decode"]
    with places:
        yield


def forget_turns(name: str) -> None:
    """Let go of the places of an executor that is no more."""
    with _choosing:
        _turns.pop(name, None)


_models: dict[tuple[str, str], object] = {}
_loading = Lock()


def load(method: Method, device: str) -> object:
    """Return what the method loads, once a process."""
    kind = type(method)
    said = json.dumps(method.fingerprint(), sort_keys=True, default=str)  # files may change under the same settings
    key = (f"{kind.__module__}.{kind.__qualname__}:{said}", device)
    with _loading:
        if key not in _models:
            _models[key] = method.load(device)
        return _models[key]
