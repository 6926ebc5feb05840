"""Channels by name or by index."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da


def channel_indices(
    names: Sequence[str], wanted: Sequence[str | int] | str | int, what: str = "the image"
) -> tuple[int, ...]:
    """Return the indices of channels that are given by name or by 0-based index, in the order given.

    Raises
    ------
    MissingError
        A name or an index that is not there; the message lists those that are.
    InputError
        Something that is neither, or a name that several channels bear.
    """
    listed = [wanted] if isinstance(wanted, str | int | np.integer) else list(wanted)
    return tuple(_index(names, c, what) for c in listed)


def pick_channels(pixels: da.Array, at: Sequence[int]) -> da.Array:
    """Return some channels of ``(c, [z], y, x)``; a run of them as a slice, which dask reads straight away."""
    first = at[0] if at else 0
    if list(at) == list(range(first, first + len(at))):
        picked: da.Array = pixels[first : first + len(at)]
    else:
        picked = pixels[list(at)]
    return picked


def _known(names: Sequence[str]) -> str:
    return f"its channels: {', '.join(f'{i}: {n!r}' for i, n in enumerate(names))}"


def _index(names: Sequence[str], channel: str | int, what: str) -> int:
    known = _known(names)
    if isinstance(channel, str):
        found = [i for i, name in enumerate(names) if name == channel]
        if not found:
            raise MissingError(f"{what} has no channel {channel!r}; {known}")
        if len(found) > 1:
            raise InputError(f"{what} has {len(found)} channels named {channel!r}; give the index; {known}")
        return found[0]
    if isinstance(channel, bool | np.bool_) or not isinstance(channel, int | np.integer):
        raise InputError(f"channel {channel!r} is no channel; expected a name or a 0-based index; {known}")
    index = operator.index(channel)
    if not 0 <= index < len(names):
        raise MissingError(f"{what} has no channel {index}; expected 0 to {len(names) - 1}; {known}")
    return index
