"""Seeds, their growth and what ends in them, against a slow reference that states the rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.sinks import FEW, GROWTH, MANY, NEAR, SEES, sinks

AROUND = np.ones((3, 3), bool)


def ends_of(counts):
    """Return ends such that as many paths as ``counts`` says end in each pixel, in raster order of the starts."""
    counts = np.asarray(counts)
    ends = np.full(counts.shape, -1, np.int32)
    where = np.repeat(np.arange(counts.size), counts.reshape(-1))
    ends.reshape(-1)[: len(where)] = where
    return ends


def on_canvas(counts, shape=(20, 40)):
    """Put a few counts into the middle of an image that has room for the starts of all paths."""
    canvas = np.zeros(shape, int)
    counts = np.atleast_2d(counts)
    canvas[8 : 8 + counts.shape[0], 10 : 10 + counts.shape[1]] = counts
    return canvas


def slow_sinks(ends):
    counts = np.bincount(ends[ends >= 0], minlength=ends.size).reshape(ends.shape)
    most = ndimage.maximum_filter(counts, 2 * NEAR + 1, mode="constant")
    seeds = np.argwhere((counts > MANY) & (counts == most))
    grown = np.zeros(ends.shape, int)
    for k in sorted(range(len(seeds)), key=lambda k: (counts[tuple(seeds[k])], -k)):
        region = np.zeros(ends.shape, bool)
        region[tuple(seeds[k])] = True
        grown[ndimage.binary_dilation(region, AROUND, GROWTH, mask=counts > FEW)] = k + 1
    return np.where(ends >= 0, grown.reshape(-1)[np.maximum(ends, 0)], 0), seeds


def random_ends(shape, seed, n, spread, share):
    """Paths that end around a few points; from some pixels there are none."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, shape, (n, 2))
    nearest = ((np.indices(shape)[None] - centres[:, :, None, None]) ** 2).sum(axis=1).argmin(axis=0)
    at = centres[nearest] + rng.integers(-spread, spread + 1, (*shape, 2))
    at = np.clip(at, 0, np.array(shape) - 1)
    ends = at[..., 0] * shape[1] + at[..., 1]
    return np.where(rng.random(shape) < share, ends, -rng.integers(1, 3, shape)).astype(np.int32)


random = st.builds(
    random_ends, st.tuples(st.integers(1, 50), st.integers(1, 50)), st.integers(0, 2**16), st.integers(1, 12),
    st.integers(0, 6), st.sampled_from([1.0, 0.6]),
)  # fmt: skip


@pytest.mark.parametrize(("n", "found"), [(MANY, 0), (MANY + 1, 1)])
def test_a_seed_has_more_than_ten_paths(n, found):
    labels, seeds = sinks(ends_of(on_canvas(n)))
    assert seeds.tolist() == [[8, 10]] * found
    assert (labels > 0).sum() == n * found


def test_seeds_grow_into_pixels_with_more_than_two():
    counts = on_canvas([20, 3, 3, 2, 3])
    labels, _ = sinks(ends_of(counts))
    assert (labels > 0).sum() == 26


def test_seeds_grow_five_pixels():
    counts = on_canvas([20, 3, 3, 3, 3, 3, 3])
    labels, _ = sinks(ends_of(counts))
    assert (labels > 0).sum() == 20 + 5 * 3


def test_growth_goes_by_corners():
    counts = on_canvas([[20, 0], [0, 3]])
    labels, _ = sinks(ends_of(counts))
    assert (labels > 0).sum() == 23


def test_of_two_that_grow_over_each_other_the_one_with_more_paths_wins():
    counts = on_canvas([15, 3, 3, 16])
    labels, seeds = sinks(ends_of(counts))
    ends = ends_of(counts)
    assert len(seeds) == 2
    assert (labels[ends >= 0] == 2).all()


def test_ties_go_to_the_first_in_raster_order():
    counts = on_canvas([15, 3, 3, 15])
    labels, seeds = sinks(ends_of(counts))
    assert seeds.tolist() == [[8, 10], [8, 13]]
    assert set(labels[labels > 0]) == {1}
    labels, seeds = sinks(ends_of(on_canvas([15, 15])))
    assert len(seeds) == 2
    assert set(labels[labels > 0]) == {1}


def test_within_two_pixels_only_the_greatest_is_a_seed():
    assert sinks(ends_of(on_canvas([[15, 0, 16]])))[1].tolist() == [[8, 12]]
    assert sinks(ends_of(on_canvas([[15, 0, 0, 16]])))[1].tolist() == [[8, 10], [8, 13]]


def test_nothing():
    labels, seeds = sinks(np.full((4, 5), -1, np.int32))
    assert not labels.any()
    assert seeds.shape == (0, 2)


@settings(deadline=None, max_examples=120)
@given(random)
def test_as_the_slow_one(ends):
    ends.flags.writeable = False
    labels, seeds = sinks(ends)
    expected, places = slow_sinks(ends)
    assert np.array_equal(seeds, places)
    assert np.array_equal(labels, expected)


@settings(deadline=None, max_examples=60)
@given(random, st.data())
def test_far_ends_do_not_matter(ends, data):
    """What a path belongs to is decided by the ends within the distance that is said."""
    here = ends == ends.flat[data.draw(st.integers(0, ends.size - 1))]
    if ends[here][0] < 0:
        return
    at = np.stack(np.divmod(np.maximum(ends, 0), ends.shape[1]))
    far = (np.abs(at - at[:, here][:, :1, None]) > SEES).any(axis=0)
    owners = [_owner(np.where(hidden, -1, ends).astype(np.int32), here) for hidden in (False, far)]
    assert owners[0] == owners[1]


def _owner(ends, here):
    """Return the seed to which the paths of some pixels, which all end in one, lead."""
    labels, seeds = sinks(ends)
    (label,) = np.unique(labels[here])
    return seeds[label - 1].tolist() if label else None


@settings(deadline=None, max_examples=40)
@given(random, st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_where_the_window_begins_does_not_matter(ends, offset):
    labels, seeds = sinks(ends)
    shape = tuple(n + o + 7 for n, o in zip(ends.shape, offset, strict=True))
    y, x = np.divmod(ends, ends.shape[1])
    moved = np.full(shape, -1, np.int32)
    inner = np.s_[offset[0] : offset[0] + ends.shape[0], offset[1] : offset[1] + ends.shape[1]]
    moved[inner] = np.where(ends >= 0, (y + offset[0]) * shape[1] + x + offset[1], -1)
    found, places = sinks(moved)
    assert np.array_equal(found[inner], labels)
    assert np.array_equal(places, seeds + offset)
