"""Star-convex shapes: what is fast says what is slow says."""

import numpy as np
import pytest
from skimage.draw import polygon

from spatialdata_segment.core import polyhedra
from spatialdata_segment.core.near import make_grid, near, put
from spatialdata_segment.core.polyhedra import Polyhedra, holds, look_up
from spatialdata_segment.core.star_overlap import ASK, exceeds, overlaps
from spatialdata_segment.core.star_paint import paint_stars
from spatialdata_segment.core.stars import Stars, extents, outline_corners
from spatialdata_segment.methods.stardist.clipper import clipped_area
from spatialdata_segment.methods.stardist.rays import rays_of


def stars(rng, n, n_rays, size):
    angles = np.linspace(0, 2 * np.pi, n_rays, endpoint=False)
    wave = 1 + 0.3 * rng.random((n, 1)) * np.cos(2 * angles + rng.uniform(0, 7, (n, 1)))
    dist = rng.uniform(2, 14, (n, 1)) * wave * rng.normal(1, 0.05, (n, n_rays))
    return rng.integers(0, size, (n, 2)), np.maximum(dist, 1e-3).astype(np.float32)


def test_painted_as_scikit_image_does():
    rng = np.random.default_rng(0)
    for n_rays in (4, 8, 32):
        points, dist = stars(rng, 60, n_rays, 60)
        dist[::3] = np.round(dist[::3])
        corners = outline_corners(points, dist)
        for k in range(len(points)):
            expected = np.zeros((60, 60), np.int32)
            expected[polygon(corners[k, :, 0], corners[k, :, 1], (60, 60))] = 1
            one = corners[k : k + 1]
            assert np.array_equal(paint_stars(one, np.array([0]), (0, 0), (60, 60)), expected)
            assert np.array_equal(paint_stars(one, np.array([0]), (13, 22), (20, 30)), expected[13:33, 22:52])


def test_overlaps_as_clipper_says():
    """Where we decide by ourselves, Clipper decides alike; and we mostly do."""
    pytest.importorskip("pyclipper")
    rng = np.random.default_rng(1)
    points, dist = stars(rng, 150, 32, 60)
    found, asked, total = Stars.of(points, dist), 0, 0
    for i in range(0, 150, 3):
        for j in range(i + 1, 150, 2):
            least = min(found.area[i], found.area[j]) + 1e-10
            area = clipped_area(found.corners[i], found.corners[j])
            for threshold in (0.1, 0.5):
                told, total = overlaps(found.fields, i, j, np.float32(threshold)), total + 1
                asked += told == ASK
                assert told == ASK or bool(told) == bool(exceeds(area, least, np.float32(threshold)))
    assert asked < 0.1 * total


def test_extents_hold_what_is_painted():
    rng = np.random.default_rng(2)
    points, dist = stars(rng, 100, 16, 60)
    boxes = extents(points, dist, (60, 60))
    for k, corners in enumerate(outline_corners(points, dist)):
        y, x = np.nonzero(paint_stars(corners[None], np.array([0]), (0, 0), (60, 60)))
        if len(y):
            assert (boxes[k, :2] <= (y.min(), x.min())).all()
            assert (boxes[k, 2:] > (y.max(), x.max())).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_near_boxes(ndim):
    rng = np.random.default_rng(3)
    low = rng.integers(0, 90, (120, ndim))
    boxes = np.concatenate([low, low + rng.integers(1, 30, (120, ndim))], axis=1)
    grid, found = make_grid(boxes), np.empty(120, np.int64)
    for i in range(120):
        expected = {
            j
            for j in range(i)
            if all(boxes[i, k] < boxes[j, ndim + k] and boxes[j, k] < boxes[i, ndim + k] for k in range(ndim))
        }
        n = near(grid, boxes, i, found)
        assert set(found[:n].tolist()) == expected
        assert n == len(expected)
        put(grid, boxes, i)


def test_voxels_in_the_direction_of_few_triangles():
    """Trying the triangles of a direction says what trying all of them does."""
    for said in (
        {"name": "Rays_GoldenSpiral", "kwargs": {"n": 20, "anisotropy": (2, 1, 1)}},
        {"name": "Rays_Tetra", "kwargs": {"n_level": 3}},
        {"name": "Rays_Cartesian", "kwargs": {"n_rays_x": 7, "n_rays_z": 5}},
    ):
        vertices, faces = rays_of(said)
        rng = np.random.default_rng(4)
        dist = rng.uniform(2, 6, (4, len(vertices))).astype(np.float32)
        points = rng.integers(6, 9, (4, 3))
        few = Polyhedra.of(points, dist, vertices, faces, look_up(vertices, faces))
        first = np.arange(6 * polyhedra._CELLS**2 + 1) * len(faces)
        every = np.tile(np.arange(len(faces)), 6 * polyhedra._CELLS**2)
        for k in range(4):
            for at in np.ndindex(15, 15, 15):
                p = np.array(at, np.float32)
                shape = p, few.points[k], few.corners[k], few.faces
                assert holds(*shape, few.first, few.listed) == holds(*shape, first, every)
