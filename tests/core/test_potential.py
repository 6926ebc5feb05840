"""The growth against a slow one that states its rule, and windows against the whole image."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.potential import NEVER, UNIT, grow, ridges
from spatialdata_segment.core.unresolved import UNRESOLVED, complete

fields = st.builds(
    lambda shape, seed, levels, walls, nuclei: _field(shape, seed, levels, walls, nuclei),
    st.tuples(st.sampled_from([1, 1, 1, 4]), st.integers(1, 22), st.integers(1, 22)),
    st.integers(0, 2**16), st.sampled_from([1, 2, 10]), st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([0.0, 0.01, 0.05, 0.3]),
)  # fmt: skip


def _field(shape, seed, levels, walls, nuclei):
    """Few levels: equal costs everywhere. Seeds lie on walls too, and in pieces."""
    rng = np.random.default_rng(seed)
    slowness = (UNIT * rng.integers(1, levels + 1, shape)).astype(np.uint16)
    slowness[rng.random(shape) < walls] = 0
    seeds = np.where(rng.random(shape) < nuclei, rng.integers(1, 6, shape), 0).astype(np.int32)
    return slowness, seeds


def _neighbours(p, shape):
    for step in np.ndindex(3, 3, 3):
        d = np.array(step) - 1
        q = tuple(int(i) for i in p + d)
        if d.any() and all(0 <= i < n for i, n in zip(q, shape, strict=True)):
            yield q, int(3 + 2 * np.abs(d).sum())


def slow_grow(slowness, seeds):
    """Dijkstra in the total order (cost, label)."""
    best = {tuple(int(i) for i in p): (0, int(seeds[tuple(p)])) for p in np.argwhere(seeds)}
    heap = [(*value, p) for p, value in best.items()]
    heapq.heapify(heap)
    labels = np.zeros(seeds.shape, np.int32)
    while heap:
        cost, label, p = heapq.heappop(heap)
        if best[p] != (cost, label):
            continue
        labels[p] = label
        for q, length in _neighbours(p, seeds.shape):
            if slowness[q]:
                there = (cost + length * (max(int(slowness[p]), UNIT) + int(slowness[q])), label)
                if there < best.get(q, (np.inf, 0)):
                    best[q] = there
                    heapq.heappush(heap, (*there, q))
    return labels


def slow_ridges(level, owner, start):
    heap = [(0 if owner[tuple(p)] > 0 else int(level[tuple(p)]), tuple(int(i) for i in p)) for p in np.argwhere(start)]
    best = {p: height for height, p in heap}
    heapq.heapify(heap)
    while heap:
        height, p = heapq.heappop(heap)
        for q, _ in _neighbours(p, level.shape):
            there = max(height, int(level[q]))
            mine = owner[q] and (owner[q] == owner[p] or owner[p] == UNRESOLVED)
            if mine and there < best.get(q, NEVER):
                best[q] = there
                heapq.heappush(heap, (there, q))
    out = np.full(level.shape, NEVER, np.uint16)
    for p, height in best.items():
        out[p] = height
    return out


def _window(shape, data):
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    box = Box(*(tuple(e[k] for e in ends) for k in (0, 1)))
    window = Window(box, box, Box.whole(shape))
    return window, np.column_stack([window.open_low, window.open_high]).astype(np.int64)


def test_growth_is_slow_on_the_ridge():
    slowness = np.full((1, 1, 11), UNIT, np.uint16)
    slowness[0, 0, 7] = 10 * UNIT
    seeds = np.zeros((1, 1, 11), np.int32)
    seeds[0, 0, [0, 10]] = 1, 2
    assert grow(slowness, seeds)[0, 0].tolist() == [1] * 7 + [2] * 4


def test_tie_goes_to_the_lower_label():
    seeds = np.zeros((1, 1, 5), np.int32)
    seeds[0, 0, [0, 4]] = 2, 1
    assert grow(np.full((1, 1, 5), UNIT, np.uint16), seeds)[0, 0].tolist() == [2, 2, 1, 1, 1]


def test_walls_stop_growth_but_not_seeds():
    slowness = np.array([[[UNIT, 0, 0, UNIT, 0, UNIT]]], np.uint16)
    seeds = np.array([[[0, 0, 3, 0, 0, 0]]], np.int32)
    assert grow(slowness, seeds)[0, 0].tolist() == [0, 0, 3, 3, 0, 0]


def test_what_comes_from_outside_pays_for_its_step():
    """The seed is a pixel from the open side, the unseen at least one from the first pixel."""
    slowness = np.full((1, 1, 6), UNIT, np.uint16)
    seeds = np.zeros((1, 1, 6), np.int32)
    seeds[0, 0, 2] = 1
    edge = np.array([[0, 0], [0, 0], [1, 0]])
    labels = grow(slowness, seeds, edge)
    assert labels[0, 0].tolist() == [UNRESOLVED, 1, 1, 1, 1, 1]
    assert not complete(labels, 1).any()


def test_ridge_is_the_lowest_way_over():
    level = np.array([[[1, 9, 1, 5, 2], [1, 7, 1, 9, 9]]], np.uint8)
    start = np.zeros(level.shape, bool)
    start[0, 0, 0] = True
    owner = np.ones(level.shape, np.int32)
    assert ridges(level, owner, start)[0].tolist() == [[0, 9, 7, 7, 7], [1, 7, 7, 9, 9]]
    owner[0, 1, 1] = 2
    assert ridges(level, owner, start)[0].tolist() == [[0, 9, 9, 9, 9], [1, NEVER, 9, 9, 9]]
    assert (ridges(level, owner, np.zeros(level.shape, bool)) == NEVER).all()


@settings(deadline=None, max_examples=80)
@given(fields)
def test_as_the_slow_one(field):
    slowness, seeds = field
    labels = grow(slowness, seeds)
    assert np.array_equal(labels, slow_grow(slowness, seeds))
    assert np.array_equal(labels[seeds > 0], seeds[seeds > 0])
    assert complete(labels, 5).all()


@settings(deadline=None, max_examples=60)
@given(fields)
def test_ridges_as_the_slow_ones(field):
    slowness, seeds = field
    level, owner = (slowness % 251).astype(np.uint8), grow(slowness, seeds)
    owner[owner == 3] = UNRESOLVED
    start = (seeds > 0) & (owner != 0)
    assert np.array_equal(ridges(level, owner, start), slow_ridges(level, owner, start))


@settings(deadline=None, max_examples=150)
@given(fields, st.data())
def test_what_a_window_is_sure_of_holds_in_the_whole(field, data):
    slowness, seeds = field
    window, edge = _window(seeds.shape, data)
    truth = grow(slowness, seeds)[window.box.slices]
    labels = grow(slowness[window.box.slices], seeds[window.box.slices], edge)
    sure = labels != UNRESOLVED
    assert np.array_equal(labels[sure], truth[sure])
    assert window.is_whole <= bool(sure.all())


@settings(deadline=None, max_examples=80)
@given(fields, st.data())
def test_ridges_of_a_window_lie_on_both_sides_of_the_true_ones(field, data):
    slowness, seeds = field
    level, owner = (slowness % 251).astype(np.uint8), grow(slowness, seeds)
    window, edge = _window(seeds.shape, data)
    here = window.box.slices
    truth = ridges(level, owner, seeds > 0)[here]
    seen = grow(slowness[here], seeds[here], edge)
    sure = seen != UNRESOLVED
    assert (ridges(level[here], seen, (seeds[here] > 0) | ~sure) <= truth)[sure].all()
    assert (ridges(level[here], seen, seeds[here] > 0) >= truth)[sure].all()


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_grow(n):
    shape = (1, 2, n)
    assert not grow(np.full(shape, UNIT, np.uint16), np.zeros(shape, np.int32)).any()
    assert complete(np.zeros(shape, np.int32), 0).size == 0


def test_inputs_are_not_modified():
    slowness, seeds = _field((1, 9, 9), 3, 2, 0.1, 0.1)
    for array in (slowness, seeds):
        array.flags.writeable = False
    grow(slowness, seeds, np.ones((3, 2), np.int64))
