"""The flood against a slow one that states its rule, and windows against the whole image."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.morphology import disk

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.distance import squared_distance, unknown
from spatialdata_segment.core.flood import flood, peaks, spaced_peaks
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.unresolved import UNRESOLVED

CLOSED = np.zeros((3, 2), np.int64)
NOTHING = np.zeros((0, 3), np.int64)

masks = st.builds(
    lambda shape, seed, smooth, share: _mask(shape, seed, smooth, share),
    st.tuples(st.sampled_from([1, 1, 1, 5]), st.integers(1, 24), st.integers(1, 24)),
    st.integers(0, 2**16), st.sampled_from([0, 1, 2]), st.sampled_from([0.2, 0.5, 0.8, 1.0]),
)  # fmt: skip


def _mask(shape, seed, smooth, share):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), smooth)
    return np.argsort(np.argsort(noise.ravel())).reshape(shape) < share * noise.size


def _draw(*rows):
    return np.array([[c == "#" for c in row] for row in rows])[None]


def _flooded(mask, radius=2):
    squared = squared_distance(mask)
    found, unsure = peaks(squared, np.zeros(mask.shape, bool), CLOSED, radius)
    assert len(unsure) == 0
    return found, *flood(squared, found, np.zeros(mask.shape, bool), unsure)


def slow_peaks(squared, radius):
    """Pixels than which nothing that they see within the radius is greater, or as great and earlier."""
    at = np.argwhere(squared > 0)
    found = []
    for p in at:
        near = at[(((at - p) ** 2).sum(1) <= radius**2) & (at != p).any(1)]
        before = [(-squared[tuple(q)], *q) < (-squared[tuple(p)], *p) and _sees(squared, p, q) for q in near]
        if not any(before):
            found.append(p)
    return np.array(found, np.int64).reshape(-1, 3)


def _sees(squared, p, q):
    steps = np.abs(q - p).max()
    line = [p + (2 * (q - p) * t + steps) // (2 * steps) for t in range(1, steps)]
    return all(squared[tuple(c)] > 0 for c in line)


def slow_flood(squared, seeds):
    """Dijkstra in the total order (cost, seed)."""
    best = {tuple(s): (0, i) for i, s in enumerate(seeds, 1)}
    heap = [(0, i, tuple(s)) for i, s in enumerate(seeds, 1)]
    heapq.heapify(heap)
    labels = np.zeros(squared.shape, np.int32)
    while heap:
        cost, seed, p = heapq.heappop(heap)
        if best[p] != (cost, seed):
            continue
        labels[p] = seed
        for step in np.ndindex(3, 3, 3):
            d = np.array(step) - 1
            q = tuple(int(i) for i in p + d)
            if not d.any() or any(i < 0 or i >= n for i, n in zip(q, squared.shape, strict=True)) or squared[q] == 0:
                continue
            s = int(squared[q])
            there = (cost + int(3 + 2 * np.abs(d).sum()) * (max(1, (1 << 30) // s**2) if s < 1 << 15 else 1), seed)
            if there < best.get(q, (np.inf, 0)):
                best[q] = there
                heapq.heappush(heap, (*there, q))
    return labels


def test_two_discs_part_at_the_neck():
    mask = _draw(
        "............",
        ".####..####.",
        ".##########.",
        ".##########.",
        ".####..####.",
        "............",
    )
    found, labels, complete = _flooded(mask)
    assert len(found) == 2
    assert complete.all()
    assert labels[0, :, :6][mask[0, :, :6]].tolist() == [1] * 18
    assert labels[0, :, 6:][mask[0, :, 6:]].tolist() == [2] * 18


def test_peaks_do_not_see_through_the_background():
    mask = _draw("###.###", "###.###", "###.###")
    assert len(_flooded(mask, radius=9)[0]) == 2


def test_tie_goes_to_the_first_in_raster_order():
    found, labels, _ = _flooded(_draw("#" * 9, "." * 9), radius=20)
    assert found.tolist() == [[0, 0, 0]]
    squared = np.ones((1, 1, 5), np.int64)
    labels, _ = flood(squared, np.array([[0, 0, 0], [0, 0, 4]]), np.zeros((1, 1, 5), bool), NOTHING)
    assert labels[0, 0].tolist() == [1, 1, 1, 2, 2]


@settings(deadline=None, max_examples=60)
@given(masks, st.sampled_from([1, 2, 4]))
def test_as_the_slow_ones(mask, radius):
    squared = squared_distance(mask)
    found, labels, complete = _flooded(mask, radius)
    assert np.array_equal(found, slow_peaks(squared, radius))
    assert np.array_equal(labels, slow_flood(squared, found))
    assert complete.all()
    assert ((labels > 0) == mask).all()


@settings(deadline=None, max_examples=150)
@given(masks, st.sampled_from([1, 2, 4]), st.data())
def test_what_a_window_is_sure_of_holds_in_the_whole(mask, radius, data):
    """Resolved pixels and complete objects of a window are those of the whole image."""
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in mask.shape]
    box, image = Box(*(tuple(e[k] for e in ends) for k in (0, 1))), Box.whole(mask.shape)
    window = Window(box, box, image)
    squared = squared_distance(np.ascontiguousarray(mask[box.slices]))
    hidden = unknown(squared, window, (0, 0, 0))
    edge = np.column_stack([window.open_low, window.open_high]).astype(np.int64)
    seeds, unsure = peaks(squared, hidden, edge, radius)
    labels, complete = flood(squared, seeds, hidden, unsure)
    true_seeds, true_labels, _ = _flooded(mask, radius)
    number = {tuple(s): i for i, s in enumerate(true_seeds.tolist(), 1)}
    here = np.array([0, *(number[tuple(s)] for s in (seeds + box.start).tolist())])
    sure = labels != UNRESOLVED
    assert np.array_equal(here[labels[sure]], true_labels[box.slices][sure])
    for label in np.flatnonzero(complete) + 1:
        assert (labels == label).sum() == (true_labels == here[label]).sum()
    assert window.is_whole <= bool(sure.all())


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_flood(n):
    labels, complete = flood(np.zeros((1, 2, n), np.int64), NOTHING, np.zeros((1, 2, n), bool), NOTHING)
    assert not labels.any()
    assert len(complete) == 0


@pytest.mark.parametrize(("footprint", "spacing"), [(7, 8), (3, 9), (5, 1)])
def test_spaced_peaks_are_those_of_scikit_image(footprint, spacing):
    """Ridges of equal distances and ties included; but peaks at the border stay."""
    for seed in range(3):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((150, 160)), 4)
        mask = noise > np.median(noise)
        mask[40:60, 10:90] = True  # a bar: one long ridge
        squared = squared_distance(mask[None])
        found, unsure = spaced_peaks(
            squared, np.zeros(squared.shape, bool), np.zeros((3, 2), np.int64), footprint, spacing
        )
        expected = peak_local_max(
            np.sqrt(squared[0]), min_distance=spacing, footprint=disk(footprint), exclude_border=False
        )
        assert not len(unsure)
        assert found[:, 1:].tolist() == sorted(expected.tolist())
