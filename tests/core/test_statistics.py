from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.filters import threshold_otsu

from spatialdata_segment.core.statistics import Histogram, Statistic
from spatialdata_segment.testing import Tissue

small = st.one_of(
    *(hnp.arrays(dtype, st.integers(1, 60)) for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.bool_))
)
QUANTILES = [0, 0.01, 0.25, 0.5, 0.999, 1]


@settings(deadline=None)
@given(small)
def test_integers_are_counted_exactly(values):
    histogram = Histogram.of(values)
    present, counts = np.unique(values, return_counts=True)
    assert np.array_equal(histogram.values, present)
    assert np.array_equal(histogram.counts, counts)
    assert (histogram.lowest, histogram.highest) == (values.min(), values.max())
    for q in QUANTILES:
        assert histogram.quantile(q) == pytest.approx(np.quantile(values.astype(float), q), rel=1e-12, abs=1e-12)


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_floats_are_known_to_one_part_in_4096(values):
    histogram = Histogram.of(values)
    assert histogram.counts.sum() == len(values)
    assert (np.diff(histogram.values) > 0).all()
    assert (histogram.lowest, histogram.highest) == (values.min(), values.max())
    ordered = np.repeat(histogram.values, histogram.counts)
    assert np.allclose(ordered, np.sort(values), rtol=1 / 4096, atol=1e-37)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.float64])
def test_wide_types(dtype):
    values = np.array([0, 1, 5, 1000, 70000, 10**6]).astype(dtype)
    assert np.allclose(Histogram.of(values).values, values, rtol=1 / 4096)


def test_non_finite_values_are_counted_apart():
    histogram = Histogram.of(np.array([1.0, np.nan, -np.inf, np.inf, 3.0], np.float32))
    assert histogram.non_finite == 3
    assert (histogram.lowest, histogram.highest) == (1, 3)
    assert histogram.counts.sum() == 2
    nothing = Histogram.of(np.full(4, np.nan, np.float32))
    assert (nothing + histogram).highest == 3


@settings(deadline=None)
@given(hnp.arrays(np.float32, 40, elements=st.floats(-9, 9, width=32)), st.permutations(range(5)))
def test_blocks_in_any_order(values, order):
    whole, blocks = Histogram.of(values), [values[8 * k : 8 * k + 8] for k in order]
    merged = reduce(add, map(Histogram.of, blocks))
    assert np.array_equal(merged.values, whole.values)
    assert np.array_equal(merged.counts, whole.counts)
    for statistic in (Statistic("otsu"), Statistic("quantile", 0, 0.3), Statistic("minimum"), Statistic("maximum")):
        assert merged.compute(statistic) == whole.compute(statistic)


@pytest.mark.parametrize("seed", range(4))
def test_otsu_as_scikit_image(seed):
    image = (Tissue((200, 200), seed=seed).image().compute()[0] // 256).astype(np.uint8)
    assert Histogram.of(image).otsu() == threshold_otsu(image)


def test_otsu_of_two_values_and_of_one():
    assert Histogram.of(np.array([3, 3, 9], np.uint8)).otsu() == 3
    flat = np.full(5, 7, np.uint16)
    assert not (flat > Histogram.of(flat).otsu()).any()


def test_labels_of_statistics_are_unique():
    every = [Statistic("otsu"), Statistic("otsu", 1), Statistic("quantile", 0, 0.5), Statistic("quantile", 0, 0.99)]
    assert len({s.label for s in every}) == len(every)
