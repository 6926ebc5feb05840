"""Channels by name or by index, and what becomes of them before a method reads them: projections and stains."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment.core.stains import STAINS, stain_amount
from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.config import Workflow
    from spatialdata_segment.methods.base import Method


@dataclass(frozen=True)
class Channel:
    """What a method reads as one channel.

    Attributes
    ----------
    indices
        Channels of the image; of several, the greatest value of each pixel.
    stain
        In place of that: a stain of the RGB image that they are.
    """

    indices: tuple[int, ...]
    stain: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a channel of the image as it lies there."""
        return self.stain is None and len(self.indices) == 1

    def label(self, names: Sequence[str]) -> str:
        """Return how it is reported; a name that several channels bear goes with the index."""
        if self.stain is not None:
            return self.stain
        told = [names[i] if list(names).count(names[i]) == 1 else f"{names[i]} ({i})" for i in self.indices]
        return told[0] if self.is_plain else f"max({', '.join(told)})"

    def read(self, pixels: da.Array) -> da.Array:
        """Return ``(1, [z], y, x)`` of ``(c, [z], y, x)``, lazily."""
        parts = [pixels[i : i + 1] for i in self.indices]
        if self.stain is None:
            projection: da.Array = reduce(da.maximum, parts)
            return projection
        rgb = da.concatenate(parts).rechunk({0: 3})
        meta = np.empty((0,) * rgb.ndim, np.float32)
        amount: da.Array = rgb.map_blocks(
            _stained, self.stain, dtype=meta.dtype, chunks=((1,), *rgb.chunks[1:]), meta=meta
        )
        return amount


def _stained(rgb: NDArray[Any], stain: str) -> NDArray[np.float32]:
    if rgb.dtype.kind == "f" and rgb.size and not (rgb.min() >= 0 and rgb.max() <= 1):
        raise InputError(
            f"the RGB image holds values from {rgb.min()} to {rgb.max()}, and the stain {stain!r} is taken of them: "
            "expected floats from 0 to 1"
        )
    return stain_amount(rgb, stain)


def read_channels(pixels: da.Array, channels: Sequence[Channel]) -> da.Array:
    """Return what a method reads of ``(c, [z], y, x)``, lazily."""
    if all(c.is_plain for c in channels):
        return pick_channels(pixels, [c.indices[0] for c in channels])
    together: da.Array = da.concatenate([c.read(pixels) for c in channels])
    return together


def named_channels(
    names: Sequence[str], wanted: Sequence[str | int] | str | int, dtype: np.dtype[Any], what: str = "the image"
) -> tuple[Channel, ...]:
    """Return channels that are given by name or 0-based index; "haematoxylin" or "eosin" for an RGB image's stain.

    Raises
    ------
    MissingError, InputError
        As `channel_indices` does, and where a stain is asked for of what is no RGB image.
    """
    listed = [wanted] if isinstance(wanted, str | int | np.integer) else list(wanted)
    return tuple(_named(names, c, dtype, what) for c in listed)


def _named(names: Sequence[str], channel: str | int, dtype: np.dtype[Any], what: str) -> Channel:
    if not isinstance(channel, str) or channel not in STAINS or channel in names:
        return Channel(channel_indices(names, channel, what))
    if len(names) != 3:
        raise MissingError(
            f"{what} has no channel {channel!r}, and a stain is taken from an RGB image, of exactly 3 channels; "
            f"{_known(names)}"
        )
    if dtype.kind != "f" and dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"the stain {channel!r} is taken from uint8, uint16, or floats from 0 to 1, and {what} has dtype {dtype}"
        )
    return Channel((0, 1, 2), "haematoxylin" if channel == "hematoxylin" else channel)


def base_channels(
    names: Sequence[str],
    workflow: Workflow,
    given: Sequence[str | int] | str | int | None,
    dtype: np.dtype[Any],
    what: str = "the image",
) -> tuple[Channel, ...]:
    """Return the nuclear, the membrane and all further channels: those given, else those of rules and order.

    Raises
    ------
    InputError
        If none is named; `MissingError` if one is not there.
    """
    if given is not None:
        base = named_channels(names, given, dtype, what)
        if not base:
            raise InputError(f"channels={given!r} names no channel, expected some of {', '.join(names)}")
        return base
    ordered = [Channel((i,)) for i in range(len(names))]
    for role, rule in enumerate(workflow.channel_rules()):
        if rule is not None:
            several = len(rule) > 1
            chosen = Channel(channel_indices(names, rule, what)) if several else _named(names, rule[0], dtype, what)
            ordered[role : role + 1] = [chosen]
    return tuple(ordered)


def method_channels(
    names: Sequence[str], method: Method, mask: str, base: Sequence[Channel], dtype: np.dtype[Any], what: str
) -> tuple[Channel, ...]:
    """Return the channels that a method reads: those that it names itself, else those of its roles."""
    if method.channels is not None:
        return named_channels(names, method.channels, dtype, what)
    wanted = method.roles(mask)
    if wanted is None:
        return tuple(base)
    if len(base) <= max(wanted, default=-1):
        need = max(wanted) + 1
        raise InputError(
            f"{method.name} ({mask}) needs {need} channels (0: nuclear, 1: membrane stain), but {len(base)} "
            f"{'is' if len(base) == 1 else 'are'} given; the image has: {', '.join(names)}. To have it read fewer, "
            "name them as the channels of the method itself"
        )
    return tuple(base[i] for i in wanted)


def roles(method: Method, mask: str, n: int) -> tuple[int, ...]:
    """Return, for each of the ``n`` channels that a method reads, its place among the workflow's channels."""
    default = method.roles(mask) or ()
    return tuple(default[i] if i < len(default) else i for i in range(n))


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
