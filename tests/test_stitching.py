"""Volumes segmented plane by plane and stitched: the same as segmenting every plane alone and `stitch_planes`."""

from __future__ import annotations

import warnings
from typing import ClassVar

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, Labels3DModel

from spatialdata_segment import (
    ExpandNuclei,
    Function,
    SeededWatershed,
    ThresholdNuclei,
    Workflow,
    _segment,
    decode,
    label_image,
    predict,
    preview,
    segment,
    stitch_planes,
)
from spatialdata_segment import plan as plan_of
from spatialdata_segment._maps import MANIFEST
from spatialdata_segment._table import read_metadata
from spatialdata_segment.cli import main
from spatialdata_segment.config import as_workflow
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.whole import measure_image, usual_radius
from spatialdata_segment.errors import InputError, SegmentationWarning, ShardError
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method
from spatialdata_segment.methods.planes import Planes
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.dummies import DummyDiscs, DummyNetwork, DummyVolume
from spatialdata_segment.testing.strategies import tissue_images
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

SHAPE = (8, 66, 78)
NUCLEI = ThresholdNuclei(threshold=1500, min_distance=4, debris=0)
few = settings(
    max_examples=10, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def blobs(image):
    smooth = ndimage.gaussian_filter(image[0].astype(np.float32), 1, radius=1)
    return ndimage.label(ndimage.binary_opening(smooth > 1500, iterations=2))[0]


def connected(image):
    return ndimage.label(image[0] > 0)[0]


def bright(image):
    return image[0].astype(np.int32)


@pytest.fixture(scope="module")
def image():
    """``(c, z, y, x)``: the nuclear and the membrane stain; the fourth plane is empty."""
    tissue = Tissue(SHAPE, seed=4, cell_diameter=16, anisotropy=2.0)
    pixels = tissue.block(Box.whole(tissue.shape)).image[:2].copy()
    pixels[:, 3] = 0
    pixels.flags.writeable = False
    return pixels


def with_threshold(method, threshold):
    return method.model_copy(update={"stitch_threshold": threshold})


def sdata_of(pixels, path=None):
    model = Image3DModel if pixels.ndim == 4 else Image2DModel
    dims = ("c", "z", "y", "x") if pixels.ndim == 4 else ("c", "y", "x")
    names = ["DAPI", "WGA"][: len(pixels)]
    sdata = SpatialData(images={"image": model.parse(pixels, dims=dims, c_coords=names)})
    if path is None:
        return sdata
    sdata.write(path)
    return SpatialData.read(path)


def labels_of(sdata, kind="cell", key="segmentation"):
    return np.asarray(sdata[f"{key}_{kind}_labels"].data)


def stitched(planes, threshold):
    sdata = SpatialData(labels={"planes": Labels3DModel.parse(planes, dims=("z", "y", "x"))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stitch_planes(sdata, "planes", threshold=threshold)
    return labels_of(sdata)


def alone(pixels, method, folder, nucleus=None):
    """Label every plane of a volume by itself, 1..n in each."""
    shape = pixels.shape[2:]
    return np.stack([
        tile(pixels[:, z], method, whole_plan(shape), folder / f"plane{z}", nucleus=nucleus).labels
        for z in range(pixels.shape[1])
    ])  # fmt: skip


# the rule


@pytest.mark.parametrize("threshold", [0, 0.25, 0.5, 0.8, 1])
@pytest.mark.parametrize("method", [NUCLEI, Function(function=blobs, context_px=5)], ids=["threshold", "function"])
def test_equals_planes_by_themselves_and_stitch_planes(image, method, threshold, tmp_path):
    found = tile(image[:1], with_threshold(method, threshold), make_plan(SHAPE, (3, 40, 78), (0, 9, 9)), tmp_path)
    planes = alone(image[:1], method, tmp_path)
    assert planes.max() > 3
    assert np.array_equal(found.labels, stitched(planes, threshold))
    if threshold == 0.25:
        depth = [len(np.unique(np.nonzero(found.labels == i)[0])) for i in range(1, found.labels.max() + 1)]
        assert max(depth) > 1


def test_segment_equals_segment_of_planes(image):
    """Through the whole of `segment`, two masks and all; a plane alone is an image."""
    flow = {"nucleus": NUCLEI, "cell": ExpandNuclei(distance=3), "match_masks": False}
    planes = []
    for z in range(SHAPE[0]):
        one = sdata_of(image[:, z])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the plane without a nucleus
            segment(one, "image", Workflow(**flow), shapes=False, table=False, progress=False)
        planes.append([labels_of(one, kind) for kind in ("nucleus", "cell")])
    flow |= {m: with_threshold(flow[m], 0.3) for m in ("nucleus", "cell")}
    sdata = segment(sdata_of(image), "image", Workflow(**flow), shard_size=9000, shapes=False, progress=False)
    for k, kind in enumerate(("nucleus", "cell")):
        assert np.array_equal(labels_of(sdata, kind), stitched(np.stack([p[k] for p in planes]), 0.3))


def test_statistics_are_those_of_the_volume(image, tmp_path):
    """What is measured (a threshold, the size of disks) is measured once, and then every plane is an image."""
    method = ThresholdNuclei(threshold="otsu", stitch_threshold=0.3)
    plan = whole_plan(SHAPE)
    found = tile(image[:1], method, plan, tmp_path)
    volume = label_image(image, with_threshold(method, 0), n_jobs=1)
    info = ImageInfo(SHAPE, image.dtype)
    wanted = Planes(plane=method).statistics(info)
    numbers = measure_image(da.from_array(image[:1]), wanted, plan, Executor(1), "s", by_plane=True)
    assert len(numbers) == 2
    one = [np.asarray(label_image(image[:, z], method, statistics=numbers, n_jobs=1)) for z in range(SHAPE[0])]
    own = method.adapted(info.flat, numbers).without_least_size(info.flat)[0]
    planes = [np.asarray(label_image(image[:, z], own, statistics=numbers, n_jobs=1)) for z in range(SHAPE[0])]
    offsets = np.arange(SHAPE[0]).reshape(-1, 1, 1) * np.prod(SHAPE[1:])
    assert np.array_equal(np.asarray(volume), np.where(np.stack(one) > 0, np.stack(one) + offsets, 0))
    every = stitched(np.stack(planes), 0.3)
    least = method.adapted(info.flat, numbers).without_least_size(info.flat)[1]
    areas = np.bincount(every.ravel())
    kept = (areas >= least) & (np.arange(len(areas)) > 0)
    assert np.array_equal(found.mask.objects.reason == 0, kept[1:])
    assert np.array_equal(found.labels, every)


def test_size_of_objects_is_that_of_disks(image):
    """The radius is measured in planes, whatever the distance between them."""
    z, y, x = np.ogrid[:9, :120, :120]
    disks = (((y % 30) - 15) ** 2 + ((x % 30) - 15) ** 2 <= 81) & (z >= 0)
    flat = usual_radius(da.from_array(disks[4] * np.uint16(1000)), 500, Executor(1))
    assert abs(flat - 9) < 1
    volume = da.from_array(disks * np.uint16(1000), chunks=(2, 50, 60))
    assert usual_radius(volume, 500, Executor(1), by_plane=True) == flat
    assert usual_radius(da.from_array(disks[::9] * np.uint16(1000)), 500, Executor(1), by_plane=True) == flat


def test_proposals_of_planes(image, tmp_path):
    method = DummyDiscs(radius=4, spacing=6, threshold=1500, stitch_threshold=0.3)
    found = tile(image[:1], method, make_plan(SHAPE, (3, 40, 50), (0, 8, 8)), tmp_path)
    planes = alone(image[:1], method, tmp_path)
    assert planes.max() > 3
    assert np.array_equal(found.labels, stitched(planes, 0.3))


def test_a_plane_is_grown_from_the_nuclei_of_that_plane(image, tmp_path):
    method = SeededWatershed(lower_quantile_normalization=0, upper_quantile_normalization=1, max_distance=8)
    planes = []
    for z in range(SHAPE[0]):  # with the same brightest and darkest pixel, the quantiles are those of the volume
        plane = image[1:, z].copy()
        plane[0, 0, :2] = image[1].min(), image[1].max()
        planes.append(plane)
    pixels = np.stack(planes, axis=1)
    pixels[0, :, 30:34, 30:34] = 60000
    both = Workflow(
        nucleus=with_threshold(Function(function=blobs, context_px=5, channels=0), 0.3),
        cell=with_threshold(method, 0.3).model_copy(update={"channels": (1,)}),
        match_masks=False,
    )
    stack = np.concatenate([image[:1], pixels])
    sdata = segment(sdata_of(stack), "image", both, shard_size=12000, shapes=False, table=False, progress=False)
    expected = []
    for z in range(SHAPE[0]):
        flow = both.model_copy(update={m: with_threshold(getattr(both, m), None) for m in ("nucleus", "cell")})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = segment(sdata_of(stack[:, z]), "image", flow, shapes=False, table=False, progress=False)
        expected.append(labels_of(one))
    assert np.array_equal(labels_of(sdata), stitched(np.stack(expected), 0.3))


def test_cells_in_3d_grow_from_stitched_nuclei(image, tmp_path):
    """Of nuclei that are joined, a method that works in 3D gets whole ones."""
    nucleus = with_threshold(NUCLEI, 0.3)
    whole = tile(image[:1], ExpandNuclei(distance=2), whole_plan(SHAPE), tmp_path / "a", nucleus=nucleus)
    parts = tile(
        image[:1], ExpandNuclei(distance=2), make_plan(SHAPE, (3, 30, 78), (2, 3, 3)), tmp_path / "b", nucleus=nucleus
    )
    nuclei = tile(image[:1], nucleus, whole_plan(SHAPE), tmp_path / "n").labels
    assert parts.same_as(whole)
    assert np.array_equal(whole.labels[nuclei > 0], nuclei[nuclei > 0])
    assert (whole.labels[3] > 0).any()  # into the plane that has no nucleus of its own


# the same for every plan


@few
@given(
    data=st.data(), pixels=tissue_images(3, min_side=8, max_side=30), threshold=st.sampled_from([0, 0.1, 0.3, 0.6, 1.0])
)  # fmt: skip
def test_tiling_invariance(data, pixels, threshold, tmp_path_factory):
    shape = pixels.shape[1:]
    method = data.draw(st.sampled_from([
        ThresholdNuclei(threshold="otsu", min_distance=4), DummyNetwork(tile=16), ThresholdNuclei(contact_filter=0.5),
        Function(function=blobs, context_px=5), ExpandNuclei(distance=4.5),
    ]))  # fmt: skip
    nucleus = with_threshold(NUCLEI, 0.4) if method.seeded else None
    method = with_threshold(method, threshold)
    core = [data.draw(st.integers(max(1, -(-n // 3)), n + 3)) for n in shape]
    first = [data.draw(st.integers(0, c)) for c in core]
    context = Planes(plane=method).context(ImageInfo(shape, pixels.dtype))
    halo = [c + data.draw(st.sampled_from([0, 1, 8])) for c in context]
    folder = tmp_path_factory.mktemp("scratch")
    whole = tile(pixels[:1], method, whole_plan(shape), folder / "whole", nucleus=nucleus)
    parts = tile(pixels[:1], method, make_plan(shape, core, halo, first), folder / "parts", nucleus=nucleus)
    assert parts.same_as(whole)
    assert np.array_equal(parts.mask.objects.area, whole.mask.objects.area)
    assert np.array_equal(parts.mask.objects.bbox, whole.mask.objects.bbox)
    assert np.array_equal(parts.mask.objects.reason, whole.mask.objects.reason)


@pytest.mark.parametrize("core", [(1, 66, 78), (2, 33, 39), (8, 22, 40), (5, 66, 20)])
def test_plans_and_threads_and_phases_agree(image, core, tmp_path):
    method = with_threshold(ThresholdNuclei(threshold="otsu"), 0.3)
    whole = tile(image[:1], method, whole_plan(SHAPE), tmp_path / "whole")
    plan = make_plan(SHAPE, core, (0, 6, 6))
    assert tile(image[:1], method, plan, tmp_path / "threads", executor=Executor(3)).same_as(whole)
    assert tile(image[:1], method, plan, tmp_path / "phases", two_phases=True).same_as(whole)


def test_what_is_joined_is_what_is_written_where_shards_disagree(image, tmp_path):
    """A method that sees farther than it says: whatever stands, sizes are those of the pixels."""

    def by_window(window):
        return ndimage.label(window[0] > 0.8 * window[0].mean() + 500)[0]

    method = Function(function=by_window, context_px=1, stitch_threshold=0.3)
    found = tile(image[:1], method, make_plan(SHAPE, (4, 33, 39), (0, 2, 2)), tmp_path)
    evidence = found.mask.evidence
    assert evidence["twins"] + evidence["adopted"] + evidence["contested_px"] > 0
    objects = found.mask.objects
    areas = np.bincount(found.labels.ravel(), minlength=objects.ids[-1] + 1)
    assert np.array_equal(areas[objects.ids], objects.area)
    assert areas[1:].sum() == objects.area.sum()
    boxes = ndimage.find_objects(found.labels)
    for i, bbox in zip(objects.ids.tolist(), objects.bbox.tolist(), strict=True):
        assert [s.start for s in boxes[i - 1]] + [s.stop for s in boxes[i - 1]] == bbox


# whole objects


def test_the_table_is_of_3d_objects(image):
    flow = Workflow(nucleus=with_threshold(NUCLEI, 0.3), filter_masks_size=True, nucleus_size={"min_size": 200})
    sdata = segment(sdata_of(image), "image", flow, pixel_size=(2.0, 0.5, 0.5), progress=False)
    labels, table = labels_of(sdata, "nucleus"), sdata["segmentation_table"]
    assert np.array_equal(table.obs["cell_id"], np.unique(labels[labels > 0]))
    areas = np.bincount(labels.ravel())[1:]
    assert np.array_equal(table.obs["area"], areas)
    assert areas.min() >= 200
    assert np.allclose(table.obs["volume_um3"], areas * 0.5)
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, table.obs["cell_id"]))[:, ::-1] + 0.5
    assert np.allclose(table.obsm["spatial"], centres)
    means = ndimage.mean(image[0], labels, table.obs["cell_id"])
    assert np.allclose(np.asarray(table[:, "DAPI"].X).ravel(), means, rtol=1e-6)
    said = read_metadata(table)
    candidates = sdata["segmentation_candidates"].obs
    counts = said["counts"]["nucleus"]
    assert counts["candidates"] == len(candidates)
    assert counts["kept"] == len(table)
    assert counts["objects_of_planes"] == sum(len(np.unique(p)) - 1 for p in _planes(image, NUCLEI)) > len(candidates)
    assert said["workflow"]["nucleus"]["stitch_threshold"] == 0.3
    assert set(candidates["drop_reason"]) == {"", "too_small"}


def _planes(image, method):
    return [np.asarray(label_image(image[:, z], method, n_jobs=1)) for z in range(image.shape[1])]


def test_nuclei_and_cells_are_matched_in_3d(image):
    flow = Workflow(nucleus=with_threshold(NUCLEI, 0.3), cell=ExpandNuclei(distance=2, stitch_threshold=0.3))
    sdata = segment(sdata_of(image), "image", flow, shard_size=15000, shapes=False, progress=False)
    nuclei, cells = labels_of(sdata, "nucleus"), labels_of(sdata)
    assert nuclei.max() > 5
    assert np.array_equal(cells[nuclei > 0], nuclei[nuclei > 0])
    table = sdata["segmentation_table"].obs
    assert np.array_equal(table["nucleus_area"], np.bincount(nuclei.ravel())[1:])
    assert (table["overlap_fraction"] == 1).all()


def squares(*planes):
    """Return ``(1, z, 30, 30)``: in each plane squares, given as (value, y, x, side)."""
    out = np.zeros((1, len(planes), 30, 30), np.uint16)
    for z, plane in enumerate(planes):
        for value, y, x, side in plane:
            out[0, z, y : y + side, x : x + side] = value
    return out


class Judged(Method):
    """Pixel values as labels; those from 100 on are rejected for their flows, and those of less than ``least`` px."""

    name: ClassVar[str] = "judged"
    map_dtype: ClassVar[str | None] = "uint16"

    least: int = 0

    def context(self, image):
        return (1,) * image.ndim

    def without_least_size(self, image):
        return self.model_copy(update={"least": 0}), float(self.least)

    def predict(self, image, view):
        return image

    def decode(self, maps, view):
        labels = maps[0].astype(np.int32)
        n = int(labels.max())
        reasons = np.where(np.bincount(labels.ravel(), minlength=n + 1)[1:] < self.least, Reason.TOO_SMALL, 0)
        reasons[99:] = Reason.FLOW_ERROR
        return Decoded(labels, reasons=reasons)


def judged(sdata):
    table = sdata["segmentation_candidates"].obs
    return list(zip(table["area"], table["drop_reason"], table["bbox_z_max"] - table["bbox_z_min"], strict=True))


def test_what_is_rejected_does_not_bridge():
    """The middle plane's object is refused: what lies above and below is apart, and all are on record."""
    pixels = squares([(1, 5, 5, 8)], [(120, 5, 5, 8)], [(1, 5, 5, 8)], [(2, 5, 5, 8)])
    sdata = segment(sdata_of(pixels), "image", Judged(stitch_threshold=0.5), shapes=False, progress=False)
    assert np.unique(labels_of(sdata)[:, 6, 6]).tolist() == [0, 1, 2]
    assert labels_of(sdata)[:, 6, 6].tolist() == [1, 0, 2, 2]
    assert judged(sdata) == [(64, "", 1), (64, "flow_error", 1), (128, "", 2)]


def test_whole_objects_are_too_small_not_their_caps():
    caps = squares([(1, 5, 5, 3)], [(1, 5, 5, 4)], [(1, 5, 5, 3), (2, 20, 20, 3)])
    sdata = segment(sdata_of(caps), "image", Judged(least=16, stitch_threshold=0.5), shapes=False, progress=False)
    assert judged(sdata) == [(34, "", 3), (9, "too_small", 1)]
    assert labels_of(sdata).max() == 1
    apart = segment(sdata_of(caps), "image", Judged(least=16, stitch_threshold=0), shapes=False, progress=False)
    assert judged(apart) == [(9, "too_small", 1), (16, "", 1), (9, "too_small", 1), (9, "too_small", 1)]


def test_ties_are_those_of_the_plane(tmp_path):
    """In the second plane the left nucleus comes first in raster order; of the 3D objects it is the second."""
    pixels = squares([(1, 8, 5, 8), (2, 4, 14, 8)], [(1, 6, 5, 8), (2, 6, 14, 8)])
    method, nucleus = ExpandNuclei(distance=1, stitch_threshold=0.5), Judged(stitch_threshold=0.5)
    cells = tile(pixels, method, whole_plan(pixels.shape[1:]), tmp_path / "v", nucleus=nucleus).labels
    plane = tile(pixels[:, 1], ExpandNuclei(distance=1), whole_plan((30, 30)), tmp_path / "p", nucleus=Judged()).labels
    assert cells[:, 8, 6].tolist() == [2, 2]
    assert plane[8, 13] == plane[8, 6]
    assert cells[1, 8, 13] == 2


def test_cells_of_one_grown_from_nuclei_that_are_too_small_are_not_there():
    """A plane's nucleus is no seed where the whole of it is rejected; it is one where the whole is large enough."""
    caps = squares([(1, 5, 5, 3)], [(1, 5, 5, 4)], [(1, 5, 5, 3), (2, 20, 20, 3)])
    flow = Workflow(
        nucleus=Judged(least=16, stitch_threshold=0.5),
        cell=ExpandNuclei(distance=1, stitch_threshold=0.3),
        match_masks=False,
    )
    sdata = segment(sdata_of(caps), "image", flow, shapes=False, progress=False)
    assert np.array_equal(labels_of(sdata)[:, 6, 6], [1, 1, 1])
    assert not labels_of(sdata)[:, 20:, 20:].any()


def test_the_least_of_the_threshold_method_is_of_whole_objects():
    info = ImageInfo((9, 50, 50), np.dtype(np.uint16))
    method = ThresholdNuclei(debris=0.2, object_radius=10)
    same, least = method.without_least_size(info.flat)
    assert (same.debris, round(least)) == (0, 63)
    assert Planes(plane=method).least_size(info) == 0
    assert Planes(plane=with_threshold(method, 0)).least_size(info) == 0
    assert round(Planes(plane=with_threshold(method, 0.5)).least_size(info)) == 63


# empty planes, few planes, no objects


@pytest.mark.parametrize("threshold", [None, 0, 0.4])
def test_one_plane_is_an_image(image, threshold, tmp_path):
    method = DummyNetwork(tile=32, stitch_threshold=threshold)
    volume = tile(image[:1, 2:3], method, make_plan((1, *SHAPE[1:]), (1, 30, 40), (0, 31, 31)), tmp_path / "v")
    plane = tile(image[:1, 2], method, whole_plan(SHAPE[1:]), tmp_path / "p")
    assert plane.labels.max() > 3
    assert np.array_equal(volume.labels[0], plane.labels)


def test_empty_planes_part_objects():
    pixels = squares([], [(1, 5, 5, 8)], [(1, 5, 5, 8)], [], [(1, 5, 5, 8)])
    method = Function(function=connected, context_px=1, stitch_threshold=0.5)
    sdata = segment(sdata_of(pixels), "image", method, shapes=False, progress=False)
    assert labels_of(sdata)[:, 6, 6].tolist() == [0, 1, 1, 0, 2]


def test_nothing_at_all():
    with pytest.warns(SegmentationWarning, match="no object was found"):
        sdata = segment(sdata_of(squares([], [])), "image", with_threshold(NUCLEI, 0.5), progress=False)
    assert not labels_of(sdata).any()
    assert len(sdata["segmentation_candidates"]) == 0


def test_an_image_has_nothing_to_join(image, tmp_path):
    """As Cellpose has it, the threshold does nothing in 2D."""
    plan = whole_plan(SHAPE[1:])
    apart = tile(image[:1, 2], NUCLEI, plan, tmp_path / "a")
    assert tile(image[:1, 2], with_threshold(NUCLEI, 0.3), plan, tmp_path / "b").same_as(apart)


def test_a_method_of_planes_says_what_it_does_with_a_volume(image):
    with pytest.warns(SegmentationWarning, match="pass stitch_threshold=, such as 0.25"):
        found = segment(sdata_of(image[:1]), "image", DummyNetwork(tile=32), shapes=False, table=False, progress=False)
    told = DummyNetwork(tile=32, stitch_threshold=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SegmentationWarning)
        again = segment(sdata_of(image[:1]), "image", told, shapes=False, table=False, progress=False)
    assert np.array_equal(labels_of(found), labels_of(again))
    for a, b in zip(labels_of(found)[:-1], labels_of(found)[1:], strict=True):
        assert not np.intersect1d(a[a > 0], b[b > 0]).size


# what cannot be


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan"), "much"])
def test_thresholds_that_are_none(threshold):
    with pytest.raises(InputError, match="stitch_threshold"):
        as_workflow({"cell": {"method": "threshold-nuclei", "stitch_threshold": threshold}})


def test_methods_of_volumes_have_no_planes(image):
    with pytest.raises(InputError, match=r"stitch_threshold=0.5: dummy-volume works on volumes alone"):
        segment(sdata_of(image), "image", DummyVolume(stitch_threshold=0.5), progress=False)


def test_planes_do_not_grow_from_nuclei_in_3d(image):
    flow = Workflow(nucleus=NUCLEI, cell=ExpandNuclei(distance=2, stitch_threshold=0.3))
    with pytest.raises(InputError, match="give the nucleus method a stitch_threshold as well"):
        segment(sdata_of(image), "image", flow, progress=False)


def test_label_image_joins_nothing(image):
    with pytest.raises(InputError, match=r"stitch_threshold=0.3: .*stitch_planes\(\), or use segment\(\)"):
        label_image(image, with_threshold(NUCLEI, 0.3))
    apart = np.asarray(label_image(image, with_threshold(NUCLEI, 0), shard_size=10_000, n_jobs=1))
    offset = np.prod(SHAPE[1:])
    for z, plane in enumerate(_planes(image, NUCLEI)):
        assert np.array_equal(apart[z], np.where(plane > 0, plane + z * offset, 0))


# regions


@pytest.mark.parametrize("kind", ["nucleus", "pair", "mask"])
def test_a_region_holds_whole_objects(kind):
    """Rods that lean, and a region that is one core: they begin inside and end far outside, or the other way round."""
    pixels = np.zeros((2, 12, 60, 100), np.uint16)
    for y in range(3, 55, 10):
        for x0 in range(2, 60, 12):
            for z in range(5 if x0 % 24 == 2 else 0, 12):
                x = x0 + (3 * z if y % 20 == 3 else 33 - 3 * z)
                pixels[:, z, y : y + 6, x : x + 7] = 1000 + y * 10 + x0
    flow = {"nucleus": Function(function=bright, context_px=0, channels=0, stitch_threshold=0.2)}
    if kind == "pair":
        flow["cell"] = Function(function=bright, context_px=0, channels=1, stitch_threshold=0.2)
    options = {"shapes": False, "progress": False, "overlap_px": 9}
    cut = plan_of(sdata_of(pixels), "image", Workflow(**flow), shard_size=2000, overlap_px=9).masks["nucleus"]
    edges = [[n * i // k for i in range(k + 1)] for n, k in zip((12, 60, 100), cut.grid, strict=True)]
    (z0, z1), (y0, y1), (x0, x1) = ((e[len(e) // 2 - 1], e[len(e) // 2]) for e in edges)
    assert z1 - z0 < 12
    every, sdata = (segment(sdata_of(pixels), "image", Workflow(**flow), **options), sdata_of(pixels))
    if kind == "mask":
        roi = np.zeros(pixels.shape[1:], np.uint8)
        roi[z0:z1, y0:y1, x0:x1] = 1
        sdata["roi"] = Labels3DModel.parse(roi, dims=("z", "y", "x"))
        region = {"roi_key": "roi"}
    else:
        region, z0, z1 = {"bounding_box": (x0 + 0.2, y0 + 0.2, x1 - 0.2, y1 - 0.2)}, 0, 12
    part = segment(sdata, "image", Workflow(**flow), shard_size=2000, **region, **options)
    name = "cell" if kind == "pair" else "nucleus"
    whole, some = labels_of(every, name), labels_of(part, name)
    inside, outside = 0, 0
    for i in range(1, whole.max() + 1):
        first = np.argwhere(whole == i)[0] + [0, 2, 3]  # the anchor is that of the first plane
        within = np.all((first >= [z0, y0, x0]) & (first < [z1, y1, x1]))
        found = np.unique(some[whole == i])
        assert found.tolist() == [some[whole == i].max() if within else 0]
        inside, outside = inside + within, outside + (not within)
    assert inside == some.max() > 1
    assert outside > 10


# runs


def test_every_plan_writes_the_same(image, tmp_path):
    flow = Workflow(nucleus=with_threshold(ThresholdNuclei(), 0.3), cell=ExpandNuclei(distance=2, stitch_threshold=0.3))

    def written(name, **options):
        sdata = segment(sdata_of(image, tmp_path / name), "image", flow, progress=False, **options)
        table, candidates = sdata["segmentation_table"], sdata["segmentation_candidates"]
        return [
            labels_of(sdata, "nucleus"), labels_of(sdata), table.obs, table.X, table.obsm["spatial"],
            table.uns["segmentation"], candidates.obs.astype(str), sdata["segmentation_cell_boundaries"].to_wkb(),
        ]  # fmt: skip

    first = written("whole", n_jobs=1)
    assert first[0].max() > 3
    runs = {"thin": {"shard_size": 2 * 40 * 78, "n_jobs": 1}, "threads": {"shard_size": 4000, "n_jobs": 3}}
    found = [written(name, **options) for name, options in runs.items()]
    for other in found:
        for a, b in zip(first, other, strict=True):
            assert a.equals(b) if hasattr(a, "equals") else np.array_equal(a, b)


def test_resumed_is_never_interrupted(image, tmp_path, monkeypatch):
    calls = []

    def failing(window):
        calls.append(window.shape)
        if len(calls) == 5:
            raise RuntimeError("interrupted")
        return blobs(window)

    method = Function(function=failing, context_px=5, version="1", stitch_threshold=0.3)
    sdata, options = sdata_of(image[:1], tmp_path / "store"), {"shard_size": 3 * 66 * 78, "n_jobs": 1}
    with pytest.raises(ShardError, match="interrupted"):
        segment(sdata, "image", method, progress=False, **options)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_segment, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            segment(sdata, "image", method, progress=False, **options)
    before = len(calls)
    segment(sdata, "image", method, progress=False, **options)
    assert len(calls) == before  # nothing was called again: planes were joined anew from what is kept
    assert {len(shape) for shape in calls} == {3}
    expected = segment(sdata_of(image[:1]), "image", method, progress=False)
    assert np.array_equal(labels_of(sdata), labels_of(expected))


def test_two_phases(image, tmp_path):
    """Kept maps of planes are decoded with any threshold, without the image; not as those of a volume."""
    flow = Workflow(nucleus=with_threshold(ThresholdNuclei(debris=0.3), 0.3))
    maps = predict(sdata_of(image), "image", flow, tmp_path / "maps", shard_size=10_000, progress=False)
    assert (maps / MANIFEST).exists()
    fused = segment(sdata_of(image), "image", flow, shapes=False, progress=False)
    apart = decode(maps, shapes=False, shard_size=7_000, progress=False)
    assert np.array_equal(labels_of(apart, "nucleus"), labels_of(fused, "nucleus"))
    candidates = [s["segmentation_candidates"].obs for s in (apart, fused)]
    assert candidates[0].equals(candidates[1])
    other = Workflow(nucleus=ThresholdNuclei(debris=0.0, stitch_threshold=0.7))
    again = decode(maps, workflow=other, shapes=False, progress=False)
    fused = segment(sdata_of(image), "image", other.model_copy(update={"nucleus": _adapted(other, image)}),
                    shapes=False, progress=False)  # fmt: skip
    assert np.array_equal(labels_of(again, "nucleus"), labels_of(fused, "nucleus"))
    with pytest.raises(InputError, match=r"nucleus.stitch_threshold is None, and the maps were predicted with 0.3"):
        decode(maps, workflow=Workflow(nucleus=ThresholdNuclei(debris=0.3)), progress=False)


def _adapted(flow, image):
    """Return the method with the radius that `predict` measured."""
    method, info = flow.nucleus, ImageInfo(SHAPE, image.dtype)
    wanted = ThresholdNuclei().statistics(info.flat)
    numbers = measure_image(da.from_array(image[:1]), wanted, whole_plan(SHAPE), Executor(1), "s", by_plane=True)
    return method.adapted(info.flat, numbers)


def test_kept_maps_of_planes_lie_in_planes(image, tmp_path):
    method = DummyNetwork(tile=32, stitch_threshold=0.3)
    maps = predict(sdata_of(image[:1]), "image", method, tmp_path / "maps", shard_size=10_000, progress=False)
    assert zarr.open_array(maps / "cell/maps").chunks[1] == 1
    fused = segment(sdata_of(image[:1]), "image", method, shapes=False, table=False, progress=False)
    apart = decode(
        maps, workflow=DummyNetwork(tile=32, stitch_threshold=0.3), shapes=False, table=False, progress=False
    )
    assert labels_of(fused).max() > 3
    assert np.array_equal(labels_of(apart), labels_of(fused))


def test_preview_and_plan(image):
    flow = Workflow(nucleus=with_threshold(NUCLEI, 0.3))
    seen = plan_of(sdata_of(image), "image", flow, shard_size=12_000).masks["nucleus"]
    assert seen.method == "threshold-nuclei"
    assert seen.halo[0] == 0
    given = plan_of(sdata_of(image), "image", flow, shard_size=12_000, overlap_px=20).masks["nucleus"]
    assert given.halo == (0, 20, 20)
    crop = preview(sdata_of(image), "image", flow, size=60)
    whole = segment(sdata_of(image[:, :, 3:63, 9:69]), "image", flow, shapes=False, progress=False)
    assert np.array_equal(labels_of(crop, "nucleus"), labels_of(whole, "nucleus"))


def test_workflow_files_and_the_command_line(image, tmp_path):
    store = tmp_path / "v.zarr"
    sdata_of(image, store)
    file = tmp_path / "flow.yml"
    file.write_text("nucleus: {method: threshold-nuclei, threshold: 1500, min_distance: 4, debris: 0, "
                    "stitch_threshold: 0.3}\n")  # fmt: skip
    assert main(["run", str(store), "--workflow", str(file), "--quiet"]) == 0
    expected = segment(sdata_of(image), "image", Workflow(nucleus=with_threshold(NUCLEI, 0.3)), progress=False)
    assert np.array_equal(labels_of(SpatialData.read(store), "nucleus"), labels_of(expected, "nucleus"))
