"""What a method rejects: the same for any plan, not in the result, and on record with its reason."""

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.models import Image2DModel
from xarray import DataTree

from spatialdata_segment import ExpandNuclei, Function, SizeFilter, Workflow, label_image, segment
from spatialdata_segment._write import judge
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.contact import background_contact
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.measure import Moments
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.core.plan import Window
from spatialdata_segment.engine import again
from spatialdata_segment.engine.again import Seen
from spatialdata_segment.engine.stitch import candidates_of
from spatialdata_segment.errors import MethodError, ShardError
from spatialdata_segment.methods.base import Decoded, Method
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

few = settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


class OddAreas(Method):
    """Connected pixels; objects of an even area are rejected. Labels have gaps, -1 is not used."""

    name: ClassVar[str] = "odd-areas"
    map_dtype: ClassVar[str] = "uint8"
    ndims: ClassVar[frozenset[int]] = frozenset({2, 3})

    is_anchored: bool = True

    def context(self, image):
        return (1,) * image.ndim

    def halo(self, image):
        return (5,) * image.ndim

    def predict(self, image, view):
        return image[:1] > 0

    def decode(self, maps, view):
        labels, n = ndimage.label(maps[0])
        even = np.bincount(labels.ravel(), minlength=n + 1)[1:] % 2 == 0
        reasons = np.repeat(even * Reason.CONTACT, 2)  # the labels are 2, 4, ...
        anchors = None
        if self.is_anchored:  # the first pixel in raster order
            anchors = np.zeros((2 * n, labels.ndim), int)
            _, first = np.unique(labels, return_index=True)
            anchors[1::2] = np.column_stack(np.unravel_index(first, labels.shape))[-n:] if n else 0
        return Decoded(2 * labels, anchors, None, reasons)


class Outlined(Method):
    """What is drawn, without the objects that have too little background around them."""

    name: ClassVar[str] = "outlined"
    map_dtype: ClassVar[str] = "int32"

    contact: float = 0.9

    def context(self, image):
        return (1,) * image.ndim

    def predict(self, image, view):
        return image[:1]

    def decode(self, maps, view):
        share = background_contact(maps[0], int(maps[0].max(initial=0)))
        return Decoded(maps[0], reasons=np.where(share < self.contact, Reason.CONTACT, 0))


def _expected(image):
    """Reference: labels of all candidates in raster order of their first pixels, and which are rejected."""
    labels, _ = ndimage.label(image)
    return labels, np.bincount(labels.ravel())[1:] % 2 == 0


def _reasons(found):
    return found.mask.objects.reason


# --- any plan -----------------------------------------------------------------------------------------------


@few
@given(
    seed=st.integers(0, 2**16), share=st.sampled_from([0.3, 0.5, 0.62]), is_anchored=st.booleans(),
    core=st.tuples(st.integers(17, 45), st.integers(17, 50)), halo=st.integers(1, 9), volume=st.booleans(),
)  # fmt: skip
def test_the_same_are_rejected_for_any_plan(seed, share, is_anchored, core, halo, volume, tmp_path_factory):
    """Densities up to where one object winds through the whole image."""
    shape, core = ((9, 22, 24), (5, *(max(8, c // 2) for c in core))) if volume else ((45, 50), core)
    image = (np.random.default_rng(seed).random((1, *shape)) < share / (2 if volume else 1)).astype(np.uint8)
    folder, method = tmp_path_factory.mktemp("scratch"), OddAreas(is_anchored=is_anchored)
    whole = tile(image, method, whole_plan(shape), folder / "whole")
    parts = tile(image, method, make_plan(shape, core, (halo,) * len(shape)), folder / "parts")
    assert parts.same_as(whole)
    assert _reasons(parts).dtype == np.uint8
    np.testing.assert_array_equal(_reasons(parts), _reasons(whole))
    area = np.bincount(whole.labels.ravel())[1:]
    np.testing.assert_array_equal(_reasons(whole), np.where(area % 2, Reason.KEPT, Reason.CONTACT))


@few
@given(
    seed=st.integers(0, 4), core=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    halo=st.sampled_from([1, 5, 20]), contact=st.sampled_from([0.4, 0.6]),
)  # fmt: skip
def test_cells_with_little_background_around_them(seed, core, halo, contact, tmp_path_factory):
    image = Tissue((90, 100), seed=seed, cell_diameter=13).cells().compute()[None].astype(np.int32)
    folder, method = tmp_path_factory.mktemp("scratch"), Outlined(contact=contact)
    whole = tile(image, method, whole_plan(image.shape[1:]), folder / "whole")
    parts = tile(image, method, make_plan(image.shape[1:], core, (halo, halo)), folder / "parts")
    assert parts.same_as(whole)
    np.testing.assert_array_equal(_reasons(parts), _reasons(whole))
    share = background_contact(whole.labels, len(whole.anchors))
    np.testing.assert_array_equal(_reasons(whole) == Reason.CONTACT, share < contact)
    assert np.unique(_reasons(whole)).tolist() == [Reason.KEPT, Reason.CONTACT]


def test_objects_beyond_the_halo_are_judged_whole(tmp_path, monkeypatch):
    """Bars far longer than the halo, of even and odd areas, put together from patches."""
    merged = []
    monkeypatch.setattr(again, "_merged", lambda *a, f=again._merged: merged.append(1) or f(*a))
    image = np.zeros((1, 300, 300), np.uint8)
    image[0, 20, 90:150] = image[0, 40, 90:151] = image[0, 150:211, 120] = image[0, 150:211, 124:126] = 1
    image[0, 280, 280] = image[0, 200, 10:12] = 1
    plan = make_plan((300, 300), (100, 100), (9, 9))
    for is_anchored in (True, False):
        folder = tmp_path / str(is_anchored)
        found = tile(image, OddAreas(is_anchored=is_anchored), plan, folder)
        assert found.mask.evidence["again"] > 0
        area = np.bincount(found.labels.ravel())[1:]
        assert sorted(area) == [1, 2, 60, 61, 61, 122]
        np.testing.assert_array_equal(_reasons(found) == Reason.CONTACT, area % 2 == 0)
        resumed = tile(image, OddAreas(is_anchored=is_anchored), plan, folder, resume=True)
        assert resumed.mask.evidence["computed"] == 0
        np.testing.assert_array_equal(_reasons(resumed), _reasons(found))
    assert len(merged) >= 4


def test_merged_objects_that_lose_pixels_keep_their_reasons():
    core = Box((0, 0), (6, 20))
    near, far = np.zeros((6, 24), np.int32), np.zeros((6, 40), np.int32)
    near[1:3, 2:8], near[3:5, 15:24] = 3, 1
    far[2:5, 6:36] = 1  # over a part of the first one
    seen = Seen.of(
        Decoded(near, np.array([[4, 16], [0, 0], [2, 3]]), None, np.array([0, 0, 7])), _window(24, core), (1,)
    )
    patch = Seen.of(Decoded(far, np.array([[4, 16]]), None, np.array([8])), _window(40, core), (1,))
    assert seen.objects.reason.tolist() == [0, 7]
    unresolved = seen.unresolved()
    found = again._merged(seen, [patch], unresolved)
    assert found.objects.area.tolist() == [12, 90 - 2]
    assert found.objects.reason.tolist() == [7, 8]


def test_reasons_stay_with_their_candidates_where_some_are_covered():
    anchors, reason = np.array([[0, 0], [0, 5], [3, 3]]), np.array([0, 8, 7], np.uint8)
    left = Moments(np.array([1, 3]), np.array([4, 4]), np.zeros((2, 2), int), np.zeros((2, 4), int))
    objects, covered = candidates_of(anchors, reason, left)
    assert (objects.ids.tolist(), objects.reason.tolist()) == ([1, 3], [0, 7])
    assert (covered.ids.tolist(), covered.reason.tolist()) == ([2], [8])
    unmeasured, none = candidates_of(anchors, reason, None)
    assert unmeasured.reason.tolist() == [0, 8, 7]
    assert len(none) == 0


def _window(columns, core):
    return Window(Box((0, 0), (6, columns)), core, Box((0, 0), (6, 40)))


# --- the contract -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasons", "message"),
    [
        (np.zeros(1, int), r"reasons of shape \(1,\).*expected 2 codes"),
        (np.zeros((2, 1), int), r"shape \(2, 1\)"),
        (np.zeros(2), "dtype float64"),
        (np.array([0, len(Reason)]), r"reasons 0 to 11, expected codes of 0 \(KEPT\).*8 \(CONTACT\)"),
        (np.array([-1, 0]), "reasons -1 to 0"),
    ],
)
@pytest.mark.parametrize("anchors", [None, np.zeros((2, 2), int)])
def test_reasons_are_codes_one_an_object(reasons, message, anchors):
    window = Window(*[Box((0, 0), (2, 3))] * 3)
    with pytest.raises(MethodError, match=message):
        Seen.of(Decoded(np.array([[1, 0, 2], [1, 0, 0]]), anchors, None, reasons), window, (1,))


def test_codes_stay_and_the_text_is_new():
    assert [r.value for r in Reason] == list(range(11))
    assert Reason.CONTACT.text == "low_contact"
    assert Reason.COVERED.text == "covered"
    assert Reason.FLOW_ERROR.text == "flow_error"
    assert Reason.REPLACED.text == "replaced"
    assert Reason.KEPT.text == ""


def test_objects_without_reasons_have_none():
    objects = Objects(np.arange(1, 4), *(np.zeros((3, 2)),) * 4)
    assert objects.reason.tolist() == [0, 0, 0]
    rejected = replace(objects, reason=np.array([0, 8, 7], np.uint8))
    assert rejected.take(np.array([2, 1])).reason.tolist() == [7, 8]
    assert len(objects.take(np.zeros(0, int)).reason) == len(Objects.empty(2).reason) == 0


# --- through segment ----------------------------------------------------------------------------------------


def _sdata(*channels):
    return SpatialData(images={"image": Image2DModel.parse(np.stack(channels), dims=("c", "y", "x"))})


def _labels(sdata, mask="cell"):
    element = sdata[f"segmentation_{mask}_labels"]
    return np.asarray(next(iter(get_pyramid_levels(element))) if isinstance(element, DataTree) else element)


def _run(channels, workflow, **options):
    return segment(_sdata(*channels), "image", workflow, n_jobs=2, progress=False, **options)


def _obs(sdata, kind="cell"):
    obs = sdata["segmentation_candidates"].obs
    return obs[obs["kind"] == kind]


def _reason_of(sdata, kind="cell"):
    """Return the reason of each candidate, in raster order of the anchors."""
    return [str(r) for r in _obs(sdata, kind)["drop_reason"]]


def _dots(seed=2, shape=(70, 80)):
    return (ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.2) > 0.53).astype(np.uint8)


@pytest.mark.parametrize("shard_size", [None, 800])
def test_every_candidate_is_accounted_for(shard_size):
    image = _dots()
    candidates, even = _expected(image)
    sdata = _run([image], OddAreas(), shard_size=shard_size)
    obs = _obs(sdata)
    assert len(obs) == len(even)
    assert 0 < even.sum() < len(even)
    np.testing.assert_array_equal(obs["drop_reason"] == "low_contact", even)
    np.testing.assert_array_equal(obs["is_kept"], ~even)
    np.testing.assert_array_equal(obs["area"], np.bincount(candidates.ravel())[1:])
    assert set(obs["drop_reason"]) == {"", "low_contact"}
    final = np.r_[0, np.where(even, 0, np.cumsum(~even))]
    np.testing.assert_array_equal(_labels(sdata), final[candidates])
    np.testing.assert_array_equal(obs["cell_id"], final[1:])
    assert sdata["segmentation_table"].n_obs == len(sdata["segmentation_cell_boundaries"]) == (~even).sum()
    assert (sdata["segmentation_table"].obs["area"] % 2 == 1).all()


@pytest.mark.parametrize("shard_size", [None, 800])
@pytest.mark.parametrize("is_anchored", [True, False])
def test_without_a_table_and_lazily_the_same(shard_size, is_anchored):
    image, method = _dots(), OddAreas(is_anchored=is_anchored)
    wanted = _labels(_run([image], method))
    bare = _run([image], method, shard_size=shard_size, table=False, shapes=False)
    np.testing.assert_array_equal(_labels(bare), wanted)
    lazy = np.asarray(label_image(image[None], method, shard_size=shard_size))
    assert lazy.dtype == np.uint64
    np.testing.assert_array_equal(np.searchsorted(np.unique(np.append(lazy, 0)), lazy), wanted)


def test_all_rejected():
    image = np.zeros((20, 30), np.uint8)
    image[3:5, 3:5] = image[10:12, 20:22] = 1
    with pytest.warns(UserWarning, match="none of 2 candidates was kept"):
        sdata = _run([image], OddAreas(), shard_size=200)
    assert _reason_of(sdata) == ["low_contact"] * 2
    assert not _labels(sdata).any()
    assert not np.asarray(label_image(image[None], OddAreas(), shard_size=200)).any()


def test_reasons_that_are_no_codes_fail_their_shard():
    class Wrong(OddAreas):
        def decode(self, maps, view):
            return replace(super().decode(maps, view), reasons=np.full(9999, 77))

    with pytest.raises(ShardError, match="reasons 77 to 77"):
        _run([_dots()], Wrong(is_anchored=False))


class Greedy(Method):
    """Squares around marked pixels: wide where the core holds the pixel, narrow elsewhere; odd marks are rejected."""

    name: ClassVar[str] = "greedy"
    map_dtype: ClassVar[str] = "uint8"

    def context(self, image):
        return (10,) * image.ndim

    def predict(self, image, view):
        return image[:1]

    def decode(self, maps, view):
        labels = np.zeros(maps.shape[1:], np.int32)
        points = np.argwhere(maps[0] > 0)
        core = view.window.core.within(view.window.box)
        for i, (y, x) in enumerate(points):
            r = 6 if core[0].start <= y < core[0].stop and core[1].start <= x < core[1].stop else 3
            square = labels[max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1]
            square[square == 0] = i + 1
        return Decoded(labels, points, None, maps[0][tuple(points.T)] % 2 * int(Reason.CONTACT))


@pytest.mark.parametrize("marks", [(1, 2), (2, 1), (1, 1), (2, 2)])
def test_contested_pixels_of_what_is_rejected_are_nobodys(marks, tmp_path):
    """Two shards paint over each other's object; the first anchor has the pixels, rejected or not."""
    image = np.zeros((24, 40), np.uint8)
    image[12, 16], image[12, 24] = marks
    found = tile(image[None], Greedy(), make_plan((24, 40), (24, 20), (0, 12)), tmp_path)
    assert found.mask.evidence["contested_px"] > 0
    assert found.mask.objects.area.tolist() == [13 * 13, 8 * 13]
    rejected = np.array(marks) % 2 == 1
    assert ((_reasons(found) == Reason.CONTACT) == rejected).all()
    wanted = np.zeros(3, int)
    wanted[1:][~rejected] = np.arange(1, (~rejected).sum() + 1)
    options = {"shard_size": 24 * 20, "overlap_px": 12}
    for more in ({}, {"table": False}):
        if not rejected.all():
            np.testing.assert_array_equal(_labels(_run([image], Greedy(), **options, **more)), wanted[found.labels])
    lazy = np.asarray(label_image(image[None], Greedy(), **options))
    np.testing.assert_array_equal(np.searchsorted(np.unique(np.append(lazy, 0)), lazy), wanted[found.labels])


# --- with other reasons -------------------------------------------------------------------------------------


def _row(*spans, side=12):
    """Draw bars of one row of pixels from (start, stop)."""
    image = np.zeros((side, 60), np.uint8)
    for a, b in spans:
        image[5, a:b] = 1
    return image


def test_the_method_comes_before_the_sizes():
    """Areas 1, 2, 5, 8, 9: what is even is rejected, also where it is too small or too large."""
    image = _row((1, 2), (5, 7), (10, 15), (20, 28), (35, 44))
    flow = Workflow(cell=OddAreas(), filter_masks_size=True, cell_size=SizeFilter(min_size=3, max_size=7))
    for more in ({}, {"shard_size": 200}):
        sdata = _run([image], flow, **more)
        assert _reason_of(sdata) == ["too_small", "low_contact", "", "low_contact", "too_large"]


def test_rejected_objects_are_not_part_of_an_interval():
    """Those left are of one area, and all kept; with the others the interval would hold none of them."""
    image = _row((1, 10), (12, 21), (23, 32), (34, 36), (38, 40), (42, 44))
    flow = Workflow(cell=OddAreas(), filter_masks_size=True, cell_size=SizeFilter(confidence_interval=0.5))
    assert _reason_of(_run([image], flow)) == ["", "", "", *["low_contact"] * 3]


def test_outside_of_the_region_comes_first():
    image = _row((1, 3), (5, 8), (30, 32), (40, 43))
    sdata = _run([image], OddAreas(), bounding_box=(0, 0, 20, 12))
    assert _reason_of(sdata) == ["low_contact", ""]
    assert np.unique(_labels(sdata)).tolist() == [0, 1]


def test_covered_then_region_then_method():
    anchor = np.array([[0, 0], [0, 1], [9, 0], [9, 1]])
    place = np.zeros((2, 4))
    mask = SimpleNamespace(
        objects=Objects(np.array([1, 3]), anchor[[0, 2]], np.array([5, 5]), anchor[[0, 2]], place, _codes(8, 8)),
        covered=Objects(np.array([2, 4]), anchor[[1, 3]], np.array([0, 0]), anchor[[1, 3]], place, _codes(8, 8)),
        pairs=None,
    )
    request = SimpleNamespace(region=None, pixel_area=None, workflow=Workflow(cell=OddAreas()))
    found = judge(request, {"cell": mask})
    assert found.fate("cell").reasons.tolist() == ["low_contact", "covered", "low_contact", "covered"]
    assert found.objects["cell"].reason.tolist() == [8] * 4


def _codes(*codes):
    return np.array(codes, np.uint8)


# --- pairs --------------------------------------------------------------------------------------------------


def drawn(image):
    return image[-1].astype(np.int64)


def _pair(nucleus, cell, flow, **options):
    return _run([nucleus, cell], flow, **options)


@pytest.mark.parametrize("shard_size", [None, 300])
def test_no_cell_grows_from_a_rejected_nucleus(shard_size):
    nuclei = _row((3, 6), (20, 24), (40, 45))
    flow = Workflow(nucleus=OddAreas(), cell=ExpandNuclei(distance=2))
    for unmatched in ("drop", "keep"):
        sdata = _pair(nuclei, nuclei, flow.model_copy(update={"unmatched": unmatched}), shard_size=shard_size)
        assert _reason_of(sdata, "nucleus") == ["", "low_contact", ""]
        assert _reason_of(sdata, "cell") == ["", ""]  # nothing grows from it
        for mask in ("nucleus", "cell"):
            assert _labels(sdata, mask)[5, [4, 22, 42]].tolist() == [1, 0, 2]
    apart = _pair(nuclei, nuclei, flow.model_copy(update={"match_masks": False}), shard_size=shard_size)
    assert _reason_of(apart, "nucleus") == ["", "low_contact", ""]
    assert _reason_of(apart, "cell") == ["", ""]
    assert _labels(apart, "nucleus")[5, [4, 22, 42]].tolist() == [1, 0, 2]
    assert _labels(apart, "cell")[5, [4, 22, 42]].tolist() == [1, 0, 2]


@pytest.mark.parametrize("table", [True, False])
def test_a_rejected_nucleus_does_not_make_a_cell_multinucleated(table):
    nuclei, cells = _row((3, 6), (8, 10), (20, 23), (25, 28), (40, 42)), _row((2, 12), (18, 30), (38, 45))
    cells *= np.array(ndimage.label(cells)[0], np.uint8)
    flow = Workflow(nucleus=OddAreas(), cell=Function(function=drawn, context_px=1))
    for more in ({}, {"shard_size": 240}):
        sdata = _pair(nuclei, cells, flow, table=table, **more)
        assert _labels(sdata, "nucleus")[5, [4, 9, 21, 26, 41]].tolist() == [1, 0, 0, 0, 0]
        assert _labels(sdata, "cell")[5, [4, 21, 41]].tolist() == [1, 0, 0]
        if table:
            many = "multinucleated"
            assert _reason_of(sdata, "nucleus") == ["", "low_contact", many, many, "low_contact"]
            assert _reason_of(sdata, "cell") == ["", many, "partner_dropped"]
            assert sdata["segmentation_table"].obs["n_nuclei"].tolist() == [1]
            assert sdata["segmentation_table"].obs["nucleus_area"].tolist() == [3]


class SecondChannel(OddAreas):
    name: ClassVar[str] = "second-channel"
    default_channels: ClassVar[tuple[int, ...]] = (1,)


def test_a_rejected_cell_takes_its_nuclei_along():
    nuclei, cells = _row((3, 6), (20, 23), (50, 53)), _row((2, 9), (18, 26), (40, 44))
    sdata = _pair(nuclei, cells, Workflow(nucleus=Function(function=parts, context_px=1, channels=(0,)),
                                          cell=SecondChannel()))  # fmt: skip
    assert _reason_of(sdata, "nucleus") == ["", "partner_dropped", "unmatched"]
    assert _reason_of(sdata, "cell") == ["", "low_contact", "low_contact"]


def parts(image):
    return ndimage.label(image[0])[0]
