import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.contact import background_contact
from spatialdata_segment.core.shards import dense
from spatialdata_segment.testing.strategies import label_images


def slow(labels, n):
    """Face by face."""
    free, total = np.zeros(n), np.zeros(n)
    for at in np.argwhere(labels > 0):
        for axis in range(labels.ndim):
            for step in (-1, 1):
                to = at.copy()
                to[axis] += step
                if not 0 <= to[axis] < labels.shape[axis]:
                    continue
                here, there = labels[tuple(at)], labels[tuple(to)]
                if there not in (here, -1):
                    total[here - 1] += 1
                    free[here - 1] += there == 0
    return np.array([f / t if t else 1.0 for f, t in zip(free, total, strict=True)])


@settings(deadline=None)
@given(
    st.one_of(label_images(max_side=20), label_images(3, max_side=9)), st.integers(0, 2**16),
    st.sampled_from([0.0, 0.1]), st.sampled_from([0, 2]), st.sampled_from([np.int32, np.int64]),
)  # fmt: skip
def test_as_face_by_face(scattered, seed, hidden, more, dtype):
    labels, ids = dense(scattered)
    labels[np.random.default_rng(seed).random(labels.shape) < hidden] = -1
    n = len(ids) + more
    labels = labels.astype(dtype)
    labels.flags.writeable = False
    found = background_contact(labels, n)
    assert found.dtype == np.float64
    assert found.tolist() == slow(labels, n).tolist()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], [1.0]),  # alone
        ([[1, 1], [1, 1]], [1.0]),  # fills the array: no face counts
        ([[0, 1, 2, 0]], [0.5, 0.5]),  # half to the neighbour, the array's edge left out
        ([[2, 2, 2], [2, 1, 2], [2, 2, 0]], [0.0, 1 / 3]),  # enclosed; 2 of the other's 6 faces are free
        ([[0, 1, -1]], [1.0]),  # what is unknown is neither
        ([[1, 0], [0, 2]], [1.0, 1.0]),  # corners are no faces
        ([[0, 2]], [1.0, 1.0]),  # an object without a pixel
    ],
)
def test_small_pictures(labels, expected):
    assert background_contact(np.array(labels), len(expected)).tolist() == expected


def test_planes_above_and_below_count():
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[1, 1, 1] = 1
    labels[0, 1, 1] = 2
    assert background_contact(labels, 2).tolist() == [5 / 6, 4 / 5]


def test_no_object():
    assert background_contact(np.zeros((0, 5), np.int32), 0).shape == (0,)
    assert background_contact(np.zeros((4, 5), np.int32), 0).shape == (0,)
