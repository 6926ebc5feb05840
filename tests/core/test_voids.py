"""Voids: drawn volumes, and a slow reference by scipy."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.voids import fill_voids, object_boxes


def filled(labels, rejected=()):
    """Return the labels with voids filled, and what was held."""
    labels = labels.copy()
    n = max(int(labels.max(initial=0)), 0)
    fixed = np.ones(n, bool)
    fixed[[k - 1 for k in rejected if k <= n]] = False
    areas = np.bincount(labels[labels > 0], minlength=n + 1)[1:]
    held = fill_voids(labels, object_boxes(labels, n), areas, fixed)
    return labels, held


def slow_filled(labels, rejected):
    areas = np.bincount(labels[labels > 0], minlength=max(labels.max(initial=0), 0) + 1)[1:]
    labels, held = labels.copy(), set()
    for k in sorted(range(1, len(areas) + 1), key=lambda k: (areas[k - 1], k)):
        if k not in rejected and areas[k - 1]:
            void = ndimage.binary_fill_holes(labels == k) & (labels != k)
            held |= {(k, int(other)) for other in np.unique(labels[void]) if other != 0}
            labels[void & ((labels == 0) | np.isin(labels, list(rejected)))] = k
    return labels, held


def ball(shape=(9, 9, 9)):
    """Return a hollow ball."""
    distance = np.sqrt(((np.indices(shape) - 4) ** 2).sum(axis=0))
    return ((distance <= 4) & (distance > 2)).astype(np.int32)


def test_a_hollow_ball_is_filled():
    labels, held = filled(ball())
    assert labels[4, 4, 4] == 1
    assert (labels > 0).sum() == (np.sqrt(((np.indices((9, 9, 9)) - 4) ** 2).sum(axis=0)) <= 4).sum()
    assert len(held) == 0


def test_a_hole_of_a_plane_with_a_way_out_above_is_none():
    """And a way by an edge is none."""
    labels = ball()
    labels[:3, 4, 4] = 0
    assert filled(labels)[0][4, 4, 4] == 0
    labels = np.zeros((7, 7, 7), np.int32)
    labels[1:6, 1:6, 1:6] = 1
    labels[3, 3, 3] = labels[2, 2, 3] = labels[1, 1, 3] = 0
    assert filled(labels)[0][3, 3, 3] == 1


def test_a_volume_of_one_plane_has_no_voids():
    labels = ball()[4:5]
    assert np.array_equal(filled(labels)[0], labels)


def test_what_is_kept_inside_stays_and_what_is_rejected_is_filled_over():
    labels = ball()
    labels[4, 4, 4] = 2
    labels[4, 4, 3] = -1
    found, held = filled(labels)
    assert found[4, 4, 4] == 2
    assert found[4, 4, 3] == -1
    assert set(map(tuple, held.tolist())) == {(1, 2), (1, -1)}
    assert filled(labels, rejected=(2,))[0][4, 4, 4] == 1


volumes = st.builds(
    lambda shape, seed, n, weight: np.random.default_rng(seed).choice(
        np.arange(-1, n + 1), shape, p=np.array([0.02, 0.3, *[weight / n] * n]) / (0.32 + weight)
    ).astype(np.int32),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), st.integers(0, 2**16), st.integers(1, 3),
    st.sampled_from([0.7, 3.0, 9.0]),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(volumes, st.sampled_from([(), (1,), (2, 3)]))
def test_as_the_slow_one(labels, rejected):
    found, held = filled(labels, rejected)
    expected, inside = slow_filled(labels, rejected)
    assert np.array_equal(found, expected)
    assert set(map(tuple, held.tolist())) == inside
