"""The diameter of the cells of an image: from the style of the network, then from the masks that it leads to.

Source: Stringer et al., "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.core.statistics import Statistic
    from spatialdata_segment.methods.base import ImageInfo
    from spatialdata_segment.methods.cellpose.method import Cellpose
    from spatialdata_segment.methods.cellpose.run import Network
    from spatialdata_segment.methods.cellpose.size import SizeModel

_WINDOW, _WINDOWS = 768, 3
"""Side in px, and how many along an axis, of the windows that are looked at."""
_ONE = 1536
"""px; an image of this side or less is one window."""
_PLANES = 3
"""Of a volume, that are looked at."""


def estimate_diameter(
    method: Cellpose,
    size: SizeModel,
    network: Network,
    read: Callable[[Box], NDArray[Any]],
    image: ImageInfo,
    statistics: Mapping[Statistic, float],
) -> float:
    """Estimate the diameter in px, once for an image; of a volume from planes XY, evenly spread.

    Parameters
    ----------
    method
        Whose settings are used.
    size
        Estimates a diameter from a style.
    network
        Of the method.
    read, image, statistics
        See `Method.estimate`.
    """
    boxes = _windows(image.shape)
    method = method.model_copy(update={"do_3D": False})
    first = method.model_copy(update={"rescale": 1.0})  # size models tell the size of what the network saw
    style: Any = 0.0
    for box in boxes:
        style = style + first.whole_maps(network, _plane(read(box)), statistics)[1]
    length = float(np.sqrt(np.square(style).sum()))
    guess = size.diameter(style / length) if length > 0 else size.diam_mean
    second = method.model_copy(update={"rescale": size.diam_mean / guess, "resample": False})
    areas = np.concatenate([second.areas(network, _plane(read(box)), statistics) for box in boxes])
    return float(np.median(np.sqrt(areas)) * 2 / np.sqrt(np.pi)) if len(areas) else size.diam_mean


def _windows(shape: tuple[int, ...]) -> list[Box]:
    """Return boxes spread evenly over an image, or all of it; of a volume, of some planes."""
    if len(shape) == 3:
        planes = sorted({(2 * k + 1) * shape[0] // (2 * _PLANES) for k in range(_PLANES)})
        flat = _windows(shape[1:])
        return [Box((z, *box.start), (z + 1, *box.stop)) for z in planes for box in flat]
    if max(shape) <= _ONE:
        return [Box.whole(shape)]
    starts = [np.unique(np.linspace(0, max(n - _WINDOW, 0), _WINDOWS).astype(int)).tolist() for n in shape]
    return [Box((y, x), (min(y + _WINDOW, shape[0]), min(x + _WINDOW, shape[1]))) for y in starts[0] for x in starts[1]]


def _plane(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return ``(c, y, x)`` of ``(c, y, x)`` or ``(c, 1, y, x)``."""
    return pixels.reshape(pixels.shape[0], *pixels.shape[-2:])
