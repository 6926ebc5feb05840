"""Suppression of polygons: every shortcut decides as the long way does."""

import numpy as np
import pytest
import shapely

from spatialdata_segment.core.settle import DROPPED, KEPT, by_score
from spatialdata_segment.core.star_bands import bands_of, bounds
from spatialdata_segment.core.star_overlap import exceeds, intersection, shared_area
from spatialdata_segment.core.star_sectors import sector_of
from spatialdata_segment.core.stars import Stars
from spatialdata_segment.methods.stardist import shapes
from spatialdata_segment.methods.stardist.clipper import clipped_area

pytest.importorskip("pyclipper")


def ellipses(rng, n, size, radius, aspect, n_rays=24, noise=0.04):
    """Return candidates, as the records of `predict`: noisy ellipses, many of them of one object."""
    centre, at = rng.uniform(0, size, (-(-n // 6), 2)), rng.integers(0, -(-n // 6), n)
    turn, long = rng.uniform(0, np.pi, len(centre)), radius * rng.uniform(0.7, 1.3, len(centre)) * aspect**0.5
    angles = np.linspace(0, 2 * np.pi, n_rays, endpoint=False)
    point = np.round(centre[at] + rng.normal(0, 0.25 * radius / aspect**0.5, (n, 2))).astype(np.int32)
    along = angles[None] - turn[at][:, None]
    dist = long[at][:, None] / np.sqrt(np.sin(along) ** 2 + (aspect * np.cos(along)) ** 2)
    dist *= rng.normal(1, noise, (n, n_rays))
    out = np.zeros(n, [("point", "<i4", (2,)), ("prob", "<f4"), ("dist", "<f4", (n_rays,))])
    out["point"], out["prob"], out["dist"] = point, rng.integers(50, 99, n) / 100, np.maximum(dist, 1e-3)
    return out[np.unique(out["point"], axis=0, return_index=True)[1]]


def slow(points, threshold):
    """Return which candidates stay, every pair by Clipper."""
    stars, kept = Stars.of(points["point"], points["dist"]), []
    for i in by_score(points["point"], points["prob"]):
        for j in kept:
            least = min(stars.area[i], stars.area[j]) + 1e-10
            if exceeds(clipped_area(stars.corners[j], stars.corners[i]), least, np.float32(threshold)):
                break
        else:
            kept.append(i)
    return np.isin(np.arange(len(points)), kept)


@pytest.mark.parametrize("radius", [2.0, 4.5, 11.0, 40.0])
@pytest.mark.parametrize("aspect", [1.0, 2.5, 5.0])
def test_the_same_candidates_stay(radius, aspect):
    rng = np.random.default_rng(int(10 * radius + aspect))
    points, found = ellipses(rng, 160, 7 * radius + 12, radius, aspect), shapes.Polygons()
    every, boxes = np.ones(len(points), bool), found.extents(points, (1000, 1000))
    for threshold in (0.1, 0.4, 0.7):
        settled = found.suppressed(points, boxes, every, every, threshold)
        assert np.array_equal(settled.state == KEPT, slow(points, threshold))
        assert np.isin(settled.state, (KEPT, DROPPED)).all()


@pytest.mark.parametrize(("radius", "noise"), [(3.0, 0.05), (12.0, 0.02), (12.0, 0.4)])
def test_edges_by_sector_are_all_that_cross(radius, noise):
    points = ellipses(np.random.default_rng(1), 80, 4 * radius, radius, 1.5, noise=noise)
    stars = Stars.of(points["point"], points["dist"])
    once = np.flatnonzero(stars.turns)
    assert (stars.turns > 0).sum() > 0.1 * len(points)
    for i in once:
        for j in once[::3]:
            assert shared_area(stars.fields, i, j) == intersection(stars.corners[i], stars.corners[j])


def test_sectors():
    star = np.array([[10, 24], [13, 23], [15, 20], [10, 15], [6, 21]], np.int32)
    assert [sector_of(star, 10, 20, *at) for at in ((10, 30), (11, 22), (20, 20), (11, 19), (9, 19), (9, 29))] == [
        0, 0, 2, 2, 3, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("noise", [0.05, 0.5])
@pytest.mark.parametrize("radius", [3.0, 12.0])
def test_bounds_hold_the_area(radius, noise):
    """Also of outlines that cross themselves: what is wound around is full."""
    points = ellipses(np.random.default_rng(2), 70, 4 * radius, radius, 2.0, noise=noise)
    stars, tight = Stars.of(points["point"], points["dist"]), []
    for i in range(len(points)):
        for j in range(i):
            area = clipped_area(stars.corners[i], stars.corners[j])
            if noise < 0.1 and stars.turns[i] and stars.turns[j]:
                area = shapely.intersection(*(shapely.Polygon(stars.corners[k]) for k in (i, j))).area
            least, most = bounds(stars.bands, i, j)
            tight.append((most - least) / max(most, 1))
            slack = 0.01 if noise < 0.1 and stars.turns[i] and stars.turns[j] else 2 + 0.1 * stars.length[[i, j]].min()
            assert least <= area + slack
            assert area <= most + slack
    assert noise > 0.1 or np.median(tight) < 0.7


def test_bands_of_a_square():
    corners = np.array([[[0, 0], [0, 8], [8, 8], [8, 0]]], np.int32)
    height, first, begin, spans = bands_of(corners, np.array([4], np.int32))
    assert (height, first.tolist(), begin.tolist()) == (0.8, [0], [0, 11])
    assert (spans[1:10] == [0, 8, 0, 8]).all()
