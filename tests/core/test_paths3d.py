"""Paths in a volume against a slow reference that takes every step; windows against the whole field."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.paths import LOST, NOWHERE, widened
from spatialdata_segment.core.paths3d import LONGEST, flow_field, follow, steps_of
from spatialdata_segment.core.paths3d_kernel import NEAR, SAFE

CLOSED, OPEN = np.zeros((3, 2), np.int64), np.ones((3, 2), np.int64)
UNIT, ZERO, FULL = 4096, 1 << 15, 1 << 16
STEPS = {".": 0, ">": 1, "<": -1, "?": np.nan}


def draw(row, axis=2):
    """Return a field of one row along an axis, from its signs."""
    shape = np.ones(3, int)
    shape[axis] = len(row)
    flows = np.zeros((3, *shape))
    flows[axis] = np.reshape([5 * STEPS[c] for c in row], shape)
    return flow_field(flows, np.reshape([np.nan if c == "?" else float(c != ".") for c in row], shape), 0.5)


def slow_step(steps, at, last):
    """Return the steps from positions, in 1/4096 px, and whether they are known."""
    whole, part = np.divmod(at, UNIT)
    above = part[:, 0] << 4
    weights, value, gap = {(): np.full(len(at), FULL)}, np.zeros(at.shape, np.int64), np.zeros(len(at), np.int64)
    weights = {(0,): FULL - above, (1,): above}
    for axis in (1, 2):
        for corner, weight in list(weights.items()):
            more = weight * part[:, axis] >> 12
            weights[(*corner, 0)], weights[(*corner, 1)] = weight - more, more
            del weights[corner]
    for corner, weight in weights.items():
        here = steps[tuple(np.minimum(whole + corner, last // UNIT).T)]
        value += weight[:, None] * np.nan_to_num(np.rint(here * np.float32(UNIT)) + ZERO).astype(np.int64)
        gap += weight * np.isnan(here).any(axis=1)
    return (value + FULL // 2 >> 16) - ZERO, gap == 0


def slow_follow(field, inside, edge, steps, near=NEAR):
    """Take all steps; a path that goes to and fro does so from then on."""
    flows, last = steps_of(field), (np.array(field.shape) - 1) * UNIT
    at = np.argwhere(inside) * UNIT
    lost, turns, before = np.zeros(len(at), bool), np.zeros(len(at), bool), np.full(at.shape, -UNIT)
    for _ in range(steps):
        step, known = slow_step(flows, at, last)
        new = at + step
        out = ~known | (edge[:, 0].astype(bool) & (new < 0)).any(axis=1)
        out |= (edge[:, 1].astype(bool) & (new >= last)).any(axis=1)
        lost |= out & ~turns
        new = np.where(turns[:, None], before, np.clip(new, 0, last))
        inner = [((p % UNIT >= SAFE) & (p % UNIT < UNIT - SAFE)).all(axis=1) for p in (at, new)]
        turns |= (abs(new - before) <= near).all(axis=1) & inner[0] & inner[1] & ~lost
        at, before = np.where(lost[:, None], at, new), at
    ends = np.full(field.shape, NOWHERE)
    ends[inside] = np.where(lost, LOST, np.ravel_multi_index(tuple((at // UNIT).T), field.shape))
    return ends


def random_flows(shape, seed, kind, gaps, unknown):
    """Flows, 1 a px, that flow together, whirl, jump to and fro, or are noise; and where paths start (1, 0 or NaN)."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        flows = rng.uniform(-LONGEST, LONGEST, (3, *shape))
    elif kind == "units":
        flows = rng.integers(-1, 2, (3, *shape)).astype(float)
    elif kind == "halves":
        flows = rng.integers(-4, 5, (3, *shape)) / 2
    else:
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), 2, mode="nearest")
        flows = np.stack(np.gradient(np.pad(smooth, 1, mode="edge")))[:, 1:-1, 1:-1, 1:-1]
        flows = flows / np.maximum(np.linalg.norm(flows, axis=0), 1e-9)
        if kind == "whirls":
            flows = flows[[0, 2, 1]] * np.array([1, 1, -1]).reshape(3, 1, 1, 1)
    inside = (rng.random(shape) >= gaps).astype(float)
    if unknown:
        z, y, x = (int(rng.integers(n)) for n in shape)
        inside[z : z + 2, y : y + 3, x : x + 4] = np.nan
    return flows.astype(np.float32), inside


KINDS = "sinks", "whirls", "halves", "units", "noise"
shapes = st.tuples(st.integers(1, 14), st.integers(1, 16), st.integers(1, 18))
edges = st.lists(st.integers(0, 1), min_size=6, max_size=6).map(lambda e: np.array(e, np.int64).reshape(3, 2))
made_flows = st.builds(
    random_flows, shapes, st.integers(0, 2**16), st.sampled_from(KINDS), st.sampled_from([0.0, 0.1, 0.7]), st.booleans()
)


@pytest.mark.parametrize("axis", range(3))
def test_a_path_ends_where_the_flow_is_zero(axis):
    ends = follow(draw(">>>.<<<", axis), CLOSED, 10)
    assert ends.reshape(-1).tolist() == [3, 3, 3, NOWHERE, 3, 3, 3]


@pytest.mark.parametrize(("steps", "end"), [(1, 1), (2, 2), (3, 3), (4, 4), (200, 4)])
def test_steps_are_counted(steps, end):
    assert follow(draw(">>>>."), CLOSED, steps)[0, 0, 0] == end


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("row", "end"), [(">>>", 2), ("<<<", 0)])
def test_paths_stop_at_the_end_of_the_volume_and_leave_a_window(row, end, axis):
    assert (follow(draw(row, axis), CLOSED, 9) == end).all()
    assert (follow(draw(row, axis), OPEN, 9) == LOST).all()


@pytest.mark.parametrize("axis", range(3))
def test_paths_into_the_unknown_are_lost(axis):
    ends = follow(draw(">>?..<", axis), CLOSED, 9)
    assert ends.reshape(-1).tolist() == [LOST, LOST, LOST, NOWHERE, NOWHERE, 4]


def test_a_path_without_flow_ends_where_it_starts():
    field = flow_field(np.zeros((3, 1, 1, 3)), np.array([[[1.0, 0, 1]]]), 0.5)
    assert follow(field, CLOSED, 9).tolist() == [[[0, NOWHERE, 2]]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_field_is_zero_outside_and_cut(dtype):
    flows = np.zeros((3, 1, 1, 6), dtype)
    flows[0, 0, 0] = [5, 50, -50, 5, 5, 5]
    flows[1, 0, 0] = [-2.5, 0, 7, 5, 1, np.nan]
    inside = np.array([[[1, 2, 3, 0.5, np.nan, 1]]], dtype)
    expected = [[1, -0.5, 0], [3, 0, 0], [-3, 1.4, 0], [0, 0, 0], [np.nan] * 3, [np.nan] * 3]
    np.testing.assert_allclose(steps_of(flow_field(flows, inside, 0.5))[0, 0], expected, atol=1 / 4096)


@settings(deadline=None, max_examples=60)
@given(made_flows, edges, st.sampled_from([1, 2, 3, 20, 201]))
def test_as_the_slow_one(made, edge, steps):
    """Stopping where a path rests, or goes to and fro, changes nothing."""
    flows, inside = made
    field = flow_field(flows, inside, 0.5, 1.0)
    field.flags.writeable = False
    assert np.array_equal(follow(field, edge, steps), slow_follow(field, inside != 0, edge, steps))


@st.composite
def windows(draw):
    """Flows known everywhere, and a window of them: what it shows, where it begins, which sides are open."""
    flows, inside = draw(st.builds(
        random_flows, shapes, st.integers(0, 2**16), st.sampled_from(KINDS), st.sampled_from([0.0, 0.1, 0.7]),
        st.just(False),
    ))  # fmt: skip
    ends = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in inside.shape]
    ends = [(a // 2, n - (n - b) // 2) for (a, b), n in zip(ends, inside.shape, strict=True)]
    inner = tuple(slice(a, b) for a, b in ends)
    part = inside[inner].copy()
    if draw(st.booleans()):
        z, y, x = (draw(st.integers(0, n - 1)) for n in part.shape)
        part[z : z + draw(st.integers(1, 4)), y : y + draw(st.integers(1, 5)), x : x + draw(st.integers(1, 5))] = np.nan
    edge = np.array([[a > 0, b < n] for (a, b), n in zip(ends, inside.shape, strict=True)], np.int64)
    field, window = flow_field(flows, inside, 0.5, 1.0), flow_field(flows[:, *inner], part, 0.5, 1.0)
    return field, inside != 0, window, np.array([a for a, _ in ends]), edge


@settings(deadline=None, max_examples=60)
@given(windows(), st.sampled_from([1, 5, 60]))
def test_paths_of_a_window_are_those_of_the_whole(made, steps):
    field, _, window, start, edge = made
    ends = follow(window, edge, steps)
    whole = follow(field, CLOSED, steps)[tuple(slice(s, s + n) for s, n in zip(start, ends.shape, strict=True))]
    at = np.stack(np.unravel_index(ends[ends >= 0], ends.shape), axis=1) + start
    assert np.array_equal(whole[ends >= 0], np.ravel_multi_index(tuple(at.T), field.shape))
    assert (whole[ends == NOWHERE] == NOWHERE).all()


def test_a_path_that_goes_to_and_fro_is_not_followed_any_longer():
    """Flows that lead over a sink, each time a little less far: the ends are those of all steps."""
    shape = 9, 10, 11
    flows = np.stack([c - at for c, at in zip((4.3, 4.6, 5.4), np.indices(shape), strict=True)])
    flows *= 1.9 / np.maximum(1.9, abs(flows).max(axis=0))
    field, inside = flow_field(1.9 * flows, np.ones(shape), 0.5, 1.0), np.ones(shape, bool)
    for steps in (200, 201):
        assert np.array_equal(follow(field, CLOSED, steps), slow_follow(field, inside, CLOSED, steps, near=0))


@settings(deadline=None, max_examples=30)
@given(made_flows, edges, st.data())
def test_some_starts(made, edge, data):
    """The paths of a part of the voxels are those of all, there."""
    flows, inside = made
    field = flow_field(flows, inside, 0.5, 1.0)
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in inside.shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    assert np.array_equal(follow(field, edge, 9, box), follow(field, edge, 9)[box.slices])


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(0, 2**16), st.sampled_from([0, 1, 2, 10]), st.sampled_from([0.0, 0.01, 0.2]))
def test_widened_as_scipy(shape, seed, radius, share):
    mask = np.random.default_rng(seed).random(shape) < share
    expected = ndimage.maximum_filter(mask, 2 * radius + 1, mode="constant")
    assert np.array_equal(widened(mask, radius), expected)
