"""What is said of proposals that stayed: of those that nowhere show, and of objects joined of planes."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.objects import Objects
from spatialdata_segment.engine.entries import Entry, write_entry
from spatialdata_segment.engine.join import read_table
from spatialdata_segment.engine.stitch import read_anchors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.engine.join import JoinedLabels


def with_unseen(
    covered: Objects, n: int, seen: NDArray[np.integer], proposals: Path, shape: tuple[int, ...]
) -> Objects:
    """Return the candidates without a pixel, and with them the proposals that no window saw a pixel of.

    Others are painted over all of their pixels.

    Parameters
    ----------
    covered
        Those that lost their pixels at the seams.
    n
        The number of candidates, with and without a pixel, so far.
    seen
        ``(m, ndim)`` the anchors of the objects that windows saw.
    proposals
        See `Mask.proposals`.
    shape
        Of the image.
    """
    stayed = read_anchors(proposals)
    at = np.asarray(stayed, np.int64)[~np.isin(_flat(stayed, shape), _flat(seen, shape))]
    ids, none = n + 1 + np.arange(len(at)), np.zeros(len(at), np.int64)
    unseen = Objects(ids, at, none, at.astype(float), np.column_stack([at, at]), np.zeros(len(at), np.uint8))
    return Objects(*(np.concatenate([getattr(o, f.name) for o in (covered, unseen)]) for f in fields(Objects)))


def of_joined(proposals: Path, labels: JoinedLabels) -> Path:
    """Write what is said of 3D objects joined of planes: of each what is said of its part of the highest score.

    Of equal scores it is the part in the first plane.

    Parameters
    ----------
    proposals
        Those of the planes' objects.
    labels
        Of the 3D objects.

    Returns
    -------
    The entry: by the anchor of a 3D object, which is that of its first part.
    """
    entry, shape = Entry(proposals), labels.plan.shape
    columns = entry.names("column_")
    if not columns:
        return proposals
    stayed, scores = entry.read("anchors"), entry.read("scores")
    parts = np.searchsorted(_flat(stayed, shape), _flat(labels.planes.index.anchors, shape))
    whole = read_table(labels.folder)[1:]
    order = np.lexsort((parts, -scores[parts], whole))
    best = np.arange(len(stayed))  # what has no part is said of itself
    best[parts[_first(whole)]] = parts[order[_first(whole[order])]]
    arrays: dict[str, NDArray[Any]] = {name: entry.read(name)[best] for name in columns}
    path = labels.folder / proposals.name
    write_entry(path, {"anchors": stayed, "scores": scores[best], **arrays})
    return path


def _flat(anchors: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.asarray(np.ravel_multi_index(tuple(np.asarray(anchors, np.int64).T), shape), np.int64)


def _first(values: NDArray[np.integer]) -> NDArray[np.intp]:
    """Return where each value comes first, by value."""
    first: NDArray[np.intp] = np.unique(values, return_index=True)[1]
    return first
