"""Flows of shapes against a slow reference in numpy; float32 against float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.heat import flow_errors, label_flows, object_boxes
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.strategies import label_images


def draw(*rows):
    return np.array([[int(c) if c.isdigit() else 0 for c in row] for row in rows], np.int32)


def compact(labels):
    return np.unique(np.append(labels, 0), return_inverse=True)[1][:-1].reshape(labels.shape).astype(np.int32)


def slow_flows(labels):
    """Return the flows, and where they have a direction that is more than rounding."""
    flows, sure = np.zeros((2, *labels.shape)), np.zeros(labels.shape, bool)
    for label in np.unique(labels[labels != 0]):
        at = np.argwhere(labels == label)
        low, high = at.min(axis=0) - 1, at.max(axis=0) + 2
        inside = np.zeros(high - low, bool)
        inside[tuple((at - low).T)] = True
        centre = tuple(at[((at - at.mean(axis=0)) ** 2).sum(axis=1).argmin()] - low)
        heat = np.zeros(inside.shape)
        for _ in range(2 * sum(inside.shape)):
            heat[centre] += 1
            wide = np.pad(heat, 1)
            heat = sum(wide[a : a + heat.shape[0], b : b + heat.shape[1]] for a in range(3) for b in range(3)) / 9
            heat[~inside] = 0
        wide = np.pad(heat, 1)
        step = np.stack([wide[2:, 1:-1] - wide[:-2, 1:-1], wide[1:-1, 2:] - wide[1:-1, :-2]])
        length = np.sqrt((step**2).sum(axis=0))
        where = tuple(at.T)
        flows[:, *where] = (step / (length + 1e-60))[:, *(at - low).T]
        sure[where] = (length > 1e-6 * heat)[tuple((at - low).T)]
    return flows, sure


def errors_of(labels, flows, **options):
    n = int(labels.max(initial=0))
    return flow_errors(labels, object_boxes(labels, n), flows, **options)


@pytest.fixture(scope="module")
def cells():
    tissue = Tissue((180, 200), seed=3, cell_diameter=18)
    return compact(tissue.block(Box.whole(tissue.shape)).cells)


def noisy(labels, seed, noise=0.5):
    rng = np.random.default_rng(seed)
    return (label_flows(labels) + rng.normal(0, noise, (2, *labels.shape))).astype(np.float32)


def test_flows_of_a_line_lead_to_its_middle():
    flows = label_flows(draw(".11111111."))
    middle = 4  # the first of the two pixels nearest the mean
    assert flows[1, 0].tolist() == [0, 1, 1, 1, flows[1, 0, middle], -1, -1, -1, -1, 0]
    assert not flows[0].any()


def test_touching_objects_keep_their_heat():
    """What is beside an object makes no difference, and labels need not be 1..n."""
    alone, both = draw("1111...", "1111...", "1111..."), draw("1111333", "1111333", "1111333")
    assert np.array_equal(label_flows(both)[:, :, :4], label_flows(alone)[:, :, :4])
    assert np.array_equal(label_flows(both.astype(np.uint64) * 2**40), label_flows(both))


def test_a_pixel_alone_has_no_flow():
    assert not label_flows(draw("...", ".1.", "...")).any()


def test_of_two_pieces_only_one_is_warm():
    flows = label_flows(draw("111...1", "111...1", "111...1"))
    assert np.hypot(*flows)[:, :3].sum() > 7
    assert not flows[:, :, 6].any()


def test_boxes():
    boxes = object_boxes(draw("..1.", ".31.", "...."), 3)
    assert boxes[[0, 2]].tolist() == [[0, 2, 2, 3], [1, 2, 1, 2]]
    assert boxes[1, 0] >= boxes[1, 1]
    assert object_boxes(np.zeros((3, 4), np.int32), 0).shape == (0, 4)


def test_nothing_to_warm():
    assert not label_flows(np.zeros((4, 5), np.uint16)).any()
    assert label_flows(np.ones((1, 1), np.uint8)).shape == (2, 1, 1)
    assert len(errors_of(np.zeros((3, 3), np.int32), np.zeros((2, 3, 3), np.float32))) == 0


@settings(deadline=None, max_examples=30)
@given(label_images(min_side=1, max_side=32))
def test_flows_as_the_slow_ones(labels):
    labels.flags.writeable = False
    flows, (expected, sure) = label_flows(labels), slow_flows(labels)
    assert flows.dtype == np.float32
    np.testing.assert_allclose(flows[:, sure], expected[:, sure], atol=2e-6)
    assert not flows[:, labels == 0].any()
    length = np.hypot(*flows)
    assert ((length < 1 + 1e-5) & (np.isclose(length, 1) | (length == 0))).all()


@settings(deadline=None, max_examples=30)
@given(label_images(min_side=1, max_side=32), st.integers(0, 2**16))
def test_errors_as_the_slow_ones(labels, seed):
    """What has no direction but that of rounding may say anything: it counts for 4 at most."""
    labels = compact(labels)
    flows = noisy(labels, seed)
    expected, sure = slow_flows(labels)
    squared, areas = ((expected - flows) ** 2).sum(axis=0), np.bincount(labels.reshape(-1))[1:]
    means = np.bincount(labels.reshape(-1), squared.reshape(-1))[1:] / areas
    unsure = np.bincount(labels.reshape(-1), (~sure * (1 + np.hypot(*flows)) ** 2).reshape(-1))[1:] / areas
    assert (np.abs(errors_of(labels, flows, exact=True) - means) <= 1e-6 + unsure).all()
    assert (np.abs(errors_of(labels, flows) - means) <= 1e-3 + unsure).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_half_the_precision_decides_alike(cells, seed):
    flows = noisy(cells, seed, 0.45)
    exact, fast = errors_of(cells, flows, exact=True), errors_of(cells, flows)
    assert 0.2 < (exact > 0.4).mean() < 0.8
    assert np.abs(exact - fast).max() < 1e-3
    assert np.array_equal(exact > 0.4, fast > 0.4)


@pytest.mark.parametrize(("width", "length"), [(5, 200), (9, 300), (2, 120)])
def test_long_objects_do_not_run_cold(width, length):
    """What is left of the heat far from the centre is above the least number of float32."""
    labels = np.zeros((width + 2, length + 2), np.int32)
    labels[1:-1, 1:-1] = 1
    flows = noisy(labels, 0, 0.3)
    assert errors_of(labels, flows) == pytest.approx(errors_of(labels, flows, exact=True), abs=5e-3)


def test_errors_are_those_of_the_flows():
    labels = draw("1111111.", "1111111.", "111111..", "........", "..333333", ".33333..")
    flows = label_flows(labels)
    _, sure = slow_flows(labels)
    assert sure.sum() == (labels > 0).sum()
    assert errors_of(labels, flows) == pytest.approx([0, 0, 0], abs=1e-9)
    assert errors_of(labels, -flows) == pytest.approx([4, 0, 4], abs=1e-6)
    assert errors_of(labels, 0 * flows) == pytest.approx([1, 0, 1], abs=1e-6)


def test_empty_boxes_are_left_out():
    labels = draw("111.", "111.", "...2")
    boxes = object_boxes(labels, 2)
    boxes[0, 1] = 0
    assert flow_errors(labels, boxes, np.ones((2, 3, 4), np.float32)).tolist() == [0, 2]


@settings(deadline=None, max_examples=20)
@given(label_images(min_side=4, max_side=24), st.tuples(st.integers(0, 9), st.integers(0, 9)), st.integers(0, 99))
def test_where_the_window_begins_does_not_matter(labels, offset, seed):
    labels = compact(labels)
    flows = noisy(labels, seed)
    widths = [(o, 3) for o in offset]
    moved = np.pad(labels, widths)
    assert np.array_equal(label_flows(moved), np.pad(label_flows(labels), [(0, 0), *widths]))
    assert np.array_equal(errors_of(moved, np.pad(flows, [(0, 0), *widths])), errors_of(labels, flows))
