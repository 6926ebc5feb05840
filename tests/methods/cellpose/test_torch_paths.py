"""Paths followed on a device end where those of the kernel do, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.paths import follow

pytest.importorskip("torch")

from spatialdata_segment.methods.cellpose.torch_paths import follow_on


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.lists(st.booleans(), min_size=4, max_size=4))
def test_as_the_kernel(seed: int, steps: int, opens: list[bool]) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 40, 2))
    field = rng.normal(0, rng.choice([0.2, 1.0]), (*shape, 2)).astype(np.float32).clip(-2, 2)
    if rng.random() < 0.5:  # towards a point: paths come to rest, or go to and fro
        at = np.moveaxis(np.indices(shape), 0, -1) - rng.uniform(0, shape)
        field = (-at / np.maximum(np.linalg.norm(at, axis=-1, keepdims=True), 1e-3)).astype(np.float32)
    field[rng.random(shape) < 0.2] = 0
    field[rng.random(shape) < 0.02] = np.nan
    edge = np.array(opens, np.int64).reshape(2, 2)
    np.testing.assert_array_equal(follow_on("cpu", field, edge, steps), follow(field, edge, steps))


def test_nothing_to_follow() -> None:
    field = np.zeros((5, 7, 2), np.float32)
    assert (follow_on("cpu", field, np.zeros((2, 2), np.int64), 10) == -1).all()
