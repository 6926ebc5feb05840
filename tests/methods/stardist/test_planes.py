"""Models of images on the planes of a volume: every plane as an image by itself, then joined to 3D objects."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, Labels3DModel

from spatialdata_segment import ExpandNuclei, StarDist, Workflow, decode, plan, predict, segment, stitch_planes
from spatialdata_segment._table import read_metadata
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.errors import InputError, SegmentationWarning
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.plane_points import by_plane, in_plane, in_volume
from spatialdata_segment.methods.planes import Planes
from spatialdata_segment.methods.stardist.export import export_candidates
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

pytest.importorskip("torch")
pytest.importorskip("pyclipper")

write_model = runpy.run_path(str(Path(__file__).parent / "networks.py"))["write_model"]
SHAPE = (5, 56, 64)
TABLE, CANDIDATES, LABELS = "segmentation_table", "segmentation_candidates", "segmentation_cell_labels"
few = settings(
    max_examples=7, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(models):
    return write_model(models / "spots", grid=(2, 2), n_rays=16, radius=6.0, n_classes=2)


@pytest.fixture(scope="module")
def fine(models):
    """Return a model that has a candidate in every bright pixel."""
    return write_model(models / "fine", radius=4.0)


@pytest.fixture(scope="module")
def pixels():
    """``(1, z, y, x)``, as if normalised; the fourth plane is empty."""
    tissue = Tissue(SHAPE, seed=4, cell_diameter=15, anisotropy=2.0)
    image = tissue.block(Box.whole(tissue.shape)).image[:1].astype(np.float32) / 6000
    image[:, 3] = 0
    image.flags.writeable = False
    return image


def method_of(folder, threshold=None, **how):
    given = {"channels": [0], "tile_size": 32, "normalize": False} | how
    return StarDist(folder, stitch_threshold=threshold, **given)


def sdata_of(image, path=None):
    kind, dims = (Image3DModel, "czyx") if image.ndim == 4 else (Image2DModel, "cyx")
    sdata = SpatialData(images={"image": kind.parse(image, dims=tuple(dims))})
    if path is None:
        return sdata
    sdata.write(path)
    return SpatialData.read(path)


def run(image, method, **how):
    return segment(sdata_of(image), "image", method, progress=False, **{"shapes": False} | how)


def alone(image, method):
    """Return what `segment` says of every plane as an image of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the plane without an object
        return [run(image[:, z], method.model_copy(update={"stitch_threshold": None})) for z in range(image.shape[1])]


def labels_of(sdata):
    return np.asarray(sdata[LABELS].data)


def stitched(planes, threshold):
    sdata = SpatialData(labels={"planes": Labels3DModel.parse(np.stack(planes), dims=("z", "y", "x"))})
    stitch_planes(sdata, "planes", threshold=threshold)
    return labels_of(sdata)


# planes are images


@pytest.mark.parametrize("nms_thresh", [0.4, 1.0])
def test_each_plane_is_an_image_by_itself(pixels, fine, nms_thresh):
    """Bit for bit: labels, the table, and every candidate, those that others cover among them."""
    method = method_of(fine, 0, nms_thresh=nms_thresh)
    image = pixels[:, 1:, :40, :40]
    volume, planes = run(image, method, shard_size=2 * 30 * 30), alone(image, method)
    labels, table, candidates = labels_of(volume), volume[TABLE], volume[CANDIDATES].obs
    assert (not candidates["is_kept"].all()) == (nms_thresh == 1.0)
    before = 0
    for z, plane in enumerate(planes):
        expected = labels_of(plane)
        assert np.array_equal(labels[z], np.where(expected > 0, expected + before, 0))
        of_plane = table.obs["cell_id"].between(before + 1, before + len(plane[TABLE])).to_numpy()
        before += len(plane[TABLE])
        for name in ("prob", "area", "bbox_y_min", "bbox_x_max"):
            assert np.array_equal(table.obs[name][of_plane], plane[TABLE].obs[name])
        assert (table.obs["bbox_z_min"][of_plane] == z).all()
        rows, own = candidates[candidates["bbox_z_min"] == z], plane[CANDIDATES].obs
        for name in ("area", "centroid_y", "centroid_x", "bbox_x_min", "is_kept", "drop_reason"):
            assert sorted(rows[name].astype(str)) == sorted(own[name].astype(str))
    assert len(table) == before > 15
    assert len(candidates) == sum(len(p[CANDIDATES]) for p in planes)


@pytest.fixture(scope="module")
def planes(pixels, model):
    return alone(pixels, method_of(model))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 1])
def test_joined_as_by_stitch_planes(pixels, model, planes, threshold):
    found = labels_of(run(pixels, method_of(model, threshold), shard_size=3 * 40 * 40, table=False))
    assert np.array_equal(found, stitched([labels_of(p) for p in planes], threshold))
    depth = [len(np.unique(np.nonzero(found == i)[0])) for i in range(1, found.max() + 1)]
    assert (max(depth) > 1) == (threshold < 1)


def test_planes_do_not_suppress_each_other(fine):
    """The same spot in five planes, brighter from plane to plane: five objects, and of each plane no second one."""
    image = np.zeros((1, 5, 30, 30), np.float32)
    image[0, :, 12:18, 12:18] = np.array([0.6, 0.7, 0.8, 0.9, 1])[:, None, None]
    found = run(image, method_of(fine, 0))
    assert [np.unique(p).tolist() for p in labels_of(found)] == [[0, k] for k in range(1, 6)]
    assert (np.diff(found[TABLE].obs["prob"]) > 0).all()
    assert np.unique(labels_of(run(image, method_of(fine, 0.5)))).tolist() == [0, 1]


def test_percentiles_are_those_of_the_volume(pixels, model):
    """No plane is brightened for being dark."""
    image = pixels * np.array([1, 0.8, 0.6, 1, 0.4], np.float32)[:, None, None]
    low, high = np.percentile(image, (1, 99.8))
    by_hand = ((image - np.float32(low)) / np.float32(high - low)).astype(np.float32)
    method = method_of(model, 0.2, normalize=True)
    expected = labels_of(run(by_hand, method.model_copy(update={"normalize": False})))
    assert expected.max() > 3
    assert np.array_equal(labels_of(run(image, method)), expected)


# the same for every plan


@pytest.fixture(scope="module")
def wholes(pixels, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wholes")
    return {t: tile(pixels, method_of(model, t), whole_plan(SHAPE), folder / str(t)) for t in (0, 0.2, 0.5)}


@few
@given(data=st.data(), threshold=st.sampled_from([0, 0.2, 0.5]), fused=st.booleans())
def test_tiling_invariance(data, threshold, fused, pixels, model, wholes, tmp_path_factory):
    method, folder, whole = method_of(model, threshold), tmp_path_factory.mktemp("scratch"), wholes[threshold]
    core = [data.draw(st.integers(max(1, -(-n // 3)), n)) for n in SHAPE]
    first = [data.draw(st.integers(0, c)) for c in core]
    halo = (0, *(data.draw(st.sampled_from([1, 9])) for _ in range(2)))
    parts = tile(pixels, method, make_plan(SHAPE, core, halo, first), folder / "parts", two_phases=not fused)
    assert whole.labels.max() > 8
    assert parts.same_as(whole)
    for name in ("area", "bbox", "reason"):
        assert np.array_equal(getattr(parts.mask.objects, name), getattr(whole.mask.objects, name))


def test_single_planes_and_threads(pixels, model, wholes, tmp_path):
    cut, executor = make_plan(SHAPE, (1, 56, 64), (0, 1, 1)), Executor(3)
    assert tile(pixels, method_of(model, 0.2), cut, tmp_path, executor=executor).same_as(wholes[0.2])


def test_every_plan_writes_the_same(pixels, fine):
    """The tables too, with what is covered."""
    image, method = pixels[:, :, :36, :36], method_of(fine, 0.2, nms_thresh=0.9)
    first, other = run(image, method), run(image, method, shard_size=2 * 20 * 20)
    assert np.array_equal(labels_of(first), labels_of(other))
    assert first[TABLE].obs.equals(other[TABLE].obs)
    assert first[CANDIDATES].obs.astype(str).equals(other[CANDIDATES].obs.astype(str))
    assert first[TABLE].uns["segmentation"] == other[TABLE].uns["segmentation"]


# whole objects


def test_a_3d_object_has_the_probability_of_its_most_probable_plane(pixels, model, planes):
    found = run(pixels, method_of(model, 0.2), shard_size=2 * 40 * 40)
    labels, table = labels_of(found), found[TABLE]
    prob, classes = np.zeros(len(table)), np.zeros((len(table), 3), np.float32)
    deep = 0
    for i, cell in enumerate(table.obs["cell_id"]):
        parts = [
            (z, np.unique(labels_of(planes[z])[labels[z] == cell])) for z in np.unique(np.nonzero(labels == cell)[0])
        ]
        said = [
            (planes[z][TABLE].obs["prob"].iloc[part[0] - 1], -z, planes[z][TABLE].obsm["class_prob"][part[0] - 1])
            for z, part in parts
        ]
        best = max(said, key=lambda s: s[:2])
        prob[i], classes[i] = best[0], best[2]
        deep += best[1] != said[0][1]
    assert deep > 0  # of some it is not the first plane
    assert np.array_equal(table.obs["prob"], prob.astype(np.float32))
    assert np.array_equal(table.obsm["class_prob"], classes)
    assert np.array_equal(table.obs["class_id"], classes.argmax(axis=1))


def test_what_others_cover_is_listed_with_its_plane(pixels, fine, tmp_path):
    """Where next to nothing is suppressed, a candidate is a part of a 3D object, or has a row of its own."""
    image, method = pixels[:, :, :30, :30], method_of(fine, 0.3, nms_thresh=1.0)
    predict(sdata_of(image), "image", method, tmp_path / "maps", progress=False)
    with h5py.File(export_candidates(tmp_path / "maps", tmp_path / "candidates.h5")) as file:
        points = {tuple(p) for p in (file["points"][...] + 0.5).tolist()}
    assert {z for z, _, _ in points} == {0.5, 1.5, 2.5, 4.5}
    found = decode(tmp_path / "maps", progress=False, shapes=False)
    apart = method.model_copy(update={"stitch_threshold": 0})
    every = decode(tmp_path / "maps", workflow=apart, progress=False, shapes=False)[CANDIDATES].obs
    rows, said = found[CANDIDATES].obs, read_metadata(found[TABLE])["counts"]["cell"]
    assert said["objects_of_planes"] == len(every) > said["candidates"] == len(rows) > said["kept"] == len(found[TABLE])

    def covered(candidates):
        chosen = candidates[candidates["drop_reason"] == "covered"]
        assert (chosen["area"] == 0).all()
        return sorted(map(tuple, chosen[["centroid_z", "centroid_y", "centroid_x"]].to_numpy().tolist()))

    assert covered(rows) == covered(every)
    assert points > set(covered(rows)) > set()


def test_nuclei_of_planes(pixels, model):
    """Cells that grow plane by plane from them; what is said of nuclei goes with their cells."""
    nucleus = method_of(model, 0.2)
    flow = Workflow(nucleus=nucleus, cell=ExpandNuclei(distance=2, stitch_threshold=0.2))
    sdata = run(pixels, flow, shard_size=3 * 40 * 40)
    single = run(pixels, nucleus)
    nuclei, table = np.asarray(sdata["segmentation_nucleus_labels"]), sdata[TABLE].obs.set_index("cell_id")
    prob = np.r_[np.nan, single[TABLE].obs["prob"]][labels_of(single)]  # of each voxel
    assert len(table) > 5
    assert np.array_equal(prob[nuclei > 0], table["nucleus_prob"].loc[nuclei[nuclei > 0]])


# two phases


def test_decoded_without_the_model(pixels, models, tmp_path):
    """With any thresholds; the planes' candidates lie in the maps."""
    folder = write_model(models / "gone", grid=(2, 2), n_rays=16, radius=6.0)
    method = method_of(folder, 0.2, keep_prob=0.3)
    predict(sdata_of(pixels), "image", method, tmp_path / "maps", progress=False, shard_size=2 * 40 * 40)
    expected = labels_of(run(pixels, method))
    other = method.model_copy(update={"prob_thresh": 0.9, "stitch_threshold": 0.6})
    strict = labels_of(run(pixels, other))
    folder.rename(models / "hidden")
    assert np.array_equal(labels_of(decode(tmp_path / "maps", progress=False, shapes=False)), expected)
    found = decode(tmp_path / "maps", workflow=other, progress=False, shapes=False, shard_size=3 * 30 * 30)
    assert np.array_equal(labels_of(found), strict)
    assert 0 < strict.max() != expected.max()
    apart = method.model_copy(update={"stitch_threshold": None})
    with pytest.warns(SegmentationWarning, match="pass stitch_threshold="):
        assert labels_of(decode(tmp_path / "maps", workflow=apart, progress=False, shapes=False)).max() > expected.max()
    with pytest.raises(InputError, match="outlines='rays' is for images"):
        decode(tmp_path / "maps", workflow=method.model_copy(update={"outlines": "rays"}), progress=False)
    with pytest.raises(InputError, match=r"prob_thresh=0.2, and candidates were kept above 0.3"):
        decode(tmp_path / "maps", workflow=method.model_copy(update={"prob_thresh": 0.2}), progress=False)


def test_goes_on_in_a_region(pixels, model, tmp_path):
    """Cores that joined objects reach change who stays: what was painted before they were known is painted again."""
    method = method_of(model, 0.2, nms_thresh=0.6)
    how = {"bounding_box": (18, 14, 46, 40), "shard_size": 1100, "overlap_px": 2}
    in_memory = run(pixels, method, **how)  # all shards are judged by what they start from
    stored = segment(sdata_of(pixels, tmp_path / "a.zarr"), "image", method, shapes=False, progress=False, **how)
    assert labels_of(in_memory).max() > 3
    assert np.array_equal(labels_of(stored), labels_of(in_memory))
    assert stored[CANDIDATES].obs.astype(str).equals(in_memory[CANDIDATES].obs.astype(str))


def test_plan(pixels, model):
    seen = plan(sdata_of(pixels), "image", method_of(model, 0.2), shard_size=3 * 40 * 40).masks["cell"]
    assert seen.method == "stardist"
    assert seen.halo[0] == 0
    method, info = Planes(plane=method_of(model, 0.2)), ImageInfo(SHAPE, np.dtype(np.float32))
    assert method.working_bytes((50, 100, 100)) > 50 * method.plane.working_bytes((100, 100))  # the points of all
    assert method.block_multiple(info) == (1, 32, 32)


# what is told


def test_without_a_threshold_planes_are_apart(pixels, model):
    with pytest.warns(
        SegmentationWarning, match=r"the objects of the 5 planes get ids of their own.*stitch_threshold="
    ):
        found = run(pixels, method_of(model))
    assert np.array_equal(labels_of(found), labels_of(run(pixels, method_of(model, 0))))


def test_what_cannot_be(pixels, model, models):
    with pytest.raises(InputError, match=r"outlines='rays' is for images: .*leave outlines out"):
        run(pixels, method_of(model, 0.2, outlines="rays"))
    solid = write_model(models / "solid", 3)
    with pytest.raises(InputError, match=r"stitch_threshold=0\.2: stardist works on volumes alone"):
        run(pixels, method_of(solid, 0.2))
    with pytest.raises(InputError, match=r"stardist with the model .*solid works on 3D images, and this one is 2D"):
        run(pixels[:, 0], method_of(solid))
    with pytest.raises(InputError, match="outlines='rays' is for images"):
        run(pixels, method_of(solid, outlines="rays"))


# points


def test_points_of_planes():
    dtype = np.dtype([("point", "<i4", (2,)), ("prob", "<f4"), ("dist", "<f4", (3,))])
    flat = np.zeros(4, dtype)
    flat["point"], flat["prob"] = [[1, 2], [3, 4], [5, 6], [7, 8]], [0.1, 0.2, 0.3, 0.4]
    flat["dist"] = np.arange(12).reshape(4, 3)
    both = np.concatenate([in_volume(flat, 9)[:3], in_volume(flat, 7)])
    assert both["point"][0].tolist() == [9, 1, 2]
    assert both.dtype["point"].shape == (3,)
    assert in_plane(in_volume(flat, 9)).tobytes() == flat.tobytes()
    planes = {z: at.tolist() for z, at in by_plane(both, 7, 10)}
    assert planes == {7: [3, 4, 5, 6], 8: [], 9: [0, 1, 2]}
