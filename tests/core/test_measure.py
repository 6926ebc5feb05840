from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.measure import (
    combine,
    combine_intensities,
    combine_nearest,
    combine_pairs,
    intensity_sums,
    map_labels,
    measure,
    nearest_pixel,
    pair_counts,
)
from spatialdata_segment.core.measure_kernels import FRACTION_BITS
from spatialdata_segment.errors import InputError
from spatialdata_segment.testing.strategies import label_images

BIG = 2**63 - 1


def locked(values, dtype=np.int64):
    array = np.array(values, dtype)
    array.flags.writeable = False
    return array


def cuts(shape, data):
    """Slices of a random grid of blocks over the shape, in random order."""
    edges = [sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))}) for n in shape]
    grids = [[slice(a, b) for a, b in pairwise(e)] for e in edges]
    blocks = [tuple(grids[d][i] for d, i in enumerate(at)) for at in np.ndindex(*map(len, grids))]
    return data.draw(st.permutations(blocks))


def start(block):
    return tuple(s.start for s in block)


def same(a, b):
    for name in a.__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert x.tobytes() == y.tobytes(), name


@st.composite
def pictures(draw, ndim=None):
    ndim = ndim or draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.integers(1, 7)) for _ in range(ndim))
    ids = np.array([0, *draw(st.lists(st.integers(1, BIG), min_size=1, max_size=5, unique=True))])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return locked(ids[rng.integers(0, len(ids), shape)])


def test_moments_of_a_small_picture():
    picture = locked([[0, 9, 9], [4, 9, 0]])
    m = measure(picture, (10, 100))
    assert m.ids.tolist() == [4, 9]
    assert m.area.tolist() == [1, 3]
    assert m.sums.tolist() == [[11, 100], [31, 304]]
    assert m.bbox.tolist() == [[11, 100, 12, 101], [10, 101, 12, 103]]
    assert m.centroid.tolist() == [[11.0, 100.0], [31 / 3, 304 / 3]]


def test_moments_in_three_axes():
    picture = np.zeros((2, 2, 3), np.uint16)
    picture[1, 0, 1:] = 7
    m = measure(picture, (5, 0, 0))
    assert m.sums.tolist() == [[12, 0, 3]]
    assert m.bbox.tolist() == [[6, 0, 1, 7, 1, 3]]


def test_far_from_the_origin_sums_are_exact():
    far = 2**40
    m = measure(locked([[3, 3, 3]]), (far, far + 1))
    assert m.sums.tolist() == [[3 * far, 3 * far + 6]]
    assert m.centroid.tolist() == [[far, far + 2]]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.uint32, np.int64, np.uint64, ">i4"])
def test_any_integer_type(dtype):
    assert measure(locked([[0, 1], [1, 1]], dtype), (0, 0)).area.tolist() == [3]


def test_empty_pictures():
    for shape in ((3, 4), (0, 4), (2, 0, 3)):
        m = measure(np.zeros(shape, np.int32), (0,) * len(shape))
        assert len(m) == 0
        assert m.bbox.shape == (0, 2 * len(shape))
        same(combine([m, m]), m)
    empty = pair_counts(np.zeros((2, 2), int), np.zeros((2, 2), int), background=True)
    assert len(combine_pairs([empty, empty])) == 0


@pytest.mark.parametrize(
    ("picture", "offset"),
    [
        (locked([[-1]]), (0, 0)),
        (locked([[2**63]], np.uint64), (0, 0)),
        (locked([[1.0]], float), (0, 0)),
        (locked([1]), (0,)),
        (locked([[1]]), (0, 0, 0)),
    ],
)
def test_what_is_no_label_is_an_error(picture, offset):
    with pytest.raises(InputError):
        measure(picture, offset)


def test_nothing_to_combine_is_an_error():
    with pytest.raises(InputError, match="at least one part"):
        combine([])


def test_many_objects_outgrow_the_first_table():
    ids = np.random.default_rng(0).permutation(np.arange(1, 5001)) * 1_000_003_000_000
    m = measure(locked(ids.reshape(50, 100)), (0, 0))
    assert (m.ids == np.sort(ids)).all()
    assert (m.area == 1).all()
    position = np.argsort(ids)
    assert (m.sums == np.stack([position // 100, position % 100], 1)).all()


@settings(max_examples=40, deadline=None)
@given(picture=pictures(), data=st.data())
def test_moments_do_not_depend_on_blocks_or_order(picture, data):
    origin = tuple(data.draw(st.integers(0, 1000)) for _ in picture.shape)
    parts = [
        measure(picture[b], [o + s for o, s in zip(origin, start(b), strict=True)]) for b in cuts(picture.shape, data)
    ]
    whole = measure(picture, origin)
    same(combine(parts), whole)
    for i, label in enumerate(whole.ids):
        points = np.argwhere(picture == label) + origin
        assert whole.area[i] == len(points)
        assert whole.sums[i].tolist() == points.sum(0).tolist()
        assert whole.bbox[i].tolist() == [*points.min(0), *(points.max(0) + 1)]


def test_objects_take_anchors():
    m = measure(locked([[2, 2]]), (0, 0))
    objects = m.objects(np.array([[0, 1]]))
    assert objects.ids.tolist() == [2]
    assert objects.anchor.tolist() == [[0, 1]]
    assert objects.centroid.tolist() == [[0, 0.5]]
    with pytest.raises(InputError, match="shape"):
        m.objects(np.zeros((2, 2), int))


def test_pairs_of_a_small_picture():
    a = locked([[1, 1, 0, 0], [1, 2, 2, 0]])
    b = locked([[5, 0, 5, 0], [5, 5, 6, 0]], np.uint32)
    p = pair_counts(a, b)
    assert list(zip(p.a, p.b, p.count, strict=True)) == [(1, 5, 2), (2, 5, 1), (2, 6, 1)]
    p = pair_counts(a, b, background=True)
    assert list(zip(p.a, p.b, p.count, strict=True)) == [
        (0, 5, 1),
        (1, 0, 1),
        (1, 5, 2),
        (2, 5, 1),
        (2, 6, 1),
    ]
    with pytest.raises(InputError, match="same pixels"):
        pair_counts(a, b[:1])


@settings(max_examples=30, deadline=None)
@given(picture=pictures(), seed=st.integers(0, 99), background=st.booleans(), data=st.data())
def test_pairs_do_not_depend_on_blocks_or_order(picture, seed, background, data):
    other = np.random.default_rng(seed).permutation(picture.ravel()).reshape(picture.shape)
    whole = pair_counts(picture, other, background=background)
    parts = [pair_counts(picture[b], other[b], background=background) for b in cuts(picture.shape, data)]
    same(combine_pairs(parts), whole)
    keep = (picture > 0) | (other > 0) if background else (picture > 0) & (other > 0)
    assert whole.count.sum() == keep.sum()
    for a, b, n in zip(whole.a, whole.b, whole.count, strict=True):
        assert n == ((picture == a) & (other == b)).sum()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ([[1, 1]], (0, 0)),  # two alike: the first in raster order
        ([[1, 1, 1]], (0, 1)),
        ([[1], [1]], (0, 0)),
        ([[0, 1, 0], [1, 0, 1], [0, 1, 0]], (0, 1)),  # a ring: four alike
        ([[1, 1, 1], [1, 0, 0], [1, 0, 0]], (0, 1)),  # alike on both arms
        ([[1, 0, 0, 1, 1]], (0, 3)),  # the centroid lies outside
    ],
)
def test_nearest_pixel_of_small_pictures(picture, expected):
    picture = locked(picture)
    found = nearest_pixel(picture, (0, 0), measure(picture, (0, 0)))
    assert tuple(found.pixel[0]) == expected


def test_nearest_leaves_out_what_is_not_measured():
    picture = locked([[1, 2, 3]])
    m = measure(picture, (0, 0))
    assert nearest_pixel(picture, (0, 0), m.take(np.array([0, 2]))).ids.tolist() == [1, 3]


@settings(max_examples=40, deadline=None)
@given(picture=pictures(), data=st.data())
def test_nearest_pixel_does_not_depend_on_blocks_order_or_place(picture, data):
    whole = measure(picture, (0,) * picture.ndim)
    parts = [nearest_pixel(picture[b], start(b), whole) for b in cuts(picture.shape, data)]
    found = combine_nearest(parts)
    same(found, nearest_pixel(picture, (0,) * picture.ndim, whole))
    for label, pixel in zip(found.ids, found.pixel, strict=True):
        points = np.argwhere(picture == label)
        n, total = len(points), points.sum(0)
        exact = [sum((int(n * v) - int(t)) ** 2 for v, t in zip(p, total, strict=True)) for p in points]
        assert pixel.tolist() == points[exact.index(min(exact))].tolist()
    far = tuple(data.draw(st.integers(0, 10**6)) for _ in picture.shape)
    moved = nearest_pixel(picture, far, measure(picture, far))
    assert (moved.pixel - far == found.pixel).all()


def test_means_of_a_small_picture():
    labels = locked([[1, 1, 0], [7, 0, 0]], np.uint8)
    image = locked([[[1, 2, 9], [5, 9, 9]], [[0, 1, 9], [250, 9, 9]]], np.uint8)
    sums = intensity_sums(labels, image)
    assert sums.ids.tolist() == [1, 7]
    assert sums.count.tolist() == [2, 1]
    assert sums.whole.tolist() == [[3, 1], [5, 250]]
    assert sums.mean().tolist() == [[1.5, 0.5], [5.0, 250.0]]
    assert np.isnan(sums.mean(np.array([7, 3, 1]))).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert sums.mean(np.array([7, 3, 1]))[[0, 2]].tolist() == [[5.0, 250.0], [1.5, 0.5]]


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.uint16, np.int32, np.uint64, np.float16, np.float32, np.float64]
)
def test_any_pixel_type(dtype):
    sums = intensity_sums(locked([[1, 1]]), locked([[[0, 1]]], dtype))
    assert sums.mean().tolist() == [[0.5]]


def test_float_sums_are_exact_multiples_of_the_unit():
    values = [0.1, -0.1, 1e9, -1e9 + 0.25, 1e-30, -1e-30, 3.0]
    sums = intensity_sums(locked([[1] * len(values)]), locked([[values]], np.float64))
    unit = Fraction(1, 2**FRACTION_BITS)
    exact = sum(round(Fraction(v) / unit) for v in values) * unit
    assert int(sums.whole[0, 0]) + int(sums.fraction[0, 0]) * unit == exact
    assert math.isclose(sums.mean()[0, 0] * len(values), sum(map(Fraction, values)), rel_tol=1e-11)


def test_pixels_that_are_not_finite_make_the_mean_nan():
    labels = locked([[1, 1, 2], [0, 3, 3]])
    image = locked([[[1, np.nan, 2], [np.inf, np.inf, 1]]], np.float32)
    left = intensity_sums(labels[:, :1], image[..., :1])
    right = intensity_sums(labels[:, 1:], image[..., 1:])
    mean = combine_intensities([right, left]).mean()[:, 0]
    assert np.isnan(mean).tolist() == [True, False, True]
    assert mean[1] == 2


def test_images_that_cannot_be_summed_are_errors():
    labels = locked([[1]])
    for image in (
        locked([[[1e13]]], np.float32),
        locked([[[2**41]]]),
        locked([[[2**64 - 1]]], np.uint64),
        locked([[[1j]]], complex),
        locked([[[1, 2]]]),
    ):
        with pytest.raises(InputError):
            intensity_sums(labels, image)


@settings(max_examples=40, deadline=None)
@given(picture=pictures(), integer=st.booleans(), seed=st.integers(0, 99), data=st.data())
def test_intensities_do_not_depend_on_blocks_or_order(picture, integer, seed, data):
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 10.0 ** rng.integers(-6, 9, picture.shape), (2, *picture.shape)).astype(np.float32)
    if integer:
        image = rng.integers(-(2**31), 2**31, (2, *picture.shape), np.int32)
    whole = intensity_sums(picture, image)
    parts = [intensity_sums(picture[b], image[(slice(None), *b)]) for b in cuts(picture.shape, data)]
    same(combine_intensities(parts), whole)
    assert combine_intensities(parts).mean().tobytes() == whole.mean().tobytes()
    for i, label in enumerate(whole.ids):
        expected = image[:, picture == label].astype(np.float64).mean(1)
        np.testing.assert_allclose(whole.mean()[i], expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("n", [2, 40, 3000])
@pytest.mark.parametrize("background", [False, True])
def test_pairs_across_tiles_and_more_than_a_tile_holds(n, background):
    rng = np.random.default_rng(n)
    a, b = (np.repeat(rng.integers(0, n, (2, 140, 550)), 2, axis=2)[..., k : 1099 + k] for k in range(2))
    found = pair_counts(a, b, background=background)
    expected, count = np.unique(np.stack([a.ravel(), b.ravel()], axis=1), axis=0, return_counts=True)
    counted = expected.any(axis=1) if background else expected.all(axis=1)
    np.testing.assert_array_equal(np.stack([found.a, found.b], axis=1), expected[counted])
    np.testing.assert_array_equal(found.count, count[counted])


@settings(deadline=None)
@given(label_images(max_id=400), st.integers(0, 2**16), st.sampled_from(["uint16", "int64", "uint64"]))
def test_map_labels_through_a_table_as_by_search(labels, seed, dtype):
    labels = labels.astype(dtype)
    rng = np.random.default_rng(seed)
    ids = np.unique(labels)[1:].astype(np.int64)
    ids = ids[rng.random(len(ids)) < 0.8]
    new = rng.integers(0, 2**40, len(ids))
    found = map_labels(labels, ids, new, np.dtype(np.uint64))
    # a far id, which no pixel has, makes the table too large
    searched = map_labels(labels, np.r_[ids, BIG], np.r_[new, 1], np.dtype(np.uint64))
    np.testing.assert_array_equal(found, searched)


def test_map_labels():
    picture = locked([[BIG, BIG, 3], [0, 4, 3]])
    out = map_labels(picture, np.array([3, 4, BIG]), np.array([2, 0, 1]), np.dtype(np.uint32))
    assert out.dtype == np.uint32
    assert out.tolist() == [[1, 1, 2], [0, 0, 2]]
    none = map_labels(picture[None], np.zeros(0, np.int64), np.zeros(0, np.int64), np.dtype(np.uint64))
    assert none.shape == (1, 2, 3)
    assert not none.any()
