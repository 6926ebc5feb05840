"""Scores against a count by hand and against brute force."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from spatialdata_segment.errors import InputError
from spatialdata_segment.testing import match_scores, strategies

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def brute_force(truth, found, level):
    """Count the matches as StarDist does: a dense table and an assignment."""
    true_ids, found_ids = (np.unique(labels[labels > 0]) for labels in (truth, found))
    enough = np.array(
        [
            [((truth == t) & (found == f)).sum() / ((truth == t) | (found == f)).sum() >= level for f in found_ids]
            for t in true_ids
        ]
    ).reshape(len(true_ids), len(found_ids))
    rows, columns = linear_sum_assignment(-enough.astype(float))
    return len(true_ids), len(found_ids), int(enough[rows, columns].sum())


small = hnp.arrays(np.int32, (5, 6), elements=st.integers(0, 4))


@settings(max_examples=80, deadline=None)
@given(truth=small, found=small)
def test_equals_brute_force(truth, found):
    scores = match_scores(truth, found, LEVELS)
    for level, tp in zip(LEVELS, scores.tp, strict=True):
        assert (scores.n_truth, scores.n_found, tp) == brute_force(truth, found, level)


@settings(max_examples=25, deadline=None)
@given(labels=strategies.label_images(min_side=4), chunk=st.integers(3, 40), seed=st.integers(0, 99))
def test_dask_equals_numpy(labels, chunk, seed):
    shift = np.random.default_rng(seed).integers(0, 3, 2)
    found = np.roll(labels, shift, (0, 1))
    lazy = match_scores(da.from_array(labels, chunks=chunk), da.from_array(found, chunks=7), LEVELS)
    assert lazy == match_scores(labels, found, LEVELS) == match_scores(labels, da.from_array(found, chunks=5), LEVELS)


def test_by_hand():
    truth = np.array([[1, 1, 1, 1, 0, 2, 2, 3]])
    found = np.array([[7, 7, 7, 0, 0, 9, 9, 9]])
    scores = match_scores(truth, found, (0.5, 0.7, 0.9))
    assert scores.tp == (2, 1, 0)
    assert scores.fp == (0, 1, 2)
    assert scores.fn == (1, 2, 3)
    assert scores.precision == (1, 0.5, 0)
    assert scores.recall == pytest.approx((2 / 3, 1 / 3, 0))
    assert scores.f1 == pytest.approx((4 / 5, 2 / 5, 0))
    assert scores.ap == pytest.approx((2 / 3, 1 / 4, 0))
    assert "0.667" in str(scores)


def test_halves_match_once():
    assert match_scores(np.array([1, 1]), np.array([1, 2]), [0.5]).tp == (1,)


def test_nothing_and_huge_ids():
    none, some = np.zeros((3, 3), np.uint64), np.full((3, 3), 2**63, np.uint64)
    assert match_scores(none, none).ap == (0, 0, 0)
    assert match_scores(some, none).recall == (0, 0, 0)
    assert match_scores(some, some).ap == (1, 1, 1)
    assert match_scores(np.zeros((0, 4), int), np.zeros((0, 4), int)).n_truth == 0


def test_wrong_input_is_named():
    labels = np.ones((2, 2), int)
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        match_scores(labels, np.ones((2, 3), int))
    with pytest.raises(InputError, match="float64"):
        match_scores(labels, labels.astype(float))
    with pytest.raises(InputError, match="-1"):
        match_scores(labels, -labels)
    with pytest.raises(InputError, match="thresholds"):
        match_scores(labels, labels, [0])
