"""Any function from pixels to labels as a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from spatialdata_segment.errors import MethodError
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method, View

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Function(Method):
    """A function ``(c, [z], y, x) -> ([z], y, x)`` that labels a block of pixels.

    It is called with one window at a time and must depend on nothing but the pixels; an object that stays
    ``context_px`` clear of the window's edges must not depend on where those edges lie. Objects that come
    nearer run again in a larger window. Statistics of the block (its maximum, its Otsu threshold) differ
    from shard to shard, and make seams: use fixed numbers.

    Parameters
    ----------
    function
        The function. It gets a read-only array and returns integers >= 0, 0 for the background.
    context_px
        Pixels up to which a label depends on its surroundings (the reach of its filters).
    version
        Any text that changes when the function does. Without one a run does not resume.
    channels
        Channels that the function gets; None: all of them.
    """

    name: ClassVar[str] = "function"
    ndims: ClassVar[frozenset[int]] = frozenset({2, 3})
    default_channels: ClassVar[tuple[int, ...] | None] = None
    map_dtype: ClassVar[str | None] = None
    maps_are_local: ClassVar[bool] = False

    function: Callable[..., Any] = Field(exclude=True)
    context_px: int = Field(default=16, ge=0)
    version: str | None = None

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return ``context_px`` along every axis."""
        return (self.context_px,) * image.ndim

    def predict(self, image: NDArray[Any], view: View) -> NDArray[Any]:
        """Call the function, and hold its answer to the contract."""
        labels = np.asarray(self.function(image))
        name = getattr(self.function, "__name__", repr(self.function))
        if labels.shape != image.shape[1:]:
            raise MethodError(
                f"{name} returned shape {labels.shape}, expected {image.shape[1:]}: a label for every pixel of "
                f"its {image.shape} input"
            )
        if labels.dtype.kind not in "ui":
            raise MethodError(
                f"{name} returned dtype {labels.dtype}, expected integers: number the objects "
                "(scipy.ndimage.label does so for a mask)"
            )
        if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
            raise MethodError(f"{name} returned the label {labels.min()}, expected 0 for background and > 0 else")
        return labels[None]

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Return the labels."""
        return Decoded(maps[0])

    @property
    def resumable(self) -> bool:
        """Only a ``version`` tells that the function is still the same."""
        return self.version is not None

    def fingerprint(self) -> dict[str, Any]:
        """Name the function by its module and its name."""
        return {**super().fingerprint(), "function": path_of(self.function)}


def path_of(function: Callable[..., Any]) -> str:
    """Return where a function is defined."""
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
