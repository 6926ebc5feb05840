"""``_seg.npy``, the file of Cellpose's GUI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._polygons import as_planes, check_positive, ndim_of
from spatialdata_segment.errors import InputError
from spatialdata_segment.formats._files import replacing

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import dask.array as da
    import xarray as xr
    from numpy.typing import NDArray


def write_seg_npy(
    path: str | os.PathLike[str],
    labels: NDArray[np.integer] | da.Array | xr.DataArray | xr.DataTree,
    *,
    image_path: str | os.PathLike[str] | None = None,
    channels: Sequence[int] = (0, 0),
    diameter: float | None = None,
) -> None:
    """Write a label image as a ``_seg.npy`` that the GUI of Cellpose opens; all of it is in memory.

    Fields: ``masks`` and ``outlines`` (the pixels of objects beside other pixels), uint16, or uint32 above 65,534
    objects, with the ids 1..n in the order of the ids, which is what the GUI makes of others; ``cell_id``, the ids
    before, which the GUI ignores; ``filename``, ``chan_choose``, ``ismanual``, ``diameter`` and ``est_diam``. Without
    flows the GUI cannot compute the masks again with other thresholds.

    Parameters
    ----------
    path
        The file, which the GUI wants named ``IMAGE_seg.npy`` beside the image; one that is there is replaced.
    labels
        ``(y, x)`` or ``(z, y, x)``, integer, 0 = background; of several scales the finest.
    image_path
        The image, which the GUI opens along. None: the name of the file without ``_seg.npy``, with no suffix.
    channels
        The two channels by Cellpose's codes (0 grey, 1 red, 2 green, 3 blue).
    diameter
        px. None: that of the circle with the median area of the objects.

    Raises
    ------
    InputError
        Other axes or types, negative ids, channels that are no two codes.
    """
    if len(channels) != 2 or not all(c in (0, 1, 2, 3) for c in channels):
        raise InputError(f"channels={channels!r}: expected two of the codes 0, 1, 2, 3, such as (2, 3)")
    planes = as_planes(labels).compute()
    check_positive(planes)
    ids, masks = np.unique(planes, return_inverse=True)
    masks = masks.reshape(planes.shape)
    if not len(ids) or ids[0] != 0:
        masks, ids = masks + 1, np.r_[0, ids]
    n = len(ids) - 1
    masks = masks.astype(np.uint16 if n < 2**16 - 1 else np.uint32)
    size = _diameter(masks, n) if diameter is None else float(diameter)
    file = Path(path)
    fields: dict[str, Any] = {
        "masks": masks,
        "outlines": masks * _is_outline(masks),
        "cell_id": ids[1:],
        "filename": str(image_path if image_path is not None else file.with_name(file.name.removesuffix("_seg.npy"))),
        "chan_choose": list(channels),
        "ismanual": np.zeros(n, bool),
        "diameter": size,
        "est_diam": size,
    }
    if ndim_of(labels) == 2:
        fields |= {name: fields[name][0] for name in ("masks", "outlines")}
    with replacing(path) as new, new.open("wb") as target:
        np.save(target, np.array(fields, dtype=object), allow_pickle=True)


def _is_outline(masks: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell which pixels of objects have one of another label, or the image's edge, on one of four sides."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    inner = padded[:, 1:-1, 1:-1]
    sides = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    found: NDArray[np.bool_] = np.logical_or.reduce([inner != side for side in sides]) & (inner > 0)
    return found


def _diameter(masks: NDArray[np.integer], n: int) -> float:
    if not n:
        return 30.0
    areas = [np.bincount(plane.ravel(), minlength=n + 1)[1:] for plane in masks]
    seen = np.concatenate([a[a > 0] for a in areas])
    return float(2 * np.sqrt(np.median(seen) / np.pi))
