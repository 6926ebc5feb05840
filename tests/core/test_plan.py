import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan, Window

shapes = st.one_of(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 40), st.integers(1, 90), st.integers(1, 90)),
)


@given(shapes, st.integers(1, 200_000), st.integers(0, 50))
def test_fewest_equal_cores_tile_the_image(shape, size, halo):
    plan = Plan.fewest(shape, size, (halo,) * len(shape))
    assert tuple(sum(c) for c in plan.chunks) == shape
    for sizes in plan.chunks:
        assert max(sizes) - min(sizes) <= 1
    assert max(plan.core(i).size for i in range(min(len(plan), 50))) <= size
    if size >= np.prod(shape):
        assert len(plan) == 1


def test_few_cores_are_wanted_and_thin_ones_are_not():
    assert Plan.fewest((1000, 1000), 250_000, (64, 64)).grid == (2, 2)
    assert Plan.fewest((4160, 5568), 2048 * 2048, (64, 64)).grid == (2, 3)
    rows, cols = Plan.fewest((100, 100_000), 1_000_000, (64, 64)).grid
    assert (rows, cols) == (1, 10)
    assert Plan.fewest((1, 7), 1, (0, 0)).grid == (1, 7)


def test_cores_windows_and_numbers_in_raster_order():
    plan = Plan((5, 7), ((2, 3), (4, 3)), (1, 9))
    assert plan.grid == (2, 2)
    assert [plan.core(i) for i in range(4)] == [
        Box((0, 0), (2, 4)), Box((0, 4), (2, 7)), Box((2, 0), (5, 4)), Box((2, 4), (5, 7)),
    ]  # fmt: skip
    assert plan.window(2) == Window(Box((1, 0), (5, 7)), plan.core(2), Box.whole((5, 7)))
    assert plan.window(0, (0, 1)).box == Box((0, 0), (2, 5))


@given(st.data())
def test_touched_cores_are_those_that_share_a_pixel(data):
    parts = st.lists(st.integers(1, 6), min_size=1, max_size=4)
    chunks = (tuple(data.draw(parts)), tuple(data.draw(parts)))
    plan = Plan(tuple(sum(c) for c in chunks), chunks, (0, 0))
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in plan.shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    wanted = [i for i in range(len(plan)) if plan.core(i).intersect(box).size]
    assert list(plan.touched(box)) == wanted


@pytest.fixture
def window():
    return Window(Box((0, 10), (20, 30)), Box((0, 12), (18, 28)), Box.whole((20, 100)))


def test_open_sides(window):
    assert window.open_low == (False, True)
    assert window.open_high == (False, True)
    assert not window.is_whole
    assert window.shrink((3, 4)) == Box((0, 14), (20, 26))


def test_clearance_counts_from_the_open_sides_only(window):
    bbox = np.array([[0, 10, 5, 12], [0, 13, 20, 25], [2, 20, 3, 30]])
    assert window.clearance(bbox).tolist() == [0, 3, 0]
    whole = Window(window.image, window.image, window.image)
    assert (whole.clearance(bbox) > 10**9).all()


@given(st.integers(20, 200), st.integers(20, 200), st.integers(1, 5), st.integers(1, 5), st.integers(0, 30))
def test_what_a_window_has_to_itself(height, width, rows, columns, halo):
    plan = Plan.fewest((height, width), -(-height // rows) * -(-width // columns), (halo, halo))
    held = np.zeros((height, width), int)
    for k in range(len(plan)):
        held[plan.window(k).box.slices] += 1
    for k in range(len(plan)):
        own = np.zeros(held.shape, bool)
        own[plan.window(k).own.slices] = True
        if min(min(c) for c in plan.chunks) >= halo:
            inside = np.zeros(held.shape, bool)
            inside[plan.window(k).box.slices] = True
            np.testing.assert_array_equal(own, inside & (held == 1))
