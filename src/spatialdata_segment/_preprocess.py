"""Steps that change the pixels before a method sees them: parameters, and what one does to a block.

Where the blocks lie is the engine's affair (``engine/preprocess.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from spatialdata_segment.core.equalize import equalize
from spatialdata_segment.errors import MethodError
from spatialdata_segment.methods.function import path_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def resumable(self) -> bool:
        """Whether an equal fingerprint means equal pixels."""
        return True

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the result, JSON-like."""
        return self.model_dump(mode="json")


class SubtractBackground(_Step):
    """Subtract what is wider than a square: the white top-hat, plane by plane.

    The background is the opening of the image: the greatest of the least values of the squares around a pixel.
    Exact: the pixels are those of the image in one piece.

    Parameters
    ----------
    radius
        px; what fits into a square of side ``2 * radius + 1`` stays. Take more than the radius of a nucleus.
    """

    name: Literal["subtract-background"] = "subtract-background"
    radius: int = Field(ge=1)

    def context(self, ndim: int) -> tuple[int, ...]:
        """Pixels per axis up to which a pixel depends on its surroundings."""
        return (*(0,) * (ndim - 2), 2 * self.radius, 2 * self.radius)

    def grain(self, ndim: int) -> tuple[int, ...]:
        """Any box will do."""
        return (1,) * ndim

    def dtype(self, before: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of the result."""
        return np.dtype(np.uint8) if before.kind == "b" else before

    def apply(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return ``(c, [z], y, x)`` without its background."""
        pixels = block.astype(self.dtype(block.dtype), copy=False)
        size = (*(1,) * (block.ndim - 2), 2 * self.radius + 1, 2 * self.radius + 1)
        least = ndimage.minimum_filter(pixels, size, mode="nearest")
        background = ndimage.maximum_filter(least, size, mode="nearest")
        return np.asarray(pixels - background)


class EqualizeHistogram(_Step):
    """Even out contrast locally (CLAHE), plane by plane.

    It works on values from 0 to 1: give the workflow an ``upper_quantile_normalization``. The tiles are fixed to
    the image's first pixel, and no tile is stretched to the values it happens to hold. Exact: the pixels are
    those of the image in one piece.

    Parameters
    ----------
    tile_px
        Side of a tile, in px.
    clip_limit
        Largest share of a tile's pixels that one of 256 grey values may count for, 0 to 1: the higher, the more
        contrast.
    """

    name: Literal["equalize-histogram"] = "equalize-histogram"
    tile_px: Literal[16, 32, 64, 128, 256, 512] = 128
    clip_limit: float = Field(default=0.01, gt=0, le=1)

    def context(self, ndim: int) -> tuple[int, ...]:
        """Pixels per axis up to which a pixel depends on what lies beyond its own tile: the next one."""
        return (*(0,) * (ndim - 2), self.tile_px, self.tile_px)

    def grain(self, ndim: int) -> tuple[int, ...]:
        """Tiles."""
        return (*(1,) * (ndim - 2), self.tile_px, self.tile_px)

    def dtype(self, before: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of the result."""
        return np.dtype(np.float32)

    def apply(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return ``(c, [z], y, x)`` equalized; the block begins where a tile does."""
        planes = block.reshape(-1, *block.shape[-2:])
        return np.stack([equalize(p, self.tile_px, self.clip_limit) for p in planes]).reshape(block.shape)


class Step(_Step):
    """Any function from pixels to pixels.

    It is called with blocks of a grid that is fixed to the image, so that the cells are the same for every shard
    plan. The pixels are also those of the image in one piece if the function looks no farther than
    ``context_px``; what it computes of a whole block (a maximum, a mean) shows the borders of the grid.

    Parameters
    ----------
    function
        From a read-only ``(c, [z], y, x)`` to the same shape; the result is taken as float32.
    context_px
        Pixels up to which a pixel of the result depends on its surroundings.
    version
        Any text that changes when the function does. Without one a run does not resume.
    """

    name: Literal["step"] = "step"
    function: Callable[..., Any] = Field(exclude=True)
    context_px: int = Field(default=16, ge=0)
    version: str | None = None

    def context(self, ndim: int) -> tuple[int, ...]:
        """Return ``context_px`` along every axis."""
        return (self.context_px,) * ndim

    def grain(self, ndim: int) -> None:
        """Nobody knows what the function does: the blocks of the grid, one at a time."""

    def dtype(self, before: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of the result."""
        return np.dtype(np.float32)

    def apply(self, block: NDArray[Any]) -> NDArray[Any]:
        """Call the function, and hold its answer to the contract."""
        name = getattr(self.function, "__name__", repr(self.function))
        block = block.view()
        block.flags.writeable = False
        try:
            pixels = np.asarray(self.function(block))
        except Exception as error:
            raise MethodError(f"the step {name} failed with {type(error).__name__}: {error}") from error
        if pixels.shape != block.shape or pixels.dtype.kind not in "buif":
            raise MethodError(
                f"the step {name} returned shape {pixels.shape} and dtype {pixels.dtype}, expected numbers of the "
                f"shape of its input, {block.shape}"
            )
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise MethodError(f"the step {name} returned NaN or infinite pixels, expected finite ones")
        return pixels

    @property
    def resumable(self) -> bool:
        """Only a ``version`` tells that the function is still the same."""
        return self.version is not None

    def fingerprint(self) -> dict[str, Any]:
        """Name the function by its module and its name."""
        return {**super().fingerprint(), "function": path_of(self.function)}


AnyStep = Annotated[SubtractBackground | EqualizeHistogram | Step, Field(discriminator="name")]
