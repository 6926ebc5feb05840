"""Points with values (see `Method.sparse`) of a volume that is segmented plane by plane: of which plane each is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def in_volume(records: NDArray[Any], z: int) -> NDArray[Any]:
    """Return points ``(y, x)`` of an image as those of a plane of a volume, ``(z, y, x)``."""
    return _with_points(records, np.insert(records["point"], 0, z, axis=1))


def in_plane(records: NDArray[Any]) -> NDArray[Any]:
    """Return points ``(z, y, x)`` as those of an image, ``(y, x)``."""
    return _with_points(records, records["point"][:, 1:])


def by_plane(records: NDArray[Any], first: int, stop: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield the planes from ``first`` up to ``stop``, and the positions of the points of each, in their order."""
    planes = records["point"][:, 0]
    order = np.argsort(planes, kind="stable")
    ends = np.searchsorted(planes[order], np.arange(first, stop + 1))
    for z, a, b in zip(range(first, stop), ends[:-1], ends[1:], strict=True):
        yield z, order[a:b]


def _with_points(records: NDArray[Any], points: NDArray[np.integer]) -> NDArray[Any]:
    fields: list[Any] = [
        ("point", records.dtype["point"].base, (points.shape[1],)) if name == "point" else (name, records.dtype[name])
        for name in records.dtype.names or ()
    ]
    out = np.empty(len(records), np.dtype(fields))
    for name in records.dtype.names or ():
        out[name] = points if name == "point" else records[name]
    return out
