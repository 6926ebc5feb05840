"""Paths against a slow reference that takes every step; windows against the whole field."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.paths import LONGEST, LOST, NOWHERE, flow_field, follow, reached, widened

CLOSED, OPEN = np.zeros((2, 2), np.int64), np.ones((2, 2), np.int64)
UNIT = 4096
STEPS = {".": (0, 0), ">": (0, 1), "<": (0, -1), "v": (1, 0), "^": (-1, 0), "?": (np.nan, np.nan)}


def draw(*rows):
    return np.array([[STEPS[c] for c in row] for row in rows], np.float32)


def slow_paths(field, edge, steps):
    """Yield after every step where each path is, in 1/4096 px, and which are lost; none is left out."""
    height, width = field.shape[:2]
    at = np.argwhere((field != 0).any(axis=2)) * UNIT
    last = np.array([height - 1, width - 1]) * UNIT
    lost = np.zeros(len(at), bool)
    yield at, lost
    for _ in range(steps):
        low = at // UNIT
        high = np.minimum(low + 1, last // UNIT)
        part = (at % UNIT).astype(np.float32) / np.float32(UNIT)
        v, u = part[:, :1], part[:, 1:]
        w11 = v * u
        w01, w10 = u - w11, v - w11
        w00 = (np.float32(1) - v) - w01
        corners = [field[a[:, 0], b[:, 1]] for a in (low, high) for b in (low, high)]
        step = ((corners[0] * w00 + corners[1] * w01) + corners[2] * w10) + corners[3] * w11
        lost = lost | np.isnan(step).any(axis=1)
        new = at + np.rint(np.nan_to_num(step) * np.float32(UNIT)).astype(np.int64)
        for axis in range(2):
            lost |= bool(edge[axis, 0]) & (new[:, axis] < 0)
            lost |= bool(edge[axis, 1]) & (new[:, axis] >= last[axis])
        at = np.where(lost[:, None], at, np.clip(new, 0, last))
        yield at, lost


def slow_follow(field, edge, steps):
    *_, (at, lost) = slow_paths(field, edge, steps)
    ends = np.full(field.shape[:2], NOWHERE)
    ends[(field != 0).any(axis=2)] = np.where(lost, LOST, at[:, 0] // UNIT * field.shape[1] + at[:, 1] // UNIT)
    return ends


def random_field(shape, seed, kind, gaps, unknown):
    """Fields that flow together, whirl, jump to and fro, or are noise; parts are 0 or not known."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        field = rng.uniform(-LONGEST, LONGEST, (*shape, 2))
    elif kind == "units":
        field = rng.integers(-1, 2, (*shape, 2)).astype(float)
    elif kind == "halves":
        field = rng.integers(-4, 5, (*shape, 2)) / 2
    else:
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), 2, mode="nearest")
        field = np.stack(np.gradient(np.pad(smooth, 1, mode="edge")), axis=2)[1:-1, 1:-1]
        field = field / np.maximum(np.linalg.norm(field, axis=2, keepdims=True), 1e-9)
        if kind == "whirls":
            field = field[..., ::-1] * (1, -1)
    field[rng.random(shape) < gaps] = 0
    if unknown:
        y, x = (int(rng.integers(n)) for n in shape)
        field[y : y + 3, x : x + 4] = np.nan
    return field.astype(np.float32)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 45))
edges = st.lists(st.integers(0, 1), min_size=4, max_size=4).map(lambda e: np.array(e, np.int64).reshape(2, 2))
fields = st.builds(
    random_field, shapes, st.integers(0, 2**16), st.sampled_from(["sinks", "whirls", "halves", "units", "noise"]),
    st.sampled_from([0.0, 0.1, 0.7]), st.booleans(),
)  # fmt: skip


def test_a_path_ends_where_the_flow_is_zero():
    ends = follow(draw(">>>.<<<"), CLOSED, 10)
    assert ends.tolist() == [[3, 3, 3, NOWHERE, 3, 3, 3]]


def test_a_path_turns():
    field = draw(
        ">>v..",
        "..v..",
        "..>>.",
    )  # fmt: skip
    assert follow(field, CLOSED, 10)[0, :2].tolist() == [14, 14]


@pytest.mark.parametrize(("steps", "end"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (200, 4)])
def test_steps_are_counted(steps, end):
    assert follow(draw(">>>>."), CLOSED, steps)[0, 0] == end


@pytest.mark.parametrize("steps", range(1, 8))
def test_to_and_fro_ends_where_the_last_step_does(steps):
    assert follow(draw("><"), CLOSED, steps).tolist() == [[steps % 2, 1 - steps % 2]]


@pytest.mark.parametrize(("rows", "end"), [((">>>",), 2), (("<<<",), 0), (("v", "v", "v"), 2), (("^", "^", "^"), 0)])
def test_paths_stop_at_the_end_of_the_image_and_leave_a_window(rows, end):
    assert (follow(draw(*rows), CLOSED, 9) == end).all()
    assert (follow(draw(*rows), OPEN, 9) == LOST).all()


def test_paths_into_the_unknown_are_lost():
    assert follow(draw(">>?..<"), CLOSED, 9).tolist() == [[LOST, LOST, LOST, NOWHERE, NOWHERE, 4]]


def test_steps_are_interpolated():
    """The step shrinks towards the middle of a pixel without flow: a path comes to rest before it."""
    field = np.zeros((1, 3, 2), np.float32)
    field[0, 0, 1] = 0.5
    assert follow(field, CLOSED, 1)[0, 0] == 0
    *_, (at, _) = slow_paths(field, CLOSED, 200)
    assert 0.99 * UNIT < at[0, 1] < UNIT
    assert follow(field, CLOSED, 200)[0, 0] == 0


def test_field_is_zero_outside_and_cut():
    flows = np.array([[[5, 50, -50, 5, 5]], [[-2.5, 0, 7, 5, np.nan]]], np.float32)
    inside = np.array([[1, 2, 3, 0.5, np.nan]], np.float32)
    expected = [[1, -0.5], [2, 0], [-2, 1.4], [0, 0], [np.nan, np.nan]]
    np.testing.assert_allclose(flow_field(flows, inside, 0.5)[0], np.array(expected, np.float32), rtol=1e-6)


@settings(deadline=None, max_examples=150)
@given(fields, edges, st.sampled_from([1, 2, 3, 20, 201]))
def test_as_the_slow_one(field, edge, steps):
    """Stopping where a path rests, or goes to and fro, changes nothing."""
    field.flags.writeable = False
    assert np.array_equal(follow(field, edge, steps), slow_follow(field, edge, steps))


@st.composite
def windows(draw):
    """A field known everywhere, and a window of it: what it shows, where it begins, which sides are open."""
    field = draw(st.builds(
        random_field, shapes, st.integers(0, 2**16), st.sampled_from(["sinks", "whirls", "halves", "units", "noise"]),
        st.sampled_from([0.0, 0.1, 0.7]), st.just(False),
    ))  # fmt: skip
    ends = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in field.shape[:2]]
    window = field[tuple(slice(a, b) for a, b in ends)].copy()
    if draw(st.booleans()):
        y, x = (draw(st.integers(0, n - 1)) for n in window.shape[:2])
        window[y : y + draw(st.integers(1, 9)), x : x + draw(st.integers(1, 9))] = np.nan
    edge = np.array([[a > 0, b < n] for (a, b), n in zip(ends, field.shape[:2], strict=True)], np.int64)
    return field, window, np.array([a for a, _ in ends]), edge


@settings(deadline=None, max_examples=150)
@given(windows(), st.sampled_from([1, 5, 60]))
def test_paths_of_a_window_are_those_of_the_whole(made, steps):
    field, window, start, edge = made
    ends = follow(window, edge, steps)
    whole = follow(field, CLOSED, steps)[tuple(slice(s, s + n) for s, n in zip(start, ends.shape, strict=True))]
    at = np.column_stack(np.divmod(ends[ends >= 0], ends.shape[1])) + start
    assert np.array_equal(whole[ends >= 0], at[:, 0] * field.shape[1] + at[:, 1])
    assert (whole[ends == NOWHERE] == NOWHERE).all()


@settings(deadline=None, max_examples=200)
@given(windows(), st.sampled_from([1, 5, 60]))
def test_paths_from_beyond_stay_where_they_are_expected(made, steps):
    """No path that was outside of the window, or where it knows nothing, is ever in a pixel that is not marked."""
    field, window, start, edge = made
    marked = reached(window, edge)
    shape = np.array(marked.shape)
    beyond = None
    for at, _ in slow_paths(field, CLOSED, steps):
        pixel = at // UNIT - start
        inside = ((pixel >= 0) & (pixel < shape)).all(axis=1)
        if beyond is None:
            beyond = ~inside
        here = pixel[inside & beyond]
        assert marked[here[:, 0], here[:, 1]].all()
        beyond = beyond | ~inside | _unknown(window, pixel, edge)
    assert marked.any() == bool(edge.any() or np.isnan(window).any())


def _unknown(window, pixel, edge):
    """Whether a step from a pixel needs what the window does not show."""
    out = np.zeros(len(pixel), bool)
    shape = np.array(window.shape[:2])
    for dy in (0, 1):
        for dx in (0, 1):
            at = pixel + np.array([dy, dx])
            at = np.where((at == shape) & (edge[:, 1] == 0), shape - 1, at)
            seen = ((at >= 0) & (at < shape)).all(axis=1)
            out |= ~seen
            out[seen] |= np.isnan(window[at[seen, 0], at[seen, 1]]).any(axis=1)
    return out


def test_marks_follow_the_flow_in_and_stay_out_against_it():
    edge = np.array([[0, 0], [1, 0]])
    assert reached(draw(">>>>.<<<<"), edge)[0].tolist() == [True] * 5 + [False] * 4
    assert reached(draw("<<<<.<<<<"), edge)[0].tolist() == [True] * 2 + [False] * 7
    assert not reached(draw(">>>>"), CLOSED).any()


def test_marks_around_the_unknown():
    """From a pixel whose neighbour is not known a path may go 2 px anywhere."""
    marked = reached(draw("..........", "....?.....", ".........."), CLOSED)
    assert marked[1].tolist() == [False] + [True] * 6 + [False] * 3
    assert not widened(marked, 0)[:, :1].any()


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 2**16), st.sampled_from([0, 1, 2, 10, 50]), st.sampled_from([0.0, 0.01, 0.2]))
def test_widened_as_scipy(shape, seed, radius, share):
    mask = np.random.default_rng(seed).random(shape) < share
    expected = ndimage.maximum_filter(mask, 2 * radius + 1, mode="constant")
    assert np.array_equal(widened(mask, radius), expected)


@settings(deadline=None, max_examples=30)
@given(fields, st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_where_the_window_begins_does_not_matter(field, offset):
    """A field within still surroundings gives the same paths wherever it lies."""
    margin = 4
    canvas = [np.zeros((*(n + 2 * margin + o for n, o in zip(field.shape[:2], at, strict=True)), 2), np.float32)
              for at in ((0, 0), offset)]  # fmt: skip
    found = []
    for image, at in zip(canvas, ((0, 0), offset), strict=True):
        inner = np.s_[
            at[0] + margin : at[0] + margin + field.shape[0], at[1] + margin : at[1] + margin + field.shape[1]
        ]
        image[inner] = field
        ends = follow(image, CLOSED, 50)
        y, x = np.divmod(ends, image.shape[1])
        found.append(np.where(ends >= 0, (y - at[0]) * 1000 + x - at[1], ends)[inner])
    assert np.array_equal(*found)
