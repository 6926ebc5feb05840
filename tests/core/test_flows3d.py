"""From maps of volumes to objects: drawn cells come back, what is wrong has a reason, windows agree with the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.flows import FlowRules
from spatialdata_segment.core.flows3d import count_ends_3d, decode_flows_3d
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.paths import LOST
from spatialdata_segment.core.paths3d import flow_field, follow
from spatialdata_segment.core.sinks3d import SEEN, grow, take
from spatialdata_segment.core.unresolved import UNRESOLVED
from spatialdata_segment.errors import InputError
from spatialdata_segment.testing import Tissue, match_scores
from spatialdata_segment.testing.flows import volume_maps

CLOSED, OPEN = np.zeros((3, 2), np.int64), np.ones((3, 2), np.int64)
KINDS = "cells", "cells", "shells", "hills", "noise", "whirls"


def balls(shape, *spheres):
    """Draw balls ``(z, y, x, radius)``, 1..n."""
    labels = np.zeros(shape, np.int32)
    for k, (*centre, radius) in enumerate(spheres, 1):
        at = np.indices(shape) - np.array(centre).reshape(3, 1, 1, 1)
        labels[(at**2).sum(axis=0) <= radius**2] = k
    return labels


def dense(shape, seed, diameter, density=0.95):
    """Return the cells, 1..n, of a tissue in which they touch."""
    tissue = Tissue(shape, seed=seed, cell_diameter=diameter, density=density, touching=1.0)
    cells = tissue.block(Box.whole(shape)).cells
    return np.unique(np.append(cells, 0), return_inverse=True)[1][:-1].reshape(shape).astype(np.int32)


def random_maps(shape, seed, kind, noise):
    rng = np.random.default_rng(seed)
    if kind in ("cells", "shells"):
        labels = dense(shape, seed, [6, 8, 12][seed % 3])
        maps = volume_maps(labels).astype(np.float32)
        maps[:3] += rng.normal(0, 5 * noise, (3, *shape))
        if kind == "shells":  # cells with voids, some with a cell in them
            hole = (rng.random(shape) < 0.2) & (ndimage.minimum_filter(labels, 3) == labels)
            maps[3][hole] = -6
            maps[:3, labels % 3 == 0] *= -1
    elif kind == "hills":
        smooth = ndimage.gaussian_filter(rng.normal(size=np.add(shape, 2)), 2.5, mode="nearest")
        flows = np.stack(np.gradient(smooth))[:, 1:-1, 1:-1, 1:-1]
        flows /= np.linalg.norm(flows, axis=0) + 1e-9
        maps = np.stack([*(5 * flows + rng.normal(0, noise, (3, *shape))), smooth[1:-1, 1:-1, 1:-1] * 50 + 0.5])
    else:
        smooth = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 2, 2, 2), mode="nearest")
        flows = smooth if kind == "noise" else np.stack([0.3 * smooth[0], -smooth[2], smooth[1]])
        flows = (1 + seed % 2) * flows / (np.linalg.norm(flows, axis=0) + 1e-9) + rng.normal(0, noise, (3, *shape))
        maps = np.stack([*(5 * flows), ndimage.gaussian_filter(rng.normal(size=shape), 2) + 0.05])
    return maps.astype(np.float16)


def window_of(maps, inner, rules=FlowRules(), part=None):  # noqa: B008
    """Decode a window of a volume, of which ``part`` is what it shows."""
    counts = count_ends_3d(maps, CLOSED, rules)
    start, stop = np.array([(s.start, s.stop) for s in inner]).T
    edge = np.array([start > 0, stop < maps.shape[1:]], np.int64).T
    low = np.maximum(start - SEEN, 0)
    known = counts[tuple(slice(a, b) for a, b in zip(low, stop + SEEN, strict=True))]
    return decode_flows_3d(maps[:, *inner] if part is None else part, edge, rules, known, tuple(start - low))


def kept(found):
    return np.where(np.append(False, found.reasons == 0)[found.labels], found.labels, 0)


def test_drawn_cells_come_back():
    labels = balls((26, 40, 50), (9, 10, 10, 7), (9, 10, 25, 7), (15, 27, 20, 9), (16, 27, 40, 8))
    found = decode_flows_3d(volume_maps(labels), CLOSED, FlowRules())
    assert match_scores(labels, found.labels, [1.0]).tp == (4,)
    assert not found.reasons.any()
    assert found.complete.all()
    centres = ndimage.center_of_mass(labels > 0, labels, [labels[tuple(s)] for s in found.sinks])
    assert np.abs(found.sinks - np.array(centres)).max() <= 1


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_dense_tissue_comes_back(noise):
    labels = dense((48, 60, 60), 3, 14)
    maps = volume_maps(labels).astype(np.float32)
    maps[:3] += np.random.default_rng(0).normal(0, 5 * noise, maps[:3].shape)
    found = decode_flows_3d(maps, CLOSED, FlowRules())
    large = np.isin(labels, np.flatnonzero(np.bincount(labels.reshape(-1)) > 60))
    assert match_scores(np.where(large, labels, 0), kept(found), [0.75]).recall[0] > 0.97


def test_reasons():
    labels = balls((24, 30, 60), (12, 14, 14, 9), (12, 14, 32, 3), (12, 14, 48, 6))
    found = decode_flows_3d(volume_maps(labels), CLOSED, FlowRules(min_size=200, max_size=2000))
    reasons = {int(np.median(labels[found.labels == k])): Reason(found.reasons[k - 1]) for k in range(1, 4)}
    assert reasons == {1: Reason.TOO_LARGE, 2: Reason.TOO_SMALL, 3: Reason.KEPT}


@pytest.mark.parametrize(("threshold", "n"), [(-7.0, 2), (5.9, 2), (6.0, 0)])
def test_only_what_is_above_the_threshold_is_a_cell(threshold, n):
    labels = balls((16, 20, 36), (8, 10, 9, 6), (8, 10, 26, 6))
    found = decode_flows_3d(volume_maps(labels), CLOSED, FlowRules(cellprob_threshold=threshold))
    assert len(np.unique(found.labels[found.labels > 0])) == n


def test_voids_are_filled_but_not_those_of_what_is_rejected():
    labels = balls((24, 24, 50), (12, 12, 12, 9), (12, 12, 36, 6))
    maps = volume_maps(labels)
    maps[3, 12, 12, 12] = maps[3, 12, 12, 36] = -6
    found = decode_flows_3d(maps, CLOSED, FlowRules(min_size=2000))
    assert found.labels[12, 12, 12] == found.labels[12, 12, 9] > 0
    assert found.labels[12, 12, 33] > 0
    assert found.labels[12, 12, 36] == 0


@pytest.mark.parametrize("axis", range(3))
def test_what_a_window_does_not_show_is_told(axis):
    """A cell cut by the side of the window is not complete; what lies beyond the paths' reach is."""
    labels = np.moveaxis(balls((24, 24, 80), (12, 12, 14, 9), (12, 12, 52, 9)), 2, axis)
    inner = [slice(0, n) for n in labels.shape]
    inner[axis] = slice(17, 80)
    found = window_of(volume_maps(labels), inner)
    near, far = np.split(np.moveaxis(found.labels, axis, 2), [20], axis=2)
    (cell,) = np.unique(far[far != 0])
    assert found.complete[cell - 1]
    assert (near == UNRESOLVED).any()
    assert not found.complete[np.unique(near[near > 0]) - 1].any()


def test_what_is_not_known_is_told():
    labels = balls((24, 24, 70), (12, 12, 12, 9), (12, 12, 52, 9))
    maps = volume_maps(labels)
    maps[:, 10:13, 10:13, 5:8] = np.nan
    found = decode_flows_3d(maps, CLOSED, FlowRules())
    assert (found.labels[10:13, 10:13, 5:8] == UNRESOLVED).all()
    whole = found.labels[12, 12, 52]
    assert ((found.labels == whole) == (labels == 2)).all()
    assert not found.complete.any()
    found = window_of(volume_maps(labels), [slice(0, n) for n in labels.shape], part=maps)
    assert found.complete.tolist() == [False, True]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_most_of_a_window_is_resolved(noise):
    """In tissue whose cells touch, two diameters from the open sides are enough."""
    diameter = 12
    labels = dense((84, 84, 84), 5, diameter)
    maps = volume_maps(labels).astype(np.float32)
    maps[:3] += np.random.default_rng(0).normal(0, 5 * noise, maps[:3].shape)
    found = window_of(maps, [slice(6, 78)] * 3)
    inner = ((found.sinks >= 2 * diameter) & (found.sinks < 72 - 2 * diameter)).all(axis=1)
    assert inner.sum() > 10
    assert found.complete[inner].all()


@st.composite
def windows(draw):
    """Maps, a window of them as it shows them, and the rules."""
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 44), st.integers(1, 48)))
    kind = draw(st.sampled_from(KINDS))
    maps = random_maps(shape, draw(st.integers(0, 2**16)), kind, draw(st.sampled_from([0.0, 0.2, 0.6])))
    ends = []
    for n in shape:  # often the volume's own ends: more is complete
        low = draw(st.integers(0, n - 1)) // draw(st.sampled_from([n, 4, 1]))
        ends.append((low, n - draw(st.integers(0, n - low - 1)) // draw(st.sampled_from([n, 4, 1]))))
    inner = tuple(slice(a, b) for a, b in ends)
    part = maps[:, *inner].copy()
    if draw(st.booleans()):
        z, y, x = (draw(st.integers(0, n - 1)) for n in part.shape[1:])
        size = draw(st.integers(1, 6))
        part[:, z : z + size, y : y + size, x : x + size] = np.nan
    rules = FlowRules(
        steps=draw(st.sampled_from([3, 20, 200])),
        min_size=draw(st.sampled_from([-1, 15, 60])),
        max_size=draw(st.sampled_from([float("inf"), 300.0])),
    )
    return maps, part, inner, rules


def agrees(maps, whole, part, inner, rules):
    """Compare a window with the whole; return how many objects are complete."""
    found = window_of(maps, inner, rules, part)
    start = np.array([s.start for s in inner])
    number = {tuple(s): k for k, s in enumerate(whole.sinks.tolist(), 1)}
    same = np.zeros(len(found.sinks) + 1, int)
    for k in np.flatnonzero(found.complete) + 1:
        same[k] = number[tuple((found.sinks[k - 1] + start).tolist())]
    sure = same[1:][found.complete]
    assert np.array_equal(found.reasons[found.complete], whole.reasons[sure - 1])
    sizes = np.bincount(whole.labels.reshape(-1), minlength=len(whole.sinks) + 1)
    there = whole.labels[inner]
    assert np.array_equal(np.bincount(there.reshape(-1), minlength=len(sizes))[sure], sizes[sure])
    here, there = same[np.maximum(found.labels, 0)], np.where(np.isin(there, sure), there, 0)
    differs = here != there
    # what is rejected may be closed around by one that the window does not show whole
    assert (whole.reasons[here[differs] - 1] != 0).all()
    assert (here[differs] > 0).all()
    assert not np.isin(whole.labels[inner][differs], [0, *sure]).any()
    field = flow_field(maps[:3], maps[3], rules.cellprob_threshold)
    raw = follow(field, CLOSED, rules.steps)
    take(raw, grow(count_ends_3d(maps, CLOSED, rules)).labels, len(whole.sinks) + raw.size)
    assert not raw[inner][found.labels == 0].any()
    return len(sure)


@settings(deadline=None, max_examples=150)
@given(windows())
def test_what_a_window_is_sure_of_holds_in_the_whole(made):
    maps, part, inner, rules = made
    whole = decode_flows_3d(maps, CLOSED, rules)
    assert whole.complete.all()
    assert (whole.labels >= 0).all()
    n = agrees(maps, whole, part, inner, rules)
    if part.shape == maps.shape and not np.isnan(part).any():
        assert n == len(whole.sinks)


@pytest.mark.parametrize("kind", ["cells", "hills"])
def test_windows_of_a_larger_volume(kind):
    """Windows in the middle of a volume: some of their objects are complete, and those are right."""
    maps, rng, n = random_maps((64, 80, 84), 6, kind, 0.2), np.random.default_rng(0), 0
    whole = decode_flows_3d(maps, CLOSED, FlowRules())
    for _ in range(5):
        start, size = rng.integers(0, (10, 25, 25)), rng.integers((44, 48, 50), (54, 55, 56))
        inner = tuple(slice(a, a + b) for a, b in zip(start.tolist(), size.tolist(), strict=True))
        n += agrees(maps, whole, maps[:, *inner], inner, FlowRules())
    assert n > 20


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**16), st.sampled_from(KINDS), st.tuples(*[st.integers(0, 10)] * 3))
def test_where_the_window_begins_does_not_matter(seed, kind, offset):
    maps = random_maps((20, 24, 26), seed, kind, 0.2)
    found = []
    for at in ((0, 0, 0), offset):
        canvas = np.zeros((4, 36, 40, 42), np.float16)
        canvas[3] = -6
        inner = tuple(slice(a + 3, a + 3 + n) for a, n in zip(at, maps.shape[1:], strict=True))
        canvas[:, *inner] = maps
        decoded = decode_flows_3d(canvas, CLOSED, FlowRules())
        found.append((decoded.labels[inner], decoded.sinks - at, decoded.reasons))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


@settings(deadline=None, max_examples=60)
@given(windows(), st.data())
def test_counts_of_parts_add_up(made, data):
    """The ends of the paths of two parts are those of all; a part whose paths leave the window is not counted."""
    maps, part, inner, rules = made
    whole = count_ends_3d(maps, CLOSED, rules)
    at = data.draw(st.integers(0, maps.shape[3]))
    parts = Box((0, 0, 0), (*maps.shape[1:3], at)), Box((0, 0, at), maps.shape[1:])
    assert np.array_equal(sum(count_ends_3d(maps, CLOSED, rules, p) for p in parts), whole)
    edge = np.array([[s.start > 0, s.stop < n] for s, n in zip(inner, maps.shape[1:], strict=True)], np.int64)
    counts = count_ends_3d(part, edge, rules)
    lost = follow(flow_field(part[:3], part[3], rules.cellprob_threshold), edge, rules.steps) == LOST
    assert (counts is None) == lost.any()
    if counts is not None:
        assert (counts <= whole[inner]).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 30), (1, 30, 1), (30, 1, 1)])
def test_nothing_in_nothing(shape):
    found = decode_flows_3d(np.zeros((4, *shape), np.float16), CLOSED, FlowRules())
    assert not found.labels.any()
    assert found.sinks.shape == (0, 3)
    assert len(found.complete) == len(found.reasons) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_maps_are_not_written(dtype):
    maps = volume_maps(balls((20, 20, 20), (10, 10, 10, 6))).astype(dtype)
    maps.flags.writeable = False
    before = maps.copy()
    assert len(decode_flows_3d(maps, OPEN, FlowRules()).sinks) == 1
    assert np.array_equal(maps, before)


@pytest.mark.parametrize(
    ("maps", "edge", "says"),
    [
        (np.zeros((3, 4, 4, 4), np.float32), CLOSED, r"\(3, 4, 4, 4\).*expected \(4, z, y, x\)"),
        (np.zeros((4, 4, 4), np.float32), CLOSED, "expected"),
        (np.zeros((4, 0, 4, 4), np.float32), CLOSED, "expected"),
        (np.zeros((4, 4, 4, 4), np.int32), CLOSED, "int32.*floating"),
        (np.zeros((4, 4, 4, 4), np.float32), CLOSED[:2], r"edge of shape \(2, 2\)"),
        (np.broadcast_to(np.float32(0), (4, 2000, 2000, 2000)), CLOSED, "smaller shards"),
    ],
)
def test_bad_shapes_are_refused(maps, edge, says):
    with pytest.raises(InputError, match=says):
        decode_flows_3d(maps, edge, FlowRules())
