import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import expand_labels

from spatialdata_segment.core.expand import expand


def slow_expand(labels, distance):
    """Each pixel to the nearest object within the distance, ties to the lower label."""
    out = labels.copy()
    at = np.argwhere(labels > 0)
    for p in np.argwhere(labels == 0):
        reach = np.zeros(len(at))
        for axis, r in enumerate(distance):
            d = (at[:, axis] - p[axis]).astype(float)
            reach += np.where(d == 0, 0, (d / r) ** 2 if r else np.inf)
        if len(at) and reach.min() <= 1 + 1e-9:
            near = np.abs(reach - reach.min()) < 1e-9
            out[tuple(p)] = labels[tuple(at[near].T)].min()
    return out


seeds = st.builds(
    lambda shape, seed, n: _seeds(shape, seed, n),
    st.tuples(st.sampled_from([1, 1, 6]), st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 2**16), st.integers(0, 9),
)  # fmt: skip


def _seeds(shape, seed, n):
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    labels.flat[rng.integers(0, labels.size, n)] = np.arange(1, n + 1)
    return labels


@settings(deadline=None, max_examples=60)
@given(seeds, st.tuples(*map(st.sampled_from, ([0.0, 2.0], [0.0, 1.0, 3.5, 6.0, 7.0], [2.0, 5.0, 7.0]))))
def test_as_the_slow_one(labels, distance):
    assert np.array_equal(expand(labels, distance), slow_expand(labels, distance))


@pytest.mark.parametrize("distance", [0, 1, 2.5, 7])
def test_as_scikit_image_where_nothing_ties(distance):
    labels = ndimage.label(np.random.default_rng(3).random((60, 61)) > 0.985)[0].astype(np.int32)
    ours, theirs = expand(labels[None], (0, distance, distance))[0], expand_labels(labels, distance)
    assert np.array_equal(ours > 0, theirs > 0)
    first = [ndimage.distance_transform_edt(labels != i) for i in range(1, labels.max() + 1)]
    two = np.sort(first, axis=0)[:2]
    no_tie = two[1] - two[0] > 1e-9
    assert no_tie.sum() > 1000
    assert np.array_equal(ours[no_tie], theirs[no_tie])


def test_ties_of_axes_with_different_distances():
    labels = np.zeros((2, 4, 1), np.int32)
    labels[1, 0, 0], labels[0, 3, 0] = 1, 2  # (1 / 2) ** 2 == (3 / 6) ** 2
    assert expand(labels, (2.0, 6.0, 7.0))[0, 0, 0] == 1
    assert expand(np.where(labels, 3 - labels, 0).astype(np.int32), (2.0, 6.0, 7.0))[0, 0, 0] == 1


def test_distances_that_no_fraction_holds_are_as_near_to_exact_as_matters():
    labels, distance = _seeds((6, 20, 20), 5, 9), (np.pi, np.e * 2, np.sqrt(30))
    assert np.array_equal(expand(labels, distance), slow_expand(labels, distance))


def test_tie_goes_to_the_lower_label():
    line = np.array([[[2, 0, 0, 0, 1]]], np.int32)
    assert expand(line, (0, 0, 2))[0, 0].tolist() == [2, 2, 1, 1, 1]


def test_distances_of_each_axis():
    labels = np.zeros((1, 5, 7), np.int32)
    labels[0, 2, 3] = 1
    assert expand(labels, (0, 1, 3))[0].tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_input_is_left_alone():
    labels = np.array([[[0, 1, 0]]], np.int32)
    labels.flags.writeable = False
    assert expand(labels, (0, 0, 1)).tolist() == [[[1, 1, 1]]]
