"""Cells as nuclei grown by a distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from spatialdata_segment.core.expand import expand
from spatialdata_segment.core.shards import as_volume
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method, View, pixels, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ExpandNuclei(Method):
    """Every nucleus grown by a distance, never across another cell.

    Each pixel within the distance goes to the nearest nucleus, centre to centre; where two are as near, to
    the one whose anchor comes first in raster order.

    Parameters
    ----------
    distance
        How far to grow.
    unit
        "px", or "um" (µm; needs the pixel size).

    Notes
    -----
    The rule of ``skimage.segmentation.expand_labels``, with its ties decided.
    """

    name: ClassVar[str] = "expand-nuclei"
    ndims: ClassVar[frozenset[int]] = frozenset({2, 3})
    default_channels: ClassVar[tuple[int, ...] | None] = ()
    seeded: ClassVar[bool] = True
    map_dtype: ClassVar[str | None] = "uint8"
    decode_parameters: ClassVar[frozenset[str]] = frozenset({"distance", "unit"})
    bytes_per_pixel: ClassVar[float] = 40.0

    distance: float = Field(default=10.0, ge=0)
    unit: Literal["px", "um"] = "px"

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the distance along every axis, in whole pixels."""
        return whole(pixels(self.distance, self.unit, image), image.ndim)

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.uint8]:
        """Return no map: all is in the nuclei."""
        return np.zeros((0, *image.shape[1:]), np.uint8)

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Grow the nuclei of the window."""
        assert view.seeds is not None
        assert view.seeds.labels is not None
        labels = view.seeds.labels
        grown = expand(as_volume(labels), pixels(self.distance, self.unit, view.image))
        return Decoded(grown.reshape(labels.shape), view.seeds.anchors)
