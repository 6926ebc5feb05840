"""What candidates are in space: polygons in images, polyhedra in volumes, behind one set of functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from spatialdata_segment.core import polyhedra, stars
from spatialdata_segment.core.polyhedra_hulls import hulls_overlap
from spatialdata_segment.core.polyhedra_paint import paint_polyhedra
from spatialdata_segment.core.settle import Undecided, by_score, settle
from spatialdata_segment.core.star_overlap import exceeds
from spatialdata_segment.core.star_paint import paint_stars
from spatialdata_segment.methods.stardist.clipper import clipped_area
from spatialdata_segment.methods.stardist.rays import rays_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box
    from spatialdata_segment.methods.stardist.description import Description


class Shapes(Protocol):
    """Candidates as objects in space; ``points`` are records of `run.record_dtype`."""

    def extents(self, points: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Return ``(n, 2 * ndim)`` the pixels that each may fill, starts, then stops."""

    def suppressed(
        self,
        points: NDArray[Any],
        boxes: NDArray[np.int64],
        informed: NDArray[np.bool_],
        core: NDArray[np.bool_],
        threshold: float,
    ) -> Undecided:
        """Decide which of them stay, as far as a window can: see `settle`."""

    def painted(self, points: NDArray[Any], box: Box) -> NDArray[np.int32]:
        """Return labels of a window: the position of each object plus 1."""

    def corners(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, n_rays, ndim)`` corners, in indices of the whole image."""


class Polygons:
    """Candidates of an image."""

    def extents(self, points: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
        """See `Shapes`."""
        return stars.extents(points["point"], points["dist"], shape)

    def suppressed(
        self,
        points: NDArray[Any],
        boxes: NDArray[np.int64],
        informed: NDArray[np.bool_],
        core: NDArray[np.bool_],
        threshold: float,
    ) -> Undecided:
        """See `Shapes`."""
        order = by_score(points["point"], points["prob"])  # what is settled together lies together in memory
        points = points[order]
        found = stars.Stars.of(points["point"], points["dist"])

        def ask(i: int, j: int) -> bool:
            least = min(found.area[i], found.area[j]) + 1e-10
            return bool(exceeds(clipped_area(found.corners[i], found.corners[j]), least, np.float32(threshold)))

        ranked = np.arange(len(points))
        settled = settle(found.fields, ranked, boxes[order], informed[order], core[order], threshold, ask)
        state = np.empty_like(settled.state)
        state[order] = settled.state
        return Undecided(state, order[settled.edges])

    def painted(self, points: NDArray[Any], box: Box) -> NDArray[np.int32]:
        """See `Shapes`: the most probable is on top."""
        order = by_score(points["point"], points["prob"])[::-1]
        return paint_stars(self.corners(points), order, box.start, box.shape)

    def corners(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """See `Shapes`."""
        return stars.outline_corners(points["point"], points["dist"])


@dataclass(frozen=True)
class Polyhedra:
    """Candidates of a volume.

    Attributes
    ----------
    vertices, faces
        Of the rays.
    directions
        What `polyhedra.look_up` says of them.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    directions: tuple[NDArray[np.int64], NDArray[np.int64]]

    def _of(self, points: NDArray[Any]) -> polyhedra.Polyhedra:
        return polyhedra.Polyhedra.of(points["point"], points["dist"], self.vertices, self.faces, self.directions)

    def extents(self, points: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
        """See `Shapes`."""
        return polyhedra.extents(points["point"], points["dist"], self.vertices, shape)

    def suppressed(
        self,
        points: NDArray[Any],
        boxes: NDArray[np.int64],
        informed: NDArray[np.bool_],
        core: NDArray[np.bool_],
        threshold: float,
    ) -> Undecided:
        """See `Shapes`."""
        order, found = by_score(points["point"], points["prob"]), self._of(points)

        def ask(i: int, j: int) -> bool:
            return hulls_overlap(found, i, j, threshold)

        return settle(found.fields, order, boxes, informed, core, threshold, ask)

    def painted(self, points: NDArray[Any], box: Box) -> NDArray[np.int32]:
        """See `Shapes`: a voxel is of the most probable that holds it."""
        return paint_polyhedra(self._of(points), by_score(points["point"], points["prob"]), box.start, box.shape)

    def corners(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """See `Shapes`."""
        return self._of(points).corners


def of(said: Description) -> Shapes:
    """Return the shapes of a model."""
    return Polygons() if said.rays is None else _polyhedra(json.dumps(said.rays, sort_keys=True), said.n_rays)


@lru_cache(maxsize=8)
def _polyhedra(rays: str, n_rays: int) -> Polyhedra:
    vertices, faces = rays_of(json.loads(rays), n_rays)
    return Polyhedra(vertices, faces, polyhedra.look_up(vertices, faces))
