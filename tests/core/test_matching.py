from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.matching import (
    REASONS,
    Reason,
    Rules,
    SizeFilter,
    assign_ids,
    match,
    resolve,
)
from spatialdata_segment.core.measure import Pairs, measure, nearest_pixel, pair_counts
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.errors import InputError


def size_keep(area, *, pixel_area=None, **bounds):
    code = SizeFilter(**bounds).judge(area, pixel_area)
    return code == Reason.KEPT, code


def picture(text):
    """Rows of digits; a dot is background."""
    array = np.array([[0 if c == "." else int(c) for c in row] for row in text.split()])
    array.flags.writeable = False
    return array


def objects(labels):
    zero = (0,) * labels.ndim
    moments = measure(labels, zero)
    return moments.objects(nearest_pixel(labels, zero, moments).pixel)


def both(nuclei, cells, **rules):
    n, c = picture(nuclei), picture(cells)
    return resolve(objects(n), objects(c), pair_counts(n, c, background=True), Rules(**rules))


def fates(fate):
    """Candidate id -> final id, or the reason for which it was dropped."""
    return {
        int(i): int(f) if k else r
        for i, f, k, r in zip(fate.ids, fate.final_id, fate.is_kept, fate.reasons, strict=True)
    }


def test_a_pair_shares_its_id_in_raster_order_of_the_cells():
    r = both(
        """..7.....
           ........
           .3......""",
        """.99..22.
           .99..22.
           44444...""",
    )
    assert fates(r.nucleus) == {3: 2, 7: 1}
    assert fates(r.cell) == {2: "unmatched", 4: 2, 9: 1}
    assert r.cell.match.tolist() == [0, 3, 7]
    assert r.nucleus.match.tolist() == [4, 9]
    assert r.cell.n_nuclei.tolist() == [0, 1, 1]
    assert r.cell.nucleus_area.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(r.cell.overlap_fraction, [np.nan, 1, 1])
    assert r.n_ids == 2
    assert r.dtype == np.uint32


def test_a_nucleus_needs_the_share_inclusive():
    nuclei, cells = "1111111111", "22222222.."
    at = both(nuclei, cells, threshold=0.8)
    assert fates(at.nucleus) == {1: 1}
    assert at.nucleus.overlap_fraction.tolist() == [0.8]
    above = both(nuclei, cells, threshold=0.81)
    assert fates(above.nucleus) == {1: "unmatched"}
    assert fates(above.cell) == {2: "unmatched"}
    assert above.nucleus.match.tolist() == [0]
    assert above.nucleus.overlap_fraction.tolist() == [0.8]


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_the_threshold_is_the_number_that_was_written(hundredths):
    n = Objects.empty(2)
    n = replace(n, ids=np.array([1]), anchor=np.zeros((1, 2), int), area=np.array([100]))
    c = replace(n, ids=np.array([5]))
    pairs = Pairs(np.array([1]), np.array([5]), np.array([hundredths]))
    assert match(n, c, pairs, threshold=float(f"0.{hundredths:02}") if hundredths < 100 else 1.0).cell.is_kept


def test_a_straddling_nucleus_goes_to_the_lower_of_two_equal_cells():
    r = both("1111", "3322", threshold=0.5, unmatched="keep")
    assert r.nucleus.match.tolist() == [2]
    assert fates(r.nucleus) == {1: 2}
    assert fates(r.cell) == {2: 2, 3: 1}
    default = both("1111", "3322")
    assert default.nucleus.overlap_fraction.tolist() == [0.5]
    assert fates(default.nucleus) == {1: "unmatched"}


def test_multinucleated_cells():
    nuclei, cells = "1.2..3", "4444.5"
    dropped = both(nuclei, cells)
    assert fates(dropped.nucleus) == {1: "multinucleated", 2: "multinucleated", 3: 1}
    assert fates(dropped.cell) == {4: "multinucleated", 5: 1}
    assert dropped.cell.n_nuclei.tolist() == [2, 1]
    kept = both(nuclei, cells, multinucleated="keep")
    assert fates(kept.nucleus) == {1: 1, 2: 1, 3: 2}
    assert fates(kept.cell) == {4: 1, 5: 2}
    assert kept.cell.match.tolist() == [1, 3]
    assert kept.cell.nucleus_area.tolist() == [2, 1]


def test_unmatched_can_be_kept_each_with_its_own_id():
    r = both("1..2.", "..3.4", unmatched="keep")
    assert fates(r.nucleus) == {1: 1, 2: 3}
    assert fates(r.cell) == {3: 2, 4: 4}
    multi = both("1.2..3", "4444..", unmatched="keep")
    assert fates(multi.nucleus) == {1: "multinucleated", 2: "multinucleated", 3: 1}


def test_without_matching_ids_are_independent_and_nothing_is_dropped():
    r = both("1.2..3", "55555.", match_masks=False)
    assert fates(r.nucleus) == {1: 1, 2: 2, 3: 3}
    assert fates(r.cell) == {5: 1}
    assert r.nucleus.match.tolist() == [5, 5, 0]
    assert r.cell.n_nuclei.tolist() == [2]
    assert r.n_ids == 3
    sized = both("11.2..3", "55555..", match_masks=False, nucleus_size=SizeFilter(min_size=2))
    assert fates(sized.nucleus) == {1: 1, 2: "too_small", 3: "too_small"}
    assert fates(sized.cell) == {5: 1}


@pytest.mark.parametrize("unmatched", ["drop", "keep"])
def test_a_partner_that_the_size_filter_drops_takes_the_other_along(unmatched):
    cell_dropped = both("1.22", "3.44", cell_size=SizeFilter(min_size=2), unmatched=unmatched)
    assert fates(cell_dropped.nucleus) == {1: "partner_dropped", 2: 1}
    assert fates(cell_dropped.cell) == {3: "too_small", 4: 1}
    nucleus_dropped = both("1..22", "33.44", nucleus_size=SizeFilter(min_size=2), unmatched=unmatched)
    assert fates(nucleus_dropped.nucleus) == {1: "too_small", 2: 1}
    assert fates(nucleus_dropped.cell) == {3: "partner_dropped", 4: 1}
    assert nucleus_dropped.cell.match.tolist() == [1, 2]


def test_size_is_judged_before_matching():
    r = both("11.2", "3333", nucleus_size=SizeFilter(min_size=2))
    assert fates(r.nucleus) == {1: 1, 2: "too_small"}
    assert fates(r.cell) == {3: 1}
    assert r.cell.n_nuclei.tolist() == [1]
    low = both("1111", "2233", threshold=0.5, cell_size=SizeFilter(max_size=2))
    assert low.nucleus.match.tolist() == [2]


def test_refused_objects_stay_refused():
    n, c = picture("1.2"), picture("3.4")
    out = np.array([Reason.OUTSIDE_REGION, 0], np.uint8)
    out.flags.writeable = False
    r = resolve(objects(n), objects(c), pair_counts(n, c), Rules(), cell_reason=out)
    assert fates(r.cell) == {3: "outside_region", 4: 1}
    assert fates(r.nucleus) == {1: "partner_dropped", 2: 1}
    with pytest.raises(InputError, match="one each"):
        resolve(objects(n), objects(c), pair_counts(n, c), Rules(), cell_reason=out[:1])


def test_one_mask():
    labels = objects(picture("7.3 ... 5.."))
    for masks, name in (((labels, None), "nucleus"), ((None, labels), "cell")):
        size = {f"{name}_size": SizeFilter(min_size=1)}
        r = resolve(*masks, None, Rules(**size))
        assert fates(getattr(r, name)) == {3: 2, 5: 3, 7: 1}
        assert r.n_ids == 3
    nothing = resolve(Objects.empty(2), None, None, Rules())
    assert nothing.n_ids == 0
    assert nothing.cell is None


def test_two_masks_without_objects():
    none, one = Objects.empty(2), objects(picture("1"))
    pairs = Pairs(*(np.zeros(0, np.int64) for _ in range(3)))
    assert resolve(none, none, pairs, Rules()).n_ids == 0
    assert fates(resolve(one, none, pairs, Rules()).nucleus) == {1: "unmatched"}
    assert fates(resolve(none, one, pairs, Rules()).cell) == {1: "unmatched"}
    assert fates(resolve(none, one, pairs, Rules(unmatched="keep")).cell) == {1: 1}


def test_a_tie_of_anchors_gives_the_cell_the_lower_id():
    r = both("11. 1.. ...", "2.. ... ...", unmatched="keep")
    assert fates(r.cell) == {2: 1}
    assert fates(r.nucleus) == {1: 2}


def test_three_axes():
    n, c = np.zeros((3, 2, 2), int), np.zeros((3, 2, 2), int)
    n[0, 0, 1], c[0] = 5, 2
    n[2, 1, 1], c[1:] = 4, 1
    r = resolve(objects(n), objects(c), pair_counts(n, c), Rules())
    assert fates(r.cell) == {1: 2, 2: 1}
    assert fates(r.nucleus) == {4: 2, 5: 1}


def test_what_does_not_fit_together_is_an_error():
    n, c = picture("1"), picture("2")
    with pytest.raises(InputError, match="pairs"):
        resolve(objects(n), objects(c), None, Rules())
    with pytest.raises(InputError, match="not in the masks"):
        resolve(objects(n), objects(c), pair_counts(picture("3"), c), Rules())


@pytest.mark.parametrize("bad", [{"threshold": 0}, {"threshold": 1.1}, {"unmatched": "no"}, {"multinucleated": True}])
def test_rules_are_checked(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Rules(**bad)


AREAS = np.array([1, 10, 100, 1000])
AREAS.flags.writeable = False


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"min_size": 10}, ["too_small", "", "", ""]),
        ({"max_size": 100}, ["", "", "", "too_large"]),
        ({"min_size": 10, "max_size": 10}, ["too_small", "", "too_large", "too_large"]),
        ({"max_size": 0}, ["too_large"] * 4),
        ({"min_size": 25, "unit": "um2", "pixel_area": 0.25}, ["too_small", "too_small", "", ""]),
        ({"confidence_interval": 0.5}, ["too_small", "", "", "too_large"]),
        ({"confidence_interval": 0.99}, [""] * 4),
        ({"confidence_interval": 0.5, "unit": "um3", "pixel_area": 0.01}, ["too_small", "", "", "too_large"]),
    ],
)
def test_size_filter(bounds, expected):
    keep, code = size_keep(AREAS, **bounds)
    assert [REASONS[c] for c in code] == expected
    assert keep.tolist() == [not e for e in expected]


@pytest.mark.parametrize("areas", [[], [5], [7, 7, 7]])
def test_an_interval_of_nothing_to_compare_keeps_all(areas):
    assert size_keep(np.array(areas, np.int64), confidence_interval=0.01)[0].all()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "without a bound"),
        ({"min_size": -1}, "min_size"),
        ({"min_size": float("nan")}, "min_size"),
        ({"min_size": 3, "max_size": 2}, "nothing would be kept"),
        ({"confidence_interval": 1}, "confidence_interval"),
        ({"confidence_interval": 0.9, "min_size": 1}, "one of them"),
        ({"min_size": 1, "unit": "um2"}, "pixel_size"),
        ({"min_size": 1, "unit": "mm2"}, "unit"),
    ],
)
def test_size_filters_that_cannot_act_are_errors(bounds, message):
    with pytest.raises(InputError, match=message):
        size_keep(AREAS, **bounds)


def test_an_area_is_no_volume():
    with pytest.raises(InputError, match="um2"):
        resolve(objects(picture("1")), None, None, Rules(nucleus_size=SizeFilter(1, unit="um3"), pixel_area=1))


def test_an_interval_is_of_the_objects_not_refused():
    labels = picture("1 2 3") * 1
    found = replace(objects(labels), area=np.array([1, 100, 100]))
    rules = Rules(cell_size=SizeFilter(confidence_interval=0.5))
    assert fates(resolve(None, found, None, rules).cell)[1] == "too_small"
    outside = np.array([Reason.OUTSIDE_REGION, 0, 0], np.uint8)
    assert fates(resolve(None, found, None, rules, cell_reason=outside).cell) == {
        1: "outside_region",
        2: 1,
        3: 2,
    }


RULES = st.builds(
    Rules,
    match_masks=st.booleans(),
    threshold=st.sampled_from([0.2, 0.5, 0.75, 1.0]),
    multinucleated=st.sampled_from(["drop", "keep"]),
    unmatched=st.sampled_from(["drop", "keep"]),
    nucleus_size=st.sampled_from([None, SizeFilter(min_size=2), SizeFilter(confidence_interval=0.7)]),
    cell_size=st.sampled_from([None, SizeFilter(min_size=3), SizeFilter(max_size=5)]),
)


def blobs(seed, shape, n, side):
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int64)
    for i in rng.permutation(n) + 1:
        y, x = (rng.integers(0, s) for s in shape)
        h, w = rng.integers(1, side, 2)
        labels[y : y + h, x : x + w] = i * 10**15
    return labels


@settings(max_examples=150, deadline=None)
@given(rules=RULES, seed=st.integers(0, 10**6), swap=st.booleans())
def test_every_object_has_one_fate_and_pairs_are_exact(rules, seed, swap):
    n, c = blobs(seed, (9, 9), 6, 3), blobs(seed + 1, (9, 9), 5, 6)
    if swap:
        n, c = c, n
    nuclei, cells, pairs = objects(n), objects(c), pair_counts(n, c)
    r = resolve(nuclei, cells, pairs, rules)
    for fate, found in ((r.nucleus, nuclei), (r.cell, cells)):
        assert (fate.ids == found.ids).all()
        assert ((fate.final_id > 0) == fate.is_kept).all()
        assert ((fate.reasons == "") == fate.is_kept).all()
        old, new = fate.mapping
        assert (old == fate.ids[fate.is_kept]).all()
        assert (new > 0).all()
    assert len(np.unique(r.cell.final_id[r.cell.is_kept])) == r.cell.is_kept.sum()

    for i, label in enumerate(nuclei.ids):
        inside = {int(v): (c[n == label] == v).sum() for v in np.unique(c[n == label]) if v}
        best = max(inside.values(), default=0) / nuclei.area[i]
        if rules.threshold > 0.5:
            assert r.nucleus.overlap_fraction[i] == best
        assert (r.nucleus.match[i] > 0) == (best >= rules.threshold)
        if r.nucleus.match[i]:
            assert inside[int(r.nucleus.match[i])] / nuclei.area[i] >= rules.threshold

    if not rules.match_masks:
        size_only = {"", "too_small", "too_large"}
        for fate, found in ((r.nucleus, nuclei), (r.cell, cells)):
            assert set(fate.reasons) <= size_only
            in_order(found.anchor[fate.is_kept], fate.final_id[fate.is_kept])
        return

    nucleus_ids = r.nucleus.final_id[r.nucleus.is_kept]
    cell_ids = r.cell.final_id[r.cell.is_kept]
    if rules.multinucleated == "drop":
        assert len(np.unique(nucleus_ids)) == len(nucleus_ids)
    if rules.unmatched == "drop":
        assert set(nucleus_ids) == set(cell_ids)
    assert set(nucleus_ids) | set(cell_ids) == set(range(1, r.n_ids + 1))
    of_cell = dict(zip(r.cell.ids, r.cell.final_id, strict=True))
    for partner, final in zip(r.nucleus.match, r.nucleus.final_id, strict=True):
        if final and partner:
            assert of_cell[partner] == final
        elif final:
            assert final not in cell_ids
    alone = r.nucleus.is_kept & (r.nucleus.match == 0)
    in_order(
        np.concatenate([cells.anchor[r.cell.is_kept], nuclei.anchor[alone]]),
        np.concatenate([cell_ids, r.nucleus.final_id[alone]]),
    )


def in_order(anchors, ids):
    anchors = anchors[np.argsort(ids)]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    assert [*map(tuple, anchors)] == sorted(map(tuple, anchors))


@settings(max_examples=50, deadline=None)
@given(rules=RULES, seed=st.integers(0, 10**6))
def test_candidate_ids_do_not_decide(rules, seed):
    """Other ids in the same order, pairs in any order: the same final picture."""
    n, c = blobs(seed, (9, 9), 6, 3), blobs(seed + 1, (9, 9), 5, 6)
    first = resolve(objects(n), objects(c), pair_counts(n, c), rules)
    pairs = pair_counts(n * 3, c * 5)
    shuffle = np.random.default_rng(seed).permutation(len(pairs))
    pairs = Pairs(pairs.a[shuffle], pairs.b[shuffle], pairs.count[shuffle])
    second = resolve(objects(n * 3), objects(c * 5), pairs, rules)
    for a, b in ((first.nucleus, second.nucleus), (first.cell, second.cell)):
        assert a.final_id.tolist() == b.final_id.tolist()
        assert a.drop_reason.tolist() == b.drop_reason.tolist()
        assert a.overlap_fraction.tobytes() == b.overlap_fraction.tobytes()


def test_match_and_assign_ids_by_themselves():
    n, c = picture("1.2"), picture("3.4")
    nuclei, cells = objects(n), objects(c)
    matching = match(nuclei, cells, pair_counts(n, c))
    assert not matching.cell.final_id.any()
    assert assign_ids(nuclei, cells, *matching).cell.final_id.tolist() == [1, 2]
