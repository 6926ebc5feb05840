"""Local thresholds: in any window as in the whole image, and as their slow references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import threshold_local, threshold_otsu
from skimage.transform import resize

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.local import (
    Cells,
    contrast_mask,
    contrast_reach,
    median_mask,
    median_reach,
    otsu_mask,
    otsu_reach,
)
from spatialdata_segment.core.median import square_median
from spatialdata_segment.core.plan import Window

MASKS = {
    "contrast, small": (lambda i, w: contrast_mask(i, w, 3.0, 0.4, 0.02), contrast_reach(3.0)),
    "contrast, cells of two": (lambda i, w: contrast_mask(i, w, 7.3, 0.3, 0.0), contrast_reach(7.3)),
    "otsu": (lambda i, w: otsu_mask(i, w, 16, 0.3), otsu_reach(16)),
    "median": (lambda i, w: median_mask(i, w, 7, 3, 0.1, (0.0, 1.0)), median_reach(7, 3)),
    "median, every pixel": (lambda i, w: median_mask(i, w, 5, 1, 0.05, (0.0, 1.0)), median_reach(5, 1)),
}


def window(shape, start=None, stop=None):
    image = Box.whole(shape)
    box = image if start is None else Box(tuple(start), tuple(stop))
    return Window(box, box, image)


def a_picture(seed, shape=(150, 171), levels=None):
    image = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2.5)
    image = (image - image.min()) / np.ptp(image)
    if levels is not None:  # flat and saturated
        image = np.clip(np.floor(image * levels) / (levels - 2), 0, 1)
    return image.astype(np.float32)


@pytest.mark.parametrize("name", MASKS)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(data=st.data(), seed=st.integers(0, 99), levels=st.sampled_from([None, 4, 12]))
def test_the_same_in_any_window(data, name, seed, levels):
    image = a_picture(seed, levels=levels)
    mask, reach = MASKS[name]
    start = [data.draw(st.integers(0, n - 2)) for n in image.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, image.shape, strict=True)]
    part = window(image.shape, start, stop)
    sure = part.shrink((reach, reach))
    if sure.size == 0:
        return
    found = mask(np.ascontiguousarray(image[part.box.slices]), part)
    np.testing.assert_array_equal(found[sure.within(part.box)], mask(image, window(image.shape))[sure.slices])


def test_contrast_in_3d_is_the_same_in_any_window():
    image = a_picture(5, (40, 75, 70))
    reach = contrast_reach(2.0)
    part = window(image.shape, (0, 3, 2), (33, 75, 60))
    sure = part.shrink((reach,) * 3)
    assert sure.size > 1000
    found = contrast_mask(np.ascontiguousarray(image[part.box.slices]), part, 2.0, 0.4, 0.0)
    whole = contrast_mask(image, window(image.shape), 2.0, 0.4, 0.0)
    np.testing.assert_array_equal(found[sure.within(part.box)], whole[sure.slices])


def test_contrast_finds_the_bright_and_the_dim():
    """Of discs of 200, 40 and 20 over a ground that rises from 5 to 60; one threshold of the image cannot."""
    y, x = np.mgrid[:200, :300]
    image = 5 + 55 * x / 300
    discs = np.zeros(image.shape, int)
    for i, (b, a, height) in enumerate(
        [(50, 40, 200), (50, 150, 40), (150, 250, 40), (150, 60, 12), (60, 250, 200)], 1
    ):
        inside = (y - b) ** 2 + (x - a) ** 2 <= 10**2
        image[inside] += height
        discs[inside] = i
    smooth = ndimage.gaussian_filter(image, 1).astype(np.float32)
    mask = contrast_mask(smooth, window(image.shape), 10.0, 0.35, 7.0)
    for i in range(1, 6):
        assert mask[discs == i].mean() > 0.9
    assert mask[discs == 0].mean() < 0.01
    otsu = smooth > threshold_otsu(smooth)
    assert min(otsu[discs == i].mean() for i in range(1, 6)) < 0.5


def test_contrast_of_a_flat_image_is_nothing():
    assert not contrast_mask(np.full((50, 60), 7, np.float32), window((50, 60)), 5.0, 0.35, 0.0).any()


def test_means_of_cells_and_of_the_rest_at_the_end():
    image = np.arange(7 * 9, dtype=np.float32).reshape(7, 9)
    found = Cells.of(window(image.shape), 4).means(image)
    expected = [[image[a : a + 4, b : b + 4].mean() for b in (0, 4, 8)] for a in (0, 4)]
    np.testing.assert_allclose(found, expected)


def test_median_as_in_scikit_image():
    image = a_picture(1, (203, 190))
    found = median_mask(image, window(image.shape), 11, 4, 0.05, (0.0, 1.0))
    local = threshold_local(image[::4, ::4], block_size=11, method="median", offset=-0.05)
    expected = image > resize(local, image.shape)
    assert (found == expected).mean() > 0.9995  # medians are known to 1/65,535


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_square_median_as_in_scipy(dtype):
    image = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (40, 51)).astype(dtype)
    expected = ndimage.median_filter(image, size=9, mode="reflect")
    np.testing.assert_array_equal(square_median(image, 4), expected)


def test_otsu_of_the_surroundings():
    image = np.round(a_picture(2, (96, 96)) * 255).astype(np.float32)
    found = otsu_mask(image, window(image.shape), 32, 0.0)
    centre = threshold_otsu(image)  # of all nine cells
    at = slice(47, 49), slice(47, 49)
    np.testing.assert_array_equal(found[at], image[at] > centre)
    assert not otsu_mask(image, window(image.shape), 32, 300.0).any()
