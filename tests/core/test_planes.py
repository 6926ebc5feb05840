from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.measure import Pairs, combine_pairs, pair_counts
from spatialdata_segment.core.planes import (
    Overlaps,
    check_threshold,
    number,
    overlaps_of_polygons,
    partners,
)
from spatialdata_segment.errors import InputError


def picture(text):
    """Rows of digits; a dot is background."""
    array = np.array([[0 if c == "." else int(c) for c in row] for row in text.split()])
    array.flags.writeable = False
    return array


def overlaps(below, above):
    return Overlaps.of_pairs(pair_counts(below, above, background=True))


def continued(below, above, threshold=0.5):
    """Id above -> id below, of those that have a partner."""
    found = overlaps(below, above)
    return {int(found.above[k]): int(found.below[p]) for k, p in enumerate(partners(found, threshold)) if p >= 0}


def slow_partners(below, above, threshold):
    """The rule word by word, in exact fractions."""
    ids = [sorted(set(plane.ravel().tolist()) - {0}) for plane in (below, above)]
    pairs = []
    for a in ids[0]:
        for b in ids[1]:
            shared, both = (int(f((below == a), (above == b)).sum()) for f in (np.logical_and, np.logical_or))
            if threshold > 0 and shared and shared / both >= threshold:
                pairs.append((-Fraction(shared, both), a, b))
    found: dict[int, int] = {}
    for _, a, b in sorted(pairs):
        if a not in found.values() and b not in found:
            found[b] = a
    return found


def test_the_highest_iou_wins_and_the_loser_starts_anew():
    below = picture("1111111. ........")
    above = picture("555566.. 7.......")
    assert continued(below, above, 0.25) == {5: 1}
    assert continued(below, above, 4 / 7) == {5: 1}
    assert continued(below, above, 0.58) == {}
    assert continued(below, above, 0) == {}


def test_ties_go_to_the_lower_id_below_then_above():
    assert continued(picture("2222"), picture("9977")) == {7: 2}
    assert continued(picture("9977"), picture("2222")) == {2: 7}
    # four equal pairs: 3 takes 5, and 4 what is left
    assert continued(picture("3344"), picture("5665"), 0.3) == {5: 3, 6: 4}


def test_who_loses_its_best_takes_the_next_that_is_free():
    below = picture("111111111122222222")
    above = picture("777777888888......")
    found = overlaps(below, above)
    iou = {(int(found.below[a]), int(found.above[b])): i for a, b, i in zip(found.a, found.b, found.iou, strict=True)}
    assert iou == {(1, 7): 6 / 10, (1, 8): 4 / 12, (2, 8): 2 / 12}
    assert continued(below, above, 0.1) == {7: 1, 8: 2}
    assert continued(below, above, 0.2) == {7: 1}


def test_an_iou_at_the_threshold_is_enough():
    below, above = picture("1110"), picture("0111")
    assert continued(below, above, 0.5) == {1: 1}
    assert continued(below, above, np.nextafter(0.5, 1)) == {}


def test_ids_by_first_appearance():
    planes = [np.array(p, np.int64) for p in ([-1, -1], [1, -1, 0], [], [-1], [0, -1])]
    assert [ids.tolist() for ids in number(planes)] == [[1, 2], [2, 3, 1], [], [4], [4, 5]]
    assert number([]) == []


planes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**16), st.integers(2, 12), st.integers(1, 5))


def draw_plane(rng, y, x, n, scale):
    """Return labels in patches; the scattered ids are up to 2**40."""
    ids = np.sort(rng.choice(2**40, n, replace=False)) + 1
    ids[rng.random(n) < 0.3] = 0
    small = rng.integers(0, n, (-(-y // scale), -(-x // scale)))
    plane = ids[np.kron(small, np.ones((scale, scale), np.int64))[:y, :x]]
    plane.flags.writeable = False
    return plane


@settings(deadline=None)
@given(planes, st.sampled_from([0.01, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.51, 1.0]), st.data())
def test_as_the_slow_one_however_it_is_cut(drawn, threshold, data):
    y, x, seed, n, scale = drawn
    rng = np.random.default_rng(seed)
    below, above = draw_plane(rng, y, x, n, scale), draw_plane(rng, y, x, n, scale)
    mix = rng.random((y, x)) < 0.7
    above = np.where(mix, np.where(below > 0, below + 7, 0), above)
    expected = slow_partners(below, above, threshold)
    assert continued(below, above, threshold) == expected
    cut_y, cut_x = data.draw(st.integers(0, y)), data.draw(st.integers(0, x))
    parts = [
        pair_counts(below[rows, columns], above[rows, columns], background=True)
        for rows in (slice(0, cut_y), slice(cut_y, None))
        for columns in (slice(0, cut_x), slice(cut_x, None))
    ]
    whole, joined = overlaps(below, above), Overlaps.of_pairs(combine_pairs(parts))
    for name in ("below", "above", "a", "b", "iou"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


def test_overlaps_of_empty_planes():
    none = np.zeros((3, 4), np.uint16)
    found = overlaps(none, none)
    assert [len(getattr(found, name)) for name in ("below", "above", "a", "b", "iou")] == [0] * 5
    assert partners(found, 0.5).tolist() == []
    some = picture("1122")
    assert partners(overlaps(none[:1], some), 0.5).tolist() == [-1, -1]
    assert partners(overlaps(some, none[:1]), 0.5).tolist() == []
    assert len(Overlaps.of_pairs(Pairs(*np.zeros((3, 0), np.int64))).below) == 0


@settings(deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]))
def test_polygons_that_cannot_reach_the_threshold_are_ruled_out_rightly(seed, threshold):
    rng = np.random.default_rng(seed)
    below = shapely.buffer(shapely.points(rng.uniform(0, 20, (12, 2))), rng.uniform(0.5, 4, 12))
    above = shapely.buffer(shapely.points(rng.uniform(0, 20, (9, 2))), rng.uniform(0.5, 4, 9))
    above[:4] = below[:4]
    found = overlaps_of_polygons(shapely.STRtree(below), above, 100, threshold)
    expected = {}
    for a, p in enumerate(below):
        for b, q in enumerate(above):
            iou = p.intersection(q).area / (p.area + q.area - p.intersection(q).area)
            if iou >= threshold:
                expected[a, b + 100] = iou
    got = dict(zip(zip(found.a.tolist(), found.b.tolist(), strict=True), found.iou, strict=True))
    assert got == expected


def test_polygons_nobody_and_empty():
    square, nothing = shapely.box(0, 0, 2, 2), shapely.Polygon()
    for below, above in [([], [square]), ([square], []), ([nothing, square], [nothing])]:
        tree = shapely.STRtree(np.array(below, object))
        assert len(overlaps_of_polygons(tree, np.array(above, object), 0, 0.5).iou) == 0
    touching = overlaps_of_polygons(shapely.STRtree([square]), np.array([shapely.box(2, 0, 4, 2)]), 0, 0.001)
    assert len(touching.iou) == 0


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_thresholds_that_are_none(wrong):
    with pytest.raises(InputError, match=r"threshold=.*expected the IoU"):
        check_threshold(wrong)
    for good in (0, 1, np.float32(0.5), 0.25):
        check_threshold(good)
