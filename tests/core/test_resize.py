"""Resizing against numbers of OpenCV 5.0, scikit-image, and the parts against the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize as skimage_resize

from spatialdata_segment.core.resize import nearest, resize, source_range, taps

IMAGE = (np.arange(20).reshape(4, 5) ** 2 % 37).astype(np.float32)
OPENCV = {
    (7, 3): [
        [0.33333, 4.0, 13.66667], [10.45238, 6.85714, 13.66667], [26.64285, 11.42857, 13.66667],
        [24.66667, 22.5, 14.0], [20.14286, 32.78571, 15.30952], [15.95238, 31.07143, 23.11905], [13.33333, 30.0, 28.0],
    ],
    (2, 9): [
        [12.5, 14.5, 17.83333, 13.83333, 8.0, 13.55556, 17.27778, 13.66667, 11.5],
        [14.5, 17.0, 21.16667, 26.22222, 31.5, 27.61111, 23.94444, 21.16667, 19.5],
    ],
    (2, 4): [[13.25, 14.5625, 14.25, 12.3125], [15.4375, 25.5625, 27.125, 20.125]],
    (1, 1): [[22.5]],
    (4, 5): IMAGE.tolist(),
}  # fmt: skip
OPENCV_NEAREST = {
    (4, 7): [0, 0, 1, 1, 2, 2, 3], (5, 3): [0, 1, 3], (4, 2): [0, 2], (5, 9): [0, 0, 1, 1, 2, 2, 3, 3, 4],
    (5, 1): [0], (4, 9): [0, 0, 0, 1, 1, 2, 2, 3, 3],
}  # fmt: skip

sides = st.tuples(st.integers(1, 90), st.integers(1, 90))


def resized(image, shape):
    rows, columns = (taps(n, m, 0, m) for n, m in zip(image.shape[1:], shape, strict=True))
    return resize(image, (0, 0), rows, columns)


@pytest.mark.parametrize("shape", OPENCV)
def test_numbers_of_opencv(shape):
    found = resized(np.stack([IMAGE, 2 * IMAGE]), shape)
    np.testing.assert_allclose(found[0], OPENCV[shape], atol=2e-5)
    assert np.array_equal(found[1], 2 * found[0])


@pytest.mark.parametrize(("old", "new"), OPENCV_NEAREST)
def test_nearest_of_opencv(old, new):
    assert nearest(old, new, 0, new).tolist() == OPENCV_NEAREST[old, new]


@pytest.mark.parametrize(("new", "at", "old"), [(34, 17, 2), (68, 34, 2), (74, 37, 2), (94, 47, 3)])
def test_nearest_is_rounded_as_in_opencv(new, at, old):
    """In the middle of 6 pixels: OpenCV multiplies by the inverse of the factor, which is not exact."""
    assert nearest(6, new, at, at + 1).tolist() == [old]


@settings(deadline=None, max_examples=60)
@given(sides, sides, st.integers(0, 99))
def test_as_scikit_image(old, new, seed):
    image = np.random.default_rng(seed).random((1, *old)).astype(np.float32)
    expected = skimage_resize(image[0].astype(float), new, order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resized(image, new)[0], expected, atol=2e-5)


@settings(deadline=None, max_examples=120)
@given(sides, sides, st.data())
def test_parts_are_those_of_the_whole(old, new, data):
    """A part of the old image, as large as is said, gives the same bits."""
    image = np.random.default_rng(data.draw(st.integers(0, 99))).random((2, *old)).astype(np.float32)
    image.flags.writeable = False
    whole = resized(image, new)
    box = [sorted(data.draw(st.lists(st.integers(0, m), min_size=2, max_size=2, unique=True))) for m in new]
    ranges = [source_range(n, m, *b) for n, m, b in zip(old, new, box, strict=True)]
    more = [(max(0, a - data.draw(st.integers(0, 3))), b) for a, b in ranges]
    part = image[:, more[0][0] : more[0][1], more[1][0] : more[1][1]]
    rows, columns = (taps(n, m, *b) for n, m, b in zip(old, new, box, strict=True))
    found = resize(part, (more[0][0], more[1][0]), rows, columns)
    assert np.array_equal(found, whole[:, box[0][0] : box[0][1], box[1][0] : box[1][1]])


@settings(deadline=None, max_examples=120)
@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_ranges_are_no_larger_than_what_is_taken(old, new, data):
    start = data.draw(st.integers(0, new - 1))
    stop = data.draw(st.integers(start + 1, new))
    first, second, weight = taps(old, new, start, stop)
    assert source_range(old, new, start, stop) == (first.min(), second.max() + 1)
    assert first.min() >= 0
    assert second.max() < old
    assert set(second - first) <= {0, 1}
    assert ((weight >= 0) & (weight <= 1)).all()
    picked = nearest(old, new, start, stop)
    assert np.array_equal(picked, nearest(old, new, 0, new)[start:stop])
    assert (np.diff(picked) >= 0).all()
    assert 0 <= picked.min() <= picked.max() < old


def test_nothing():
    assert source_range(5, 9, 4, 4) == (0, 0)
    assert resize(np.zeros((1, 3, 3), np.float32), (0, 0), taps(3, 5, 2, 2), taps(3, 5, 0, 5)).shape == (1, 0, 5)
