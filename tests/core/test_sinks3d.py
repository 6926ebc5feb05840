"""Seeds in a volume, their growth and what ends in them, against a slow reference that states the rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.paths import LOST
from spatialdata_segment.core.sinks import FEW, GROWTH, MANY, NEAR
from spatialdata_segment.core.sinks3d import SEEN, counted, grow, take
from spatialdata_segment.core.unresolved import UNRESOLVED

AROUND = np.ones((3, 3, 3), bool)


def ends_of(counts):
    """Return ends such that as many paths as ``counts`` says end in each voxel, in raster order of the starts."""
    ends = np.full(counts.shape, -1, np.int32)
    where = np.repeat(np.arange(counts.size), counts.reshape(-1))
    ends.reshape(-1)[: len(where)] = where
    return ends


def on_canvas(row, axis):
    """Put a few counts along an axis into the middle of a volume."""
    canvas = np.zeros((16, 16, 16), int)
    part = canvas[8, 8, 4 : 4 + len(row)]
    part[:] = row
    return np.ascontiguousarray(np.moveaxis(canvas, 2, axis))


def sinks(ends):
    """Return the labels, the seeds and the voxels of each."""
    found, labels = grow(counted(ends, ends.shape)), ends.copy()
    areas = take(labels, found.labels, len(found.seeds))
    assert np.array_equal(areas, found.areas)
    return labels, found.seeds, areas


def slow_sinks(ends):
    counts = np.bincount(ends[ends >= 0], minlength=ends.size).reshape(ends.shape)
    most = ndimage.maximum_filter(counts, 2 * NEAR + 1, mode="constant")
    seeds = np.argwhere((counts > MANY) & (counts == most))
    grown = np.zeros(ends.shape, int)
    for k in sorted(range(len(seeds)), key=lambda k: (counts[tuple(seeds[k])], -k)):
        region = np.zeros(ends.shape, bool)
        region[tuple(seeds[k])] = True
        grown[ndimage.binary_dilation(region, AROUND, GROWTH, mask=counts > FEW)] = k + 1
    labels = np.where(ends >= 0, grown.reshape(-1)[np.maximum(ends, 0)], 0)
    return np.where(ends == LOST, UNRESOLVED, labels), seeds


def random_ends(shape, seed, n, spread, share):
    """Paths that end around a few points; from some voxels there are none."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, shape, (n, 3))
    nearest = ((np.indices(shape)[None] - centres[:, :, None, None, None]) ** 2).sum(axis=1).argmin(axis=0)
    at = np.clip(centres[nearest] + rng.integers(-spread, spread + 1, (*shape, 3)), 0, np.array(shape) - 1)
    ends = np.ravel_multi_index(tuple(np.moveaxis(at, 3, 0)), shape)
    return np.where(rng.random(shape) < share, ends, -rng.integers(1, 3, shape)).astype(np.int32)


random = st.builds(
    random_ends, st.tuples(st.integers(1, 14), st.integers(1, 20), st.integers(1, 24)), st.integers(0, 2**16),
    st.integers(1, 12), st.integers(0, 3), st.sampled_from([1.0, 0.6]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("row", "sizes"),
    [
        ([MANY], []), ([MANY + 1], [11]), ([20, 3, 3, 2, 3], [26]), ([20, 3, 3, 3, 3, 3, 3], [35]),
        ([15, 3, 3, 16], [0, 37]), ([15, 3, 3, 15], [36, 0]), ([15, 0, 16], [16]), ([15, 0, 0, 16], [15, 16]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("axis", range(3))
def test_rows(row, sizes, axis):
    """Seeds have more than 10 paths; they grow 5 voxels where more than 2 end; more paths win, then raster order."""
    assert sinks(ends_of(on_canvas(row, axis)))[2].tolist() == sizes


def test_nothing():
    labels, seeds, _ = sinks(np.full((3, 4, 5), -1, np.int32))
    assert not labels.any()
    assert seeds.shape == (0, 3)


@settings(deadline=None, max_examples=60)
@given(random)
def test_as_the_slow_one(ends):
    expected, places = slow_sinks(ends)
    labels, seeds, areas = sinks(ends)
    assert np.array_equal(seeds, places)
    assert np.array_equal(labels, expected)
    assert np.array_equal(areas, np.bincount(expected[expected > 0], minlength=len(places) + 1)[1:])


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**16), st.sampled_from([1, 3, 9]), st.tuples(*[st.integers(0, 30)] * 3))
def test_a_part_knows_its_own(seed, scale, corner):
    """Of a part of the counts, what has grown `SEEN` and more from its sides is that of the whole."""
    shape = 2 * SEEN + 4, 2 * SEEN + 30, 2 * SEEN + 30
    counts = np.random.default_rng(seed).integers(0, 2 + scale * np.random.default_rng(seed + 1).integers(1, 5), shape)
    counts = counts.astype(np.int32)
    start = np.minimum(corner, (4, 26, 26))
    outer = tuple(slice(a, a + 2 * SEEN + n) for a, n in zip(start, (0, 4, 4), strict=True))
    whole, part = grow(counts), grow(np.ascontiguousarray(counts[outer]))
    inner = (slice(SEEN, SEEN + 4),) * 3
    number = {tuple(p): k for k, p in enumerate(whole.seeds.tolist(), 1)}
    same = np.array([0, *(number.get(tuple(p), -1) for p in (part.seeds + start).tolist())])
    held = part.labels[inner]
    assert np.array_equal(same[held], whole.labels[outer][inner])
    ids = np.unique(held[held > 0])
    assert np.array_equal(part.areas[ids - 1], whole.areas[same[ids] - 1])
