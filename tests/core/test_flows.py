"""From maps to objects: drawn cells come back, what is wrong has a reason, windows agree with the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.flows import CONTEXT, FlowRules, decode_flows
from spatialdata_segment.core.heat import label_flows
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.paths import flow_field, follow
from spatialdata_segment.core.resize import nearest
from spatialdata_segment.core.sinks import sinks
from spatialdata_segment.core.unresolved import UNRESOLVED
from spatialdata_segment.testing import Tissue, match_scores

CLOSED = np.zeros((2, 2), np.int64)
KINDS = "cells", "cells", "rings", "noise", "whirls"


def discs(shape, *circles):
    """Draw discs ``(y, x, radius)``, 1..n."""
    labels = np.zeros(shape, np.int32)
    y, x = np.indices(shape)
    for k, (b, a, radius) in enumerate(circles, 1):
        labels[(y - b) ** 2 + (x - a) ** 2 <= radius**2] = k
    return labels


def maps_of(labels, seed=0, noise=0.0):
    """Return the maps that a good network would give, rounded as they are stored."""
    rng = np.random.default_rng(seed)
    flows = 5 * (label_flows(labels) + rng.normal(0, noise, (2, *labels.shape)))
    return np.stack([*flows, np.where(labels > 0, 6, -6)]).astype(np.float16).astype(np.float32)


def random_maps(shape, seed, kind, noise):
    rng = np.random.default_rng(seed)
    if kind in ("cells", "rings"):
        tissue = Tissue(shape, seed=seed, cell_diameter=[9, 13, 20][seed % 3], density=0.9)
        labels = np.unique(tissue.block(Box.whole(shape)).cells, return_inverse=True)[1].reshape(shape)
        maps = maps_of(labels.astype(np.int32), seed, noise)
        if kind == "rings":  # cells with holes, some with a cell in them
            y, x = np.indices(shape)
            far = np.hypot(y - shape[0] / 2, x - shape[1] / 2)
            hole = ((y // 7 + x // 7) % 3 == 0) & (ndimage.minimum_filter(labels, 3) == labels)
            maps[2][hole] = -6
            maps[:2, far < 9] *= -1
    else:
        smooth = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 2, 2), mode="nearest")
        flows = smooth if kind == "noise" else _whirls(smooth[0])
        flows = flows / (np.linalg.norm(flows, axis=0) + 1e-9) + rng.normal(0, noise, (2, *shape))
        maps = np.stack([*(5 * flows), ndimage.gaussian_filter(rng.normal(size=shape), 3) + 0.03])
    return maps.astype(np.float16).astype(np.float32)


def _whirls(smooth):
    down, right = np.gradient(np.pad(smooth, 1, mode="edge"))
    return np.stack([right, -down])[:, 1:-1, 1:-1]


def kept(found):
    return np.where(np.append(False, found.reasons == 0)[found.labels], found.labels, 0)


def test_drawn_cells_come_back():
    labels = discs((60, 80), (15, 15, 9), (15, 32, 7), (42, 40, 14), (40, 66, 11))
    found = decode_flows(maps_of(labels), CLOSED, FlowRules())
    assert match_scores(labels, found.labels, [1.0]).tp == (4,)
    assert not found.reasons.any()
    assert found.complete.all()
    assert [labels[tuple(s)] for s in found.sinks] == [labels[found.labels == k][0] for k in range(1, 5)]
    centres = ndimage.center_of_mass(labels > 0, labels, [labels[tuple(s)] for s in found.sinks])
    assert np.abs(found.sinks - np.array(centres)).max() <= 1


def test_tissue_comes_back_in_spite_of_noise():
    tissue = Tissue((300, 320), seed=2, cell_diameter=22)
    labels = np.unique(tissue.block(Box.whole(tissue.shape)).cells, return_inverse=True)[1].reshape(tissue.shape)
    found = decode_flows(maps_of(labels, noise=0.3), CLOSED, FlowRules())
    assert match_scores(labels, kept(found), [0.7]).f1[0] > 0.95


def test_cells_at_the_end_of_the_image_are_whole():
    labels = discs((40, 50), (2, 20, 9), (38, 48, 8))
    found = decode_flows(maps_of(labels), CLOSED, FlowRules())
    assert match_scores(labels, found.labels, [1.0]).tp == (2,)


def test_reasons():
    labels = discs((70, 90), (20, 20, 15), (20, 50, 4), (50, 70, 10), (50, 30, 10))
    maps = maps_of(labels)
    maps[:2, labels == 4] *= np.array([[0.2], [0.05]], np.float32)  # slower, and aside: not as the shape has it
    found = decode_flows(maps, CLOSED, FlowRules(min_size=100, max_size=600))
    reasons = {int(np.median(labels[found.labels == k])): Reason(found.reasons[k - 1]) for k in range(1, 5)}
    assert reasons == {1: Reason.TOO_LARGE, 2: Reason.TOO_SMALL, 3: Reason.KEPT, 4: Reason.FLOW_ERROR}
    found = decode_flows(maps, CLOSED, FlowRules(flow_threshold=None, min_size=-1))
    assert not found.reasons.any()


@pytest.mark.parametrize(("threshold", "n"), [(-7.0, 2), (0.0, 2), (5.9, 2), (6.0, 0)])
def test_only_what_is_above_the_threshold_is_a_cell(threshold, n):
    labels = discs((40, 60), (20, 18, 9), (20, 42, 9))
    found = decode_flows(maps_of(labels), CLOSED, FlowRules(cellprob_threshold=threshold))
    assert len(np.unique(found.labels[found.labels > 0])) == n
    assert (found.labels[labels > 0] > 0).all() == (n > 0)


def test_steps_decide_how_far_a_path_comes():
    labels = discs((60, 60), (30, 30, 25))
    near, far = (decode_flows(maps_of(labels), CLOSED, FlowRules(steps=n, flow_threshold=None)) for n in (5, 60))
    assert (near.labels > 0).sum() < 0.5 * (far.labels > 0).sum()


def test_holes_are_filled_but_not_those_of_what_is_rejected():
    labels = discs((60, 90), (30, 30, 14), (30, 65, 14))
    maps = maps_of(labels)
    maps[2, 25, 27] = maps[2, 25, 62] = -6
    maps[:2, labels == 2] *= 0.1
    found = decode_flows(maps, CLOSED, FlowRules())
    assert found.labels[25, 27] == found.labels[30, 36] > 0
    assert found.reasons[found.labels[30, 70] - 1] == Reason.FLOW_ERROR
    assert found.labels[25, 62] == 0


def test_what_a_window_does_not_show_is_told():
    """A cell cut by the side of the window is not complete; what lies beyond the paths' reach is."""
    labels = discs((60, 140), (30, 20, 12), (30, 100, 12))
    maps = maps_of(labels)[:, :, 24:]
    found = decode_flows(maps, np.array([[0, 0], [1, 0]]), FlowRules())
    cell = found.labels[30, 76]
    assert cell > 0
    assert found.complete[cell - 1]
    assert not found.complete[np.unique(found.labels[:, :12][found.labels[:, :12] > 0]) - 1].any()
    assert (found.labels == UNRESOLVED).any()
    assert (found.labels[:, 40:] != UNRESOLVED).all()


def test_what_is_not_known_is_told():
    labels = discs((60, 140), (30, 20, 12), (30, 100, 12))
    maps = maps_of(labels)
    maps[:, 28:33, 8:12] = np.nan
    found = decode_flows(maps, CLOSED, FlowRules())
    assert (found.labels[28:33, 8:12] == UNRESOLVED).all()
    cut, whole = found.labels[30, 25], found.labels[30, 100]
    assert cut <= 0 or not found.complete[cut - 1]
    assert found.complete[whole - 1]
    assert ((found.labels == whole) == (labels == 2)).all()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_most_of_a_window_is_resolved(noise):
    """Marking what paths from beyond may reach costs no nuclei that lie well inside."""
    tissue = Tissue((240, 240), seed=5, cell_diameter=16)
    labels = np.unique(tissue.block(Box.whole(tissue.shape)).nuclei, return_inverse=True)[1].reshape(tissue.shape)
    maps = maps_of(labels, noise=noise)[:, 20:220, 20:220]
    found = decode_flows(maps, np.ones((2, 2), np.int64), FlowRules())
    inner = ((found.sinks >= 45) & (found.sinks < 155)).all(axis=1)
    assert inner.sum() > 20
    assert found.complete[inner].all()


@st.composite
def windows(draw):
    """Maps, a window of them as it shows them, and the rules."""
    shape = draw(st.tuples(st.integers(1, 110), st.integers(1, 110)))
    kind = draw(st.sampled_from(KINDS))
    maps = random_maps(shape, draw(st.integers(0, 2**16)), kind, draw(st.sampled_from([0.0, 0.2, 0.6])))
    ends = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    if draw(st.booleans()):  # most of the image: more is complete
        ends = [(a // 4, n - (n - b) // 4) for (a, b), n in zip(ends, shape, strict=True)]
    inner = tuple(slice(a, b) for a, b in ends)
    part = maps[:, *inner].copy()
    if draw(st.booleans()):
        y, x = (draw(st.integers(0, n - 1)) for n in part.shape[1:])
        part[:, y : y + draw(st.integers(1, 12)), x : x + draw(st.integers(1, 12))] = np.nan
    edge = np.array([[a > 0, b < n] for (a, b), n in zip(ends, shape, strict=True)], np.int64)
    rules = FlowRules(
        flow_threshold=draw(st.sampled_from([None, 0.2, 0.4, 1.0])),
        steps=draw(st.sampled_from([3, 20, 200])),
        min_size=draw(st.sampled_from([-1, 15, 60])),
        max_size=draw(st.sampled_from([float("inf"), 150.0])),
    )
    return maps, part, inner, edge, rules


@settings(deadline=None, max_examples=150)
@given(windows())
def test_what_a_window_is_sure_of_holds_in_the_whole(made):
    maps, part, inner, edge, rules = made
    whole, found = decode_flows(maps, CLOSED, rules), decode_flows(part, edge, rules)
    start = np.array([s.start for s in inner])
    assert whole.complete.all()
    assert (whole.labels >= 0).all()
    number = {tuple(s): k for k, s in enumerate(whole.sinks.tolist(), 1)}
    raw = sinks(follow(flow_field(maps[:2], maps[2], rules.cellprob_threshold), CLOSED, rules.steps))[0]
    for k in np.flatnonzero(found.complete) + 1:
        same = number[tuple((found.sinks[k - 1] + start).tolist())]
        assert found.reasons[k - 1] == whole.reasons[same - 1]
        assert np.array_equal(found.labels == k, (whole.labels == same)[inner])
        assert (found.labels == k).sum() == (whole.labels == same).sum()
    assert not raw[inner][found.labels == 0].any()
    if not edge.any() and not np.isnan(part).any():
        assert found.complete.all()
        assert (found.labels >= 0).all()


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**16), st.sampled_from(KINDS), st.tuples(st.integers(0, 30), st.integers(0, 30)),
)  # fmt: skip
def test_where_the_window_begins_does_not_matter(seed, kind, offset):
    maps = random_maps((50, 60), seed, kind, 0.2)
    found = []
    for at in ((0, 0), offset):
        canvas = np.zeros((3, 90, 100), np.float32)
        canvas[2] = -6
        inner = np.s_[at[0] + 5 : at[0] + 55, at[1] + 5 : at[1] + 65]
        canvas[:, *inner] = maps
        decoded = decode_flows(canvas, CLOSED, FlowRules())
        found.append((decoded.labels[inner], decoded.sinks - at, decoded.reasons))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


def test_context_is_enough():
    """With the context around a sink known, and no flow in from farther away, its object is complete."""
    labels = discs((80, 80), (40, 40, 5))
    maps = maps_of(labels)
    for shift in (0, 1):
        part = maps[:, 40 - CONTEXT + shift : 40 + CONTEXT + 1, 40 - CONTEXT : 40 + CONTEXT + 1 - shift]
        found = decode_flows(part, np.ones((2, 2), np.int64), FlowRules())
        assert found.complete.tolist() == [shift == 0]


def test_labels_on_another_grid():
    """Flows are followed on their own grid; sizes count, and holes are filled, on that of the labels."""
    labels = discs((40, 50), (15, 15, 8), (25, 38, 6))
    maps = maps_of(labels)
    maps[2, 15, 18] = -6
    pick = tuple(nearest(n, 2 * n, 0, 2 * n) for n in labels.shape)
    coarse, fine = decode_flows(maps, CLOSED, FlowRules()), decode_flows(maps, CLOSED, FlowRules(), pick)
    assert fine.labels.shape == (80, 100)
    assert np.array_equal(fine.labels, coarse.labels[np.ix_(*pick)])
    assert np.array_equal(fine.sinks, coarse.sinks)
    for min_size, reasons in ((110, [0, 1]), (440, [0, 1]), (480, [0, 1])):
        areas = np.bincount(coarse.labels.reshape(-1))[1:]
        found = decode_flows(maps, CLOSED, FlowRules(min_size=min_size), pick)
        assert found.reasons.tolist() == [int(4 * a < min_size) for a in areas], (areas, reasons)


def test_nothing_in_nothing():
    for shape in ((1, 1), (1, 40), (40, 1)):
        found = decode_flows(np.zeros((3, *shape), np.float16), CLOSED, FlowRules())
        assert not found.labels.any()
        assert found.sinks.shape == (0, 2)
        assert len(found.complete) == len(found.reasons) == 0


def test_maps_are_not_written():
    maps = maps_of(discs((40, 40), (20, 20, 9)))
    maps.flags.writeable = False
    before = maps.copy()
    decode_flows(maps, CLOSED, FlowRules())
    assert np.array_equal(maps, before)


def test_a_hole_is_not_filled_over_what_the_window_does_not_show():
    """Out of the hole of a ring, by steps of 2 px, paths lead to a cell far to the left."""
    shape = 40, 90
    steps = np.zeros((2, *shape))
    ring = np.zeros(shape, bool)
    ring[10:21, 30:71] = True
    ring[11:20, 31:70] = False
    steps[1, 10, 30:60], steps[1, 10, 60:71] = 1, -1
    steps[0, 11:21, 30] = steps[0, 11:21, 70] = -1
    steps[1, 20, 31:50], steps[1, 20, 50:70] = -1, 1
    other = np.zeros(shape, bool)
    other[12:19, 5:30:2] = other[12:19, 31] = True
    steps[1, 12:19, 7:32:2] = -2
    steps[0, 12:15, 5], steps[0, 16:19, 5] = 1, -1
    steps[:, ~(ring | other)] = 0
    maps = np.stack([*(5 * steps), np.where(ring | other, 6, -6)]).astype(np.float32)
    rules = FlowRules(flow_threshold=None)
    whole = decode_flows(maps, CLOSED, rules)
    far, near = whole.labels[14, 31], whole.labels[10, 40]
    assert 0 < far != near > 0
    assert whole.labels[14, 35] == near
    found = decode_flows(maps[:, :, 20:], np.array([[0, 0], [1, 0]]), rules)
    assert whole.labels[14, 31] == far
    assert not found.complete[found.labels[10, 20] - 1]
