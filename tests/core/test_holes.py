"""Holes: drawn pictures, and a slow reference by scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.heat import object_boxes
from spatialdata_segment.core.holes import fill_holes


def draw(*rows):
    return np.array([[-1 if c == "?" else int(c) if c.isdigit() else 0 for c in row] for row in rows], np.int32)


def filled(labels, rejected=()):
    labels = labels.copy()
    n = max(int(labels.max(initial=0)), 0)
    fixed = np.ones(n, bool)
    fixed[[k - 1 for k in rejected]] = False
    areas = np.bincount(labels[labels > 0], minlength=n + 1)[1:]
    fill_holes(labels, object_boxes(labels, n), areas, fixed)
    return labels


def slow_filled(labels, rejected):
    areas = np.bincount(labels[labels > 0], minlength=labels.max(initial=0) + 1)[1:]
    labels = labels.copy()
    for k in sorted(range(1, len(areas) + 1), key=lambda k: (areas[k - 1], k)):
        if k not in rejected:
            free = (labels == 0) | np.isin(labels, list(rejected))
            labels[ndimage.binary_fill_holes(labels == k) & free] = k
    return labels


def test_a_ring_is_filled():
    ring = draw(
        ".111.",
        ".1.1.",
        ".1.1.",
        ".111.",
    )  # fmt: skip
    assert np.array_equal(filled(ring)[:, 1:4], np.ones((4, 3)))
    assert not filled(ring)[:, [0, 4]].any()


def test_the_way_out_goes_by_edges():
    """A hole is open where an edge is; a corner closes it."""
    corner = draw(
        "11..",
        "1.1.",
        "111.",
    )  # fmt: skip
    assert filled(corner)[1, 1] == 1
    edge = draw(
        "1.1.",
        "1.1.",
        "111.",
    )  # fmt: skip
    assert np.array_equal(filled(edge), edge)


def test_a_ring_cut_by_the_image_is_open():
    cut = draw("1.1", "111")
    assert np.array_equal(filled(cut), cut)


def test_of_rings_in_rings_the_inner_is_filled_first():
    rings = draw(
        "2222222",
        "2.....2",
        "2.111.2",
        "2.1.1.2",
        "2.111.2",
        "2.....2",
        "2222222",
    )
    expected = draw(
        "2222222",
        "2222222",
        "2211122",
        "2211122",
        "2211122",
        "2222222",
        "2222222",
    )
    assert np.array_equal(filled(rings), expected)
    swapped = np.array([0, 2, 1])[rings].astype(np.int32)
    assert np.array_equal(filled(swapped), np.array([0, 2, 1])[expected])


def test_what_was_rejected_becomes_the_ring_around_it():
    rings = draw(
        "11111",
        "1.2.1",
        "12221",
        "1.2.1",
        "11111",
    )
    assert (filled(rings, [2]) == 1).all()
    kept = filled(rings)
    assert ((kept == 2) == (rings == 2)).all()
    assert ((kept == 1) == (rings != 2)).all()


def test_rejected_rings_are_not_filled():
    ring = draw("111", "1.1", "111")
    assert np.array_equal(filled(ring, [1]), ring)


def test_what_is_not_known_stays():
    ring = draw("1111", "1.?1", "1111")
    assert np.array_equal(filled(ring), draw("1111", "11?1", "1111"))


def test_two_objects_that_enclose_together_fill_nothing():
    labels = draw("1112", "1..2", "1222")
    assert np.array_equal(filled(labels), labels)


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 9)])
def test_nothing_to_fill(shape):
    for value in (0, 1):
        labels = np.full(shape, value, np.int32)
        assert np.array_equal(filled(labels), labels)


@settings(deadline=None, max_examples=150)
@given(
    st.tuples(st.integers(1, 18), st.integers(1, 18)), st.integers(0, 2**16), st.integers(1, 7),
    st.sampled_from([0.1, 0.3, 0.6]), st.lists(st.integers(1, 7), max_size=3),
)  # fmt: skip
def test_as_the_slow_one(shape, seed, n, share, rejected):
    """Noise and rings of several objects over each other."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(shape) < share, rng.integers(-1, n + 1, shape), 0).astype(np.int32)
    for k in range(1, n + 1):
        y, x = (int(rng.integers(0, s)) for s in shape)
        b, a = (int(rng.integers(1, 12)) for _ in range(2))
        box = labels[y : y + b, x : x + a]
        inner = box[1:-1, 1:-1].copy()
        box[:] = k
        box[1:-1, 1:-1] = inner
    assert np.array_equal(filled(labels, [k for k in rejected if k <= labels.max()]), slow_filled(labels, rejected))
