"""Ownership where two shards agree; where they do not, see ``tests/engine/test_adversarial.py``."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.core.seams import compose, decide
from spatialdata_segment.core.shards import Labels, ShardObjects, ShardResult, dense
from spatialdata_segment.testing import Tissue

PLANS = {
    "one": Plan((40, 50), ((40,), (50,)), (0, 0)),
    "columns": Plan((40, 50), ((40,), (20, 30)), (12, 12)),
    "nine": Plan((40, 50), ((9, 20, 11), (20, 5, 25)), (14, 14)),
    "rows, no object crosses": Plan((40, 50), ((20, 20), (50,)), (12, 0)),
}


@pytest.fixture(scope="module")
def truth():
    labels = Tissue((40, 50), seed=2, cell_diameter=8, density=0.9).block(Box.whole((40, 50))).cells
    labels = dense(labels)[0]
    assert labels.max() > 20
    assert max(s.stop - s.start for o in ndimage.find_objects(labels) for s in o) <= 12
    return labels


def cut(truth, plan):
    """Each shard's view of known labels, numbered its own way."""
    results = {}
    for i in range(len(plan)):
        window = plan.window(i)
        part, _ = dense(truth[window.box.slices][::-1].copy())
        labels = np.ascontiguousarray(part[::-1])
        results[i] = ShardResult(i, window, Labels(window.box, labels), ShardObjects.of(labels, None, window))
    return results


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_known_labels_are_put_together_again(truth, plan):
    results = cut(truth, plan)
    decisions = {i: decide(i, results) for i in results}
    ids, n = {}, 0
    for i, decision in decisions.items():
        kept = np.flatnonzero(decision.kept)
        ids[i] = np.zeros(len(decision.kept) + 1, np.int64)
        ids[i][kept + 1] = np.arange(n + 1, n + 1 + len(kept))
        n += len(kept)
    painted, contested = np.zeros(truth.shape, np.int64), 0
    for i in results:
        core = plan.core(i)
        versions = []
        for j, result in results.items():
            common = core.intersect(result.window.box)
            if common.size:
                versions.append((common, result.labels.read(common), ids[j]))
        painted[core.slices], conflicts = compose(core, versions)
        contested += conflicts
    assert n == truth.max()
    assert len(np.unique(np.stack([painted, truth]).reshape(2, -1), axis=1)[0]) == n + 1
    assert ((painted > 0) == (truth > 0)).all()
    assert contested == sum(d.twins + d.adopted for d in decisions.values()) == 0


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**16), plan=st.sampled_from(list(PLANS.values())), rate=st.sampled_from([0.0, 0.05, 0.3]))
def test_objects_known_by_their_digests_as_by_their_pixels(truth, seed, plan, rate):
    """Some shards lose an object, some see one smaller: the same decisions as without any digest."""
    rng = np.random.default_rng(seed)
    results = {}
    for i, result in cut(truth, plan).items():
        labels = result.labels.read(result.window.box).copy()
        for label in range(1, labels.max() + 1):
            kind = rng.random()
            if kind < rate:
                labels[labels == label] = 0
            elif kind < 2 * rate:
                labels[(labels == label) & ~ndimage.binary_erosion(labels == label)] = 0
        labels, _ = dense(labels)
        objects = ShardObjects.of(labels, None, result.window)
        results[i] = ShardResult(i, result.window, Labels(result.window.box, labels), objects)
    unlike = {}
    for i, result in results.items():
        digest = np.arange(len(result.objects), dtype=np.uint64) + np.uint64(1000 * i)
        unlike[i] = replace(result, objects=replace(result.objects, digest=digest))
    for i in results:
        fast, slow = decide(i, results), decide(i, unlike)
        np.testing.assert_array_equal(fast.kept, slow.kept)
        np.testing.assert_array_equal(fast.overlaps, slow.overlaps)
        assert (fast.twins, fast.adopted) == (slow.twins, slow.adopted)


def test_shard_without_objects():
    plan = PLANS["columns"]
    results = cut(np.zeros((40, 50), int), plan)
    assert len(decide(0, results).kept) == 0
    nothing = plan.core(0), np.zeros((40, 20), np.int32), np.zeros(1, int)
    painted, contested = compose(Box((0, 0), (40, 20)), [nothing])
    assert not painted.any()
    assert contested == 0
