"""Decoders that answer differently in every window: no object is lost, doubled or cut."""

from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.seams import compose, decide
from spatialdata_segment.core.shards import Labels, ShardObjects, ShardResult
from spatialdata_segment.methods.base import Decoded, Method
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

DISC = 9
"""Radius (px) of the true objects; versions of one share more than half of their pixels, and no two meet."""


class Jitter(Method):
    """Discs around marked pixels, moved and resized by numbers that depend on the window alone.

    The anchor and the centre of an object are moved by up to ``anchor`` and ``centre`` pixels, its radius
    changes by up to ``outline``: what a network's rounding does, and much more.
    """

    name: ClassVar[str] = "jitter"
    map_dtype: ClassVar[str] = "uint8"

    anchor: int = 3
    centre: int = 1
    outline: int = 1
    anchors: Literal["own", "engine"] = "own"

    def context(self, image):
        return (DISC + 4,) * image.ndim

    def predict(self, image, view):
        return image[:1]

    def decode(self, maps, view):
        labels = np.zeros(maps.shape[1:], np.int32)
        points = np.argwhere(maps[0] > 0)
        anchors = np.empty_like(points)
        y, x = np.ogrid[: labels.shape[0], : labels.shape[1]]
        for i, point in enumerate(points):
            where = (*(point + view.window.box.start), *view.window.box.start, *view.window.box.stop)
            rng = np.random.default_rng(where)
            b, a = point + rng.integers(-self.centre, self.centre + 1, 2)
            radius = DISC + rng.integers(-self.outline, self.outline + 1)
            part = np.s_[max(b - 12, 0) : b + 12, max(a - 12, 0) : a + 12]
            labels[part][(y[part[0]] - b) ** 2 + (x[:, part[1]] - a) ** 2 <= radius**2] = i + 1
            anchors[i] = point + rng.integers(-self.anchor, self.anchor + 1, 2)
        return Decoded(labels, anchors if self.anchors == "own" else None)


def _points(rng, shape):
    """Points of a jittered lattice, far enough from each other and from the border."""
    y, x = np.mgrid[14 : shape[0] - 14 : 27, 14 : shape[1] - 14 : 27]
    points = np.column_stack([y.ravel(), x.ravel()])
    return points + rng.integers(-2, 3, points.shape)


def _marked(shape, points):
    image = np.zeros((1, *shape), np.uint8)
    image[0, points[:, 0], points[:, 1]] = 1
    return image


@settings(
    max_examples=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    seed=st.integers(0, 2**16), core=st.tuples(st.integers(25, 60), st.integers(25, 60)),
    extra=st.integers(0, 12), anchors=st.sampled_from(["own", "engine"]),
)  # fmt: skip
def test_no_object_is_lost_doubled_or_cut(seed, core, extra, anchors, tmp_path_factory):
    shape = (110, 100)
    points = _points(np.random.default_rng(seed), shape)
    method = Jitter(anchors=anchors)
    plan = make_plan(shape, core, (DISC + 4 + extra,) * 2, first=(seed % 37, seed % 23))
    found = tile(_marked(shape, points), method, plan, tmp_path_factory.mktemp("scratch"))
    _one_each(found, points)


def _one_each(found, points):
    """Every point lies in an object of its own, which is one of the versions: a whole disc."""
    ids = found.labels[tuple(points.T)]
    assert (ids > 0).all(), f"lost: {points[ids == 0].tolist()}"
    assert len(np.unique(ids)) == len(points)
    assert found.labels.max() == len(points), "doubled"
    smallest = sum(y * y + x * x <= (DISC - 1) ** 2 for y in range(-DISC, DISC) for x in range(-DISC, DISC))
    assert np.bincount(found.labels.ravel())[1:].min() >= smallest, "cut"
    for label in range(1, len(points) + 1):
        assert ndimage.label(found.labels == label)[1] == 1


def test_conflicts_are_counted(tmp_path):
    """Over many objects on many borders some are owned twice, some by nobody."""
    shape = (260, 260)
    points = _points(np.random.default_rng(0), shape)
    found = tile(_marked(shape, points), Jitter(), make_plan(shape, (33, 31), (17, 17)), tmp_path)
    _one_each(found, points)
    evidence = found.mask.evidence
    assert evidence["twins"] > 5
    assert evidence["adopted"] > 5


def test_no_conflict_without_jitter(tmp_path):
    shape = (100, 100)
    points = _points(np.random.default_rng(0), shape)
    found = tile(
        _marked(shape, points), Jitter(anchor=0, centre=0, outline=0), make_plan(shape, (19, 23), (17, 17)), tmp_path
    )
    _one_each(found, points)
    assert {k: found.mask.evidence[k] for k in ("twins", "adopted", "contested_px", "covered")} == {
        "twins": 0, "adopted": 0, "contested_px": 0, "covered": 0,
    }  # fmt: skip


def test_twin_that_lies_wholly_inside_the_other_core():
    """The higher shard's version keeps clear of the border, the lower one's reaches it and is owned there."""
    image = Box((0, 0), (10, 40))
    found = {
        0: _result(0, image, core=(0, 20), columns=(17, 27), anchor=(5, 19)),
        1: _result(1, image, core=(20, 40), columns=(20, 28), anchor=(5, 22)),
    }
    kept = {i: decide(i, found) for i in found}
    assert [d.kept.tolist() for d in kept.values()] == [[True], [False]]
    assert [d.twins for d in kept.values()] == [0, 1]


def test_object_that_nobody_owns_goes_to_the_lowest_shard():
    image = Box((0, 0), (10, 40))
    found = {
        0: _result(0, image, core=(0, 20), columns=(15, 24), anchor=(5, 21)),
        1: _result(1, image, core=(20, 40), columns=(16, 25), anchor=(5, 18)),
    }
    kept = {i: decide(i, found) for i in found}
    assert [d.kept.tolist() for d in kept.values()] == [[True], [False]]
    assert [d.adopted for d in kept.values()] == [1, 0]


def test_contested_pixels_go_to_the_first_anchor_in_any_order():
    core = Box((0, 0), (4, 6))
    left, right = np.zeros((4, 6), np.int32), np.zeros((4, 6), np.int32)
    left[:, :4], right[:, 2:] = 1, 1
    versions = [(core, left, np.array([0, 1])), (core, right, np.array([0, 2]))]
    for order in (versions, versions[::-1]):
        painted, contested = compose(core, order)
        assert painted[0].tolist() == [1, 1, 1, 1, 2, 2]
        assert contested == 8


class Greedy(Method):
    """Squares around marked pixels: wide where the core holds the pixel, narrow elsewhere; the first comes first."""

    name: ClassVar[str] = "greedy"
    map_dtype: ClassVar[str] = "uint8"

    def context(self, image):
        return (10,) * image.ndim

    def predict(self, image, view):
        return image[:1]

    def decode(self, maps, view):
        labels = np.zeros(maps.shape[1:], np.int32)
        points = np.argwhere(maps[0] > 0)
        core = view.window.core.within(view.window.box)
        for i, (y, x) in enumerate(points):
            inside = core[0].start <= y < core[0].stop and core[1].start <= x < core[1].stop
            r = 6 if inside else 3
            square = labels[max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1]
            square[square == 0] = i + 1
        return Decoded(labels, points)


def test_objects_that_overlap_are_measured_by_what_is_left_of_them(tmp_path):
    points = np.array([[12, 16], [12, 24]])
    found = tile(_marked((24, 40), points), Greedy(), make_plan((24, 40), (24, 20), (0, 12)), tmp_path)
    assert found.mask.evidence["contested_px"] == 5 * 13 - 2 * 7  # the narrow one takes these from the wide one
    assert found.mask.objects.area.tolist() == [13 * 13, 8 * 13] == np.bincount(found.labels.ravel())[1:].tolist()
    assert found.mask.objects.bbox.tolist() == [[6, 10, 19, 23], [6, 23, 19, 31]]
    assert found.mask.objects.anchor.tolist() == points.tolist()


def _result(index, image, core, columns, anchor):
    box = Box((0, max(core[0] - 12, 0)), (10, min(core[1] + 12, 40)))
    window = Window(box, Box((0, core[0]), (10, core[1])), image)
    labels = np.zeros((10, 40), np.int32)
    labels[3:8, slice(*columns)] = 1
    labels = np.ascontiguousarray(labels[box.slices])
    return ShardResult(index, window, Labels(box, labels), ShardObjects.of(labels, np.array([anchor]), window))


# exact decoders on awkward objects


class Connected(Method):
    """Connected pixels; the anchor is the first pixel in raster order, on the object's edge."""

    name: ClassVar[str] = "connected"
    map_dtype: ClassVar[str] = "uint8"

    corner: Literal["first", "last", "engine"] = "engine"

    def context(self, image):
        return (0,) * image.ndim

    def predict(self, image, view):
        return image[:1]

    def decode(self, maps, view):
        labels, n = ndimage.label(maps[0])
        if self.corner == "engine":
            return Decoded(labels)
        at = np.flatnonzero(labels)
        order = at if self.corner == "last" else at[::-1]
        anchor = np.zeros(n + 1, np.int64)
        anchor[labels.ravel()[order]] = order
        return Decoded(labels, np.column_stack(np.unravel_index(anchor[1:], labels.shape)))


def _spiral(shape=(45, 45)):
    """One object of one pixel's width that winds through every core."""
    out = np.zeros(shape, np.uint8)
    y, x, dy, dx, length = 22, 22, 0, 1, 2
    while True:
        for _ in range(2):
            for _ in range(length):
                if not (0 <= y < shape[0] and 0 <= x < shape[1]):
                    return out[None]
                out[y, x] = 1
                y, x = y + dy, x + dx
            dy, dx = dx, -dy
        length += 2


def _four_corners(shape=(45, 45)):
    out = np.zeros(shape, np.uint8)
    out[10:20, 10:20] = out[28:32, 28:32] = out[0:3, 40:45] = out[44, :] = out[15:30, 0] = 1
    return out[None]


def _comb(shape=(45, 45)):
    out = np.zeros(shape, np.uint8)
    out[2:, ::2] = 1
    out[2, :22] = 1
    return out[None]


IMAGES = {
    "one object fills the image": np.ones((1, 45, 45), np.uint8),
    "all but the border": np.pad(np.ones((1, 43, 43), np.uint8), ((0, 0), (1, 1), (1, 1))),
    "all but one pixel": 1 - np.eye(45, dtype=np.uint8)[None, 22:23] * np.eye(45, dtype=np.uint8)[None, :, 22:23],
    "spiral": _spiral(),
    "across four cores and along edges": _four_corners(),
    "comb": _comb(),
    "checkerboard": (np.indices((45, 45)).sum(0) % 2).astype(np.uint8)[None],
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=list(IMAGES))
@pytest.mark.parametrize("corner", ["first", "last", "engine"])
@pytest.mark.parametrize(("core", "halo"), [((15, 15), (0, 0)), ((15, 15), (4, 1)), ((10, 28), (2, 2))])
def test_awkward_objects_are_whole(image, corner, core, halo, tmp_path):
    method = Connected(corner=corner)
    whole = tile(image, method, whole_plan((45, 45)), tmp_path / "whole")
    parts = tile(image, method, make_plan((45, 45), core, halo), tmp_path / "parts")
    assert parts.same_as(whole)
    assert parts.covered == 0
    assert len(parts.anchors) == ndimage.label(image[0])[1]


@pytest.mark.parametrize("offset", [(0, 0), (-1, 0), (0, -1), (-1, -1)])
def test_anchor_on_the_border_of_cores_is_owned_once(offset, tmp_path):
    """Cores are half-open: a pixel on either side of the border belongs to one of them."""
    image = np.zeros((1, 40, 40), np.uint8)
    y, x = 20 + offset[0], 20 + offset[1]
    image[0, y - 2 : y + 3, x - 2 : x + 3] = 1
    found = tile(image, Connected(), make_plan((40, 40), (20, 20), (5, 5)), tmp_path)
    assert found.anchors.tolist() == [[y, x]]
    assert found.mask.evidence["twins"] == found.mask.evidence["adopted"] == 0


def test_objects_that_end_at_the_core_border(tmp_path):
    """Objects flush with a border on either side of it, and one that is a single pixel."""
    image = np.zeros((1, 30, 40), np.uint8)
    image[0, 3:8, 15:20] = image[0, 12:17, 20:25] = image[0, 22, 19] = image[0, 25, 20] = 1
    found = tile(image, Connected(), make_plan((30, 40), (30, 20), (3, 3)), tmp_path)
    assert np.array_equal(found.labels, ndimage.label(image[0])[0])
