"""Levels by blocks: the same in every window, smooth, and none where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.local_levels import LocalLevels


def levels_of(image: np.ndarray, levels: LocalLevels, box: Box | None = None) -> tuple[np.ndarray, np.ndarray]:
    box = Box.whole(image.shape[1:]) if box is None else box
    block = box.grow((levels.reach(),) * 2, Box.whole(image.shape[1:]))
    return levels.of(image[(slice(None), *block.slices)], (block.start[0], block.start[1]), box)


def test_one_block_has_the_percentiles_of_the_image() -> None:
    image = np.random.default_rng(0).uniform(0, 9, (2, 20, 30))
    low, high = levels_of(image, LocalLevels((20, 30), 64, (1.0, 99.0)))
    for c in (0, 1):
        np.testing.assert_allclose(low[c], np.percentile(image[c], 1), rtol=1e-6)
        np.testing.assert_allclose(high[c], np.percentile(image[c], 99), rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_a_window_has_the_levels_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(40, 400, 2))
    image = rng.integers(0, 255, (1, *shape)).astype(np.uint8)
    image[:, : shape[0] // 3] = 7  # a part without a signal
    levels = LocalLevels(shape, int(rng.integers(16, 40)), (1.0, 99.0))
    start = tuple(int(rng.integers(0, n - 1)) for n in shape)
    box = Box(start, tuple(int(rng.integers(a + 1, n + 1)) for a, n in zip(start, shape, strict=True)))
    for whole, part in zip(levels_of(image, levels), levels_of(image, levels, box), strict=True):
        np.testing.assert_array_equal(part, whole[(slice(None), *box.slices)])


def test_levels_follow_the_image() -> None:
    ramp = np.linspace(0, 100, 600)[None, None, :] + np.random.default_rng(0).uniform(0, 10, (1, 300, 600))
    low, high = levels_of(ramp, LocalLevels((300, 600), 50, (1.0, 99.0)))
    assert low[0, 150, 550] - low[0, 150, 50] == pytest.approx(100 * 500 / 600, rel=0.1)
    assert (high > low).all()


def test_far_from_any_signal_there_are_no_levels() -> None:
    image = np.zeros((1, 100, 1000))
    image[:, :, :100] = np.random.default_rng(0).uniform(0, 1, (100, 100))
    low, high = levels_of(image, LocalLevels((100, 1000), 50, (1.0, 99.0)))
    assert (high[..., 600:] == 0).all()
    assert (low[..., 600:] == 0).all()
    assert (high[..., :90] > 0.9).all()
