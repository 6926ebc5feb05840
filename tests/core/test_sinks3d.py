"""Seeds in a volume, their growth and what ends in them, against a slow reference that states the rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.paths import LOST
from spatialdata_segment.core.sinks import FEW, GROWTH, MANY, NEAR
from spatialdata_segment.core.sinks3d import sinks
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
    found = sinks(ends_of(on_canvas(row, axis)))
    assert found.areas.tolist() == sizes
    assert found.complete.all()


def test_nothing():
    found = sinks(np.full((3, 4, 5), -1, np.int32))
    assert not found.labels.any()
    assert found.seeds.shape == (0, 3)


@settings(deadline=None, max_examples=60)
@given(random)
def test_as_the_slow_one(ends):
    expected, places = slow_sinks(ends)
    found = sinks(ends.copy())
    assert np.array_equal(found.seeds, places)
    assert np.array_equal(found.labels, expected)
    assert np.array_equal(found.areas, np.bincount(expected[expected > 0], minlength=len(places) + 1)[1:])


@settings(deadline=None, max_examples=150)
@given(random, st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 60))
def test_what_more_paths_do_not_change(ends, seed, n, more):
    """Whatever number of paths ends in marked voxels besides: what is complete stays, what is 0 stays 0."""
    rng = np.random.default_rng(seed)
    marked = np.zeros(ends.shape, bool)
    for at in rng.integers(0, ends.shape, (n, 3)):
        marked[tuple(slice(a, a + int(k)) for a, k in zip(at, rng.integers(1, 4, 3), strict=True))] = True
    found = sinks(ends.copy(), marked.copy())
    places = np.flatnonzero(marked)
    wide = (ends.shape[0], ends.shape[1], ends.shape[2] + more)
    moved = np.where(ends >= 0, np.ravel_multi_index(np.unravel_index(np.maximum(ends, 0), ends.shape), wide), ends)
    beyond = np.ravel_multi_index(np.unravel_index(rng.choice(places, (*ends.shape[:2], more)), ends.shape), wide)
    beyond[rng.random(beyond.shape) < 0.5] = np.ravel_multi_index(np.unravel_index(places[0], ends.shape), wide)
    whole = sinks(np.concatenate([moved, beyond], axis=2).astype(np.int32))
    labels = whole.labels[:, :, : ends.shape[2]]
    number = {tuple(s): k for k, s in enumerate(whole.seeds.tolist(), 1)}
    for k in np.flatnonzero(found.complete) + 1:
        same = number[tuple(found.seeds[k - 1].tolist())]
        assert np.array_equal(found.labels == k, labels == same)
        assert found.areas[k - 1] == whole.areas[same - 1]
    assert not (labels[found.labels == 0] > 0).any()
