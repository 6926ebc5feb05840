"""Proposals that stayed, and nowhere show: others are painted over all of their pixels."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.core.objects import Objects
from spatialdata_segment.engine.stitch import read_anchors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def with_unseen(covered: Objects, objects: Objects, proposals: Path, shape: tuple[int, ...]) -> Objects:
    """Return the candidates without a pixel, and with them the proposals that no window saw a pixel of.

    Parameters
    ----------
    covered
        Those that lost their pixels at the seams.
    objects
        Those that have pixels.
    proposals
        See `Mask.proposals`.
    shape
        Of the image.
    """

    def flat(anchors: NDArray[np.integer]) -> NDArray[np.int64]:
        return np.asarray(np.ravel_multi_index(tuple(np.asarray(anchors, np.int64).T), shape), np.int64)

    stayed = read_anchors(proposals)
    seen = np.concatenate([flat(objects.anchor), flat(covered.anchor)])
    at = np.asarray(stayed, np.int64)[~np.isin(flat(stayed), seen)]
    ids, none = len(seen) + 1 + np.arange(len(at)), np.zeros(len(at), np.int64)
    unseen = Objects(ids, at, none, at.astype(float), np.column_stack([at, at]), np.zeros(len(at), np.uint8))
    return Objects(*(np.concatenate([getattr(o, f.name) for o in (covered, unseen)]) for f in fields(Objects)))
