import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.morphology import disk

from spatialdata_segment.core.median import disk_median

INTEGERS = ["uint8", "int8", "uint16", "int16", "bool"]


def reference(image: np.ndarray, radius: int) -> np.ndarray:
    image = image.astype(np.int64) if image.dtype.kind in "bui" else image
    return ndimage.median_filter(image, footprint=disk(radius), mode="nearest")


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    image=st.sampled_from(INTEGERS).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=17))
    ),
    radius=st.integers(1, 6),
)
def test_equals_the_median_filter_of_scipy(image, radius):
    image.flags.writeable = False
    found = disk_median(image, radius)
    assert found.dtype == image.dtype
    np.testing.assert_array_equal(found, reference(image, radius))


@pytest.mark.parametrize("dtype", [*INTEGERS, "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("radius", [1, 4, 9])
def test_noise_of_any_dtype(dtype, radius):
    noise = np.random.default_rng(radius).integers(0, 1 << 16, (61, 83))
    image = (noise % 2 if dtype == "bool" else noise).astype(dtype)
    np.testing.assert_array_equal(disk_median(image, radius), reference(image, radius))


def test_each_plane_for_itself():
    volume = np.random.default_rng(0).integers(0, 4000, (2, 3, 20, 30)).astype(np.uint16)
    found = disk_median(volume, 2)
    for at in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[at], reference(volume[at], 2))


def test_far_jumps_skip_coarse_bins():
    image = np.zeros((5, 40), np.uint16)
    image[:, 10:20], image[:, 30:] = 65535, 40000
    np.testing.assert_array_equal(disk_median(image, 1), reference(image, 1))
