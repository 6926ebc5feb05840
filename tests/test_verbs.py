"""The other verbs on SpatialData and arrays: the numbers are checked in ``test_masks``, the whole here."""

from __future__ import annotations

import threading

import dask.array as da
import geopandas as gpd
import numpy as np
import pytest
import spatialdata as sd
import xarray as xr
from geopandas.testing import assert_geodataframe_equal
from pandas.testing import assert_frame_equal
from shapely import box
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, Sequence, Translation, get_transformation

from spatialdata_segment import (
    ExpandNuclei,
    Function,
    SizeFilter,
    ThresholdNuclei,
    Workflow,
    filter_labels,
    label_image,
    labels_to_polygons,
    match_nuclei,
    plan,
    preview,
    segment,
)
from spatialdata_segment._table import read_metadata
from spatialdata_segment.core.statistics import Statistic
from spatialdata_segment.errors import ExistsError, InputError, MissingError
from spatialdata_segment.testing import Tissue

SHAPE = (150, 210)
TISSUE = Tissue(SHAPE, seed=3, cell_diameter=20, multinucleated=0.1, anucleate=0.1)


def drawn(image: np.ndarray) -> np.ndarray:
    return image[0].astype(np.int64)


def labels_of(sdata: sd.SpatialData, mask: str = "cell", key: str = "segmentation") -> np.ndarray:
    element = sdata.labels[f"{key}_{mask}_labels"]
    return np.asarray(element if isinstance(element, xr.DataArray) else element["scale0"]["image"])


def names_of(sdata: sd.SpatialData) -> set[str]:
    return {name for _, name, _ in sdata.gen_elements()}


class Counted:
    """A dask array that counts which of its chunks are read."""

    def __init__(self, pixels: np.ndarray, side: int) -> None:
        self.read: set[tuple[int, ...]] = set()
        self.lock = threading.Lock()
        whole = da.from_array(pixels, chunks=(-1, side, side))
        self.array = whole.map_blocks(self._read, dtype=pixels.dtype, meta=np.empty((0, 0, 0), pixels.dtype))

    def _read(self, block: np.ndarray, block_id: tuple[int, ...] | None = None) -> np.ndarray:
        with self.lock:
            self.read.add(block_id[1:])
        return block

    def __dask_tokenize__(self) -> int:
        return id(self)


def unreadable(shape: tuple[int, ...], dtype: str = "uint16") -> da.Array:
    def fail(block, block_info=None):
        raise AssertionError("a pixel was read")

    meta = np.empty((0,) * len(shape), dtype)
    return da.zeros(shape, dtype=dtype, chunks=512).map_blocks(fail, dtype=dtype, meta=meta)


@pytest.fixture
def masks() -> sd.SpatialData:
    """The true nuclei and cells as two labels elements, with the image."""
    sdata = TISSUE.to_spatialdata(64, truth=True)
    for element in (sdata["image"], sdata["truth_nuclei"], sdata["truth_cells"]):
        sd.transformations.set_transformation(element, Scale([0.5, 0.5], axes=("x", "y")), "um")
    return sdata


# --- match_nuclei, filter_labels --------------------------------------------------------------------------


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize(
    "rules", [{}, {"multinucleated": "keep"}, {"multinucleated": "keep", "unmatched": "keep"}], ids=str
)
def test_match_nuclei_gives_what_a_workflow_gives(tmp_path, masks, backed, rules):
    stack = da.stack([masks["truth_nuclei"].data, masks["truth_cells"].data])
    drawing = sd.SpatialData(images={"image": Image2DModel.parse(stack, dims=("c", "y", "x"))})
    nucleus, cell = (Function(function=drawn, channels=i) for i in (0, 1))
    segment(drawing, "image", Workflow(nucleus=nucleus, cell=cell, **rules), progress=False, n_jobs=2)
    if backed:
        masks.write(tmp_path / "a.zarr")
        masks = sd.read_zarr(tmp_path / "a.zarr")
    found = match_nuclei(
        masks, "truth_nuclei", "truth_cells", image_key="image", measure_channels="WGA",
        to_coordinate_system="um", pixel_size=0.5, progress=False, **rules,
    )  # fmt: skip
    assert found is masks
    assert names_of(found) == names_of(drawing) | {"truth_nuclei", "truth_cells"}
    table, expected = (s.tables["segmentation_table"] for s in (found, drawing))
    wga = masks["image"].sel(c="WGA").to_numpy()
    for mask in ("nucleus", "cell"):
        np.testing.assert_array_equal(labels_of(found, mask), labels_of(drawing, mask))
        outlines = (s[f"segmentation_{mask}_boundaries"].geometry for s in (found, drawing))
        assert next(outlines).geom_equals(next(outlines)).all()
        assert set(get_transformation(found[f"segmentation_{mask}_labels"], get_all=True)) == {"global", "um"}
    columns = [c for c in table.obs if c != "area_um2"]
    assert table.obs[columns].equals(expected.obs[columns])
    np.testing.assert_array_equal(table.obs["area_um2"], expected.obs["area"] * 0.25)
    np.testing.assert_allclose(table.obsm["spatial"], expected.obsm["spatial"] / 2)
    cells = labels_of(found)
    means = np.bincount(cells.ravel(), wga.ravel())[1:] / np.bincount(cells.ravel())[1:]
    assert table.var_names.tolist() == ["WGA"]
    present = table.obs["cell_id"].to_numpy() - 1  # an unmatched nucleus has an id, but no cell
    np.testing.assert_array_equal(table.X[:, 0], means[present].astype(np.float32))
    columns = ["kind", "bbox_y_min", "bbox_x_min", "area", "cell_id", "is_kept", "drop_reason", "overlap_fraction"]
    fates = [s.tables["segmentation_candidates"].obs[columns] for s in (found, drawing)]  # numbered differently
    a, b = (f.sort_values(columns[:4]).reset_index(drop=True) for f in fates)
    assert_frame_equal(a, b)
    part = sd.bounding_box_query(
        found, axes=("x", "y"), min_coordinate=[0, 0], max_coordinate=[50, 40], target_coordinate_system="um"
    )
    listed = part.tables["segmentation_candidates"].obs  # they annotate the labels that were given
    seen = np.unique(masks["truth_nuclei"][:80, :100])
    assert set(listed.loc[listed["kind"] == "nucleus", "candidate_id"]) == set(seen[seen > 0])
    if backed:
        back = sd.read_zarr(tmp_path / "a.zarr")
        np.testing.assert_array_equal(labels_of(back), cells)
        assert back.tables["segmentation_table"].obs.equals(table.obs)


def test_match_nuclei_refuses(masks):
    before = names_of(masks)
    other = Labels2DModel.parse(np.ones(SHAPE, np.uint8), dims=("y", "x"), transformations={"um": Identity()})
    masks["shifted"], masks["small"] = other, Labels2DModel.parse(np.ones((5, 5), np.uint8), dims=("y", "x"))
    for key in ("shifted", "small"):
        with pytest.raises(InputError, match="same grid"):
            match_nuclei(masks, "truth_nuclei", key, progress=False)
    with pytest.raises(MissingError, match=r"'truth_cell'.*'truth_cells'"):
        match_nuclei(masks, "truth_nuclei", "truth_cell", progress=False)
    with pytest.raises(InputError, match="without image_key"):
        match_nuclei(masks, "truth_nuclei", "truth_cells", measure_channels="WGA", progress=False)
    with pytest.raises(InputError, match="no coordinate system 'mm'"):
        match_nuclei(masks, "truth_nuclei", "truth_cells", to_coordinate_system="mm", progress=False)
    assert names_of(masks) == before | {"shifted", "small"}


@pytest.mark.parametrize("kind", ["nucleus", "cell"])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (SizeFilter(min_size=200), {}),
        (SizeFilter(min_size=40, max_size=80, unit="um2"), {"pixel_size": 0.5}),
        (SizeFilter(confidence_interval=0.8), {}),
    ],
)
def test_filter_labels(masks, kind, size, options):
    assert filter_labels(masks, "truth_cells", size, kind=kind, progress=False, **options) is masks
    truth, found = np.asarray(masks["truth_cells"]), labels_of(masks, kind)
    ids, area = np.unique(truth[truth > 0], return_counts=True)
    low, high = size.min_size or 0, size.max_size or np.inf
    if size.unit == "um2":
        low, high = low * 4, high * 4
    if size.confidence_interval:
        reach = 1.2815515655446004 * np.log(area).std()
        low, high = np.exp(np.log(area).mean() + np.array([-reach, reach]))
    kept = ids[(area >= low) & (area <= high)]
    assert 0 < len(kept) < len(ids)
    np.testing.assert_array_equal(found > 0, np.isin(truth, kept))
    np.testing.assert_array_equal(np.unique(found), np.arange(len(kept) + 1))
    assert len(np.unique(truth.astype(np.int64) * 10**6 + found)) == len(ids) + 1  # one to one
    assert len(masks[f"segmentation_{kind}_boundaries"]) == len(kept) == len(masks["segmentation_table"])
    obs = masks["segmentation_candidates"].obs
    assert set(obs["kind"]) == {kind}
    assert obs.set_index("candidate_id")["area"].to_dict() == dict(zip(ids, area, strict=True))
    assert set(obs.loc[obs["is_kept"], "candidate_id"]) == set(kept)


def test_filter_labels_replaces_its_own_input(tmp_path):
    """A result that is filtered in place, in a store."""
    TISSUE.to_spatialdata(64).write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    segment(sdata, "image", Workflow(cell=ThresholdNuclei()), progress=False, n_jobs=2)
    before = labels_of(sdata)
    area = np.bincount(before.ravel())
    with pytest.raises(ExistsError):
        filter_labels(sdata, "segmentation_cell_labels", SizeFilter(min_size=60), progress=False)
    filter_labels(sdata, "segmentation_cell_labels", SizeFilter(min_size=60), overwrite=True, progress=False)
    back = sd.read_zarr(tmp_path / "a.zarr")
    for found in (sdata, back):
        np.testing.assert_array_equal(labels_of(found) > 0, (area[before] >= 60) & (before > 0))
    assert read_metadata(back["segmentation_table"])["labels"] == "segmentation_cell_labels"


# --- label_image ------------------------------------------------------------------------------------------


def ranks(labels: np.ndarray) -> np.ndarray:
    """Turn ids that are positions into 1..N; raster order stays."""
    return np.searchsorted(np.unique(np.append(labels, 0)), labels)


@pytest.mark.parametrize("method", [ThresholdNuclei(), Function(function=drawn, channels=(0,))], ids=["dapi", "fn"])
@pytest.mark.parametrize("shard_size", [None, 2500])
def test_label_image_finds_the_objects_of_segment(method, shard_size):
    pixels = TISSUE.image().compute()
    if method.name == "function":
        pixels[0] = TISSUE.cells().compute()
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"))})
    segment(sdata, "image", Workflow(cell=method), progress=False, n_jobs=2)
    lazy = label_image(da.from_array(pixels), method, shard_size=shard_size)
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == np.uint64
    labels = lazy.compute(scheduler="threads", num_workers=2)
    np.testing.assert_array_equal(ranks(labels), labels_of(sdata))
    ids = np.unique(labels[labels > 0]).astype(np.int64)  # an id is its anchor's place
    np.testing.assert_array_equal(labels.ravel()[ids - 1], ids)


def test_label_image_of_a_crop_computes_only_its_shards():
    pixels = np.tile(np.zeros((1, 24, 24), np.uint16), (1, 10, 10))
    for i in range(100):
        y, x = 24 * (i // 10) + 9, 24 * (i % 10) + 9
        pixels[0, y : y + 6, x : x + 6] = i + 1
    pixels[0, 100:104, 40:90] = 200  # across four shards
    image = Counted(pixels, 24)
    calls = []
    method = Function(function=lambda block: calls.append(1) or drawn(block), context_px=1)
    lazy = label_image(image.array, method, shard_size=24 * 24, overlap_px=8)
    assert not image.read
    assert not calls
    whole = np.asarray(lazy)
    assert len(calls) >= 100
    image.read.clear()
    calls.clear()
    crop = lazy[100:140, 50:70].compute(scheduler="threads", num_workers=2)
    np.testing.assert_array_equal(crop, whole[100:140, 50:70])
    assert 0 < len(calls) <= 36  # of 100: two shards, and those whose windows meet theirs
    assert {y for y, _ in image.read} <= set(range(1, 9))
    assert {x for _, x in image.read} <= set(range(6))


@pytest.mark.parametrize("dims", [("c", "y", "x"), ("y", "x", "c")])
def test_label_image_of_a_data_array(dims):
    pixels = TISSUE.image().compute()
    coords = {"y": np.arange(SHAPE[0]) + 0.5, "x": np.arange(SHAPE[1]) + 0.5, "c": ["DAPI", "WGA"]}
    image = xr.DataArray(pixels, dims=("c", "y", "x"), coords=coords).chunk(64).transpose(*dims)
    found = label_image(image, ThresholdNuclei(), shard_size=2500)
    assert isinstance(found, xr.DataArray)
    assert found.dims == ("y", "x")
    np.testing.assert_array_equal(found["x"], coords["x"])
    np.testing.assert_array_equal(found, label_image(pixels, ThresholdNuclei()))


def test_label_image_with_statistics_handed_in():
    pixels = TISSUE.image().compute()
    image = Counted(pixels, 50)
    method = ThresholdNuclei(threshold="otsu", min_distance=8, debris=0)
    label_image(image.array, method, shard_size=2500)
    assert len(image.read) == 15  # once, for the statistics
    image.read.clear()
    given = label_image(image.array, method, shard_size=2500, statistics={Statistic("otsu"): 900.0})
    assert not image.read
    np.testing.assert_array_equal(given, label_image(pixels, ThresholdNuclei(threshold=900, min_distance=8, debris=0)))


def test_label_image_refuses():
    pixels = np.zeros((2, 30, 30), np.uint8)
    with pytest.raises(InputError, match="grows from nuclei"):
        label_image(pixels, ExpandNuclei())
    with pytest.raises(InputError, match="starts from pixels"):
        label_image(pixels, "dapi")
    with pytest.raises(InputError, match="no channel 2; expected 0 to 1"):
        label_image(pixels, ThresholdNuclei(), channels=2)
    with pytest.raises(InputError, match="expected \\(c, y, x\\)"):
        label_image(pixels[0], ThresholdNuclei())
    with pytest.raises(InputError, match="expected c, "):
        label_image(xr.DataArray(pixels, dims=("t", "y", "x")), ThresholdNuclei())


# --- preview, plan ----------------------------------------------------------------------------------------


def test_preview_of_a_small_image_is_the_result():
    """The windows that the statistics are estimated from are the image itself."""
    sdata = TISSUE.to_spatialdata(64)
    seen = preview(sdata, "image", n_jobs=2)
    assert names_of(sdata) == {"image"}
    segment(sdata, "image", progress=False, n_jobs=2)
    assert names_of(seen) == names_of(sdata)
    np.testing.assert_array_equal(labels_of(seen, "nucleus"), labels_of(sdata, "nucleus"))
    assert seen.tables["segmentation_table"].obs.equals(sdata.tables["segmentation_table"].obs)


def test_preview_reads_little_and_lies_in_its_place():
    tissue = Tissue((2600, 2600), seed=2, cell_diameter=20)
    pixels = tissue.image(1300).compute()
    image = Counted(pixels, 50)
    um = Sequence([Scale([0.5, 0.5], axes=("x", "y")), Translation([10.0, 20.0], axes=("x", "y"))])
    element = Image2DModel.parse(image.array, dims=("c", "y", "x"), transformations={"um": um}, c_coords=["a", "b"])
    sdata = sd.SpatialData(images={"image": element})
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=3))
    seen = preview(
        sdata, "image", workflow, size=200, center=(2300, 400), n_jobs=2, to_coordinate_system="um",
        key_added="look", shapes=False,
    )  # fmt: skip
    assert names_of(sdata) == {"image"}
    assert names_of(seen) == {"image", "look_nucleus_labels", "look_cell_labels", "look_table", "look_candidates"}
    assert len(image.read) < 52 * 52 * 0.8  # sixteen windows of 512 px
    np.testing.assert_array_equal(seen["image"], pixels[:, 300:500, 2200:2400])
    extent = sd.get_extent(seen["look_cell_labels"], coordinate_system="um")
    assert extent == {"x": (1110.0, 1210.0), "y": (170.0, 270.0)}
    spatial = seen["look_table"].obsm["spatial"]
    assert len(spatial) > 50
    assert ((spatial >= (1110, 170)) & (spatial <= (1210, 270))).all()
    truth = label_image(pixels, ThresholdNuclei())[300:500, 2200:2400].compute() > 0
    found = labels_of(seen, "nucleus", "look") > 0
    assert (truth & found).sum() / (truth | found).sum() > 0.95


def test_preview_beside_the_image():
    with pytest.raises(InputError, match="misses the image"):
        preview(TISSUE.to_spatialdata(64), "image", center=(5000, 50), size=100)


def test_preview_of_a_scale():
    sdata = TISSUE.to_spatialdata(64, [2])
    seen = preview(sdata, "image", scale="scale1", n_jobs=2)
    segment(sdata, "image", scale="scale1", progress=False, n_jobs=2)
    np.testing.assert_array_equal(labels_of(seen, "nucleus"), labels_of(sdata, "nucleus"))
    np.testing.assert_allclose(seen["segmentation_table"].obsm["spatial"], sdata["segmentation_table"].obsm["spatial"])


@pytest.mark.parametrize("table", [True, False])
def test_plan_reads_nothing(table):
    parsed = Image2DModel.parse(unreadable((2, 20_000, 30_000)), dims=("c", "y", "x"))
    sdata = sd.SpatialData(images={"image": parsed})
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=20))
    found = plan(sdata, "image", workflow, n_jobs=2, shard_size=1000 * 1000, overlap_px=100, table=table)
    assert names_of(sdata) == {"image"}
    assert found.shape == (20_000, 30_000)
    assert set(found.masks) == {"nucleus", "cell"}
    for mask in found.masks.values():
        assert mask.n_shards == mask.grid[0] * mask.grid[1]
        assert mask.core[0] * mask.core[1] <= 1000 * 1000
        assert mask.grid[0] * mask.core[0] >= 20_000
        assert mask.grid[1] * mask.core[1] >= 30_000
        assert 600 <= mask.n_shards <= 600 * 9 / 8
        assert mask.halo == (100, 100)
        window = (mask.core[0] + 200) * (mask.core[1] + 200)
        assert window < mask.bytes_per_shard < 1000 * window
        assert mask.seconds > 0
    assert found.memory_bytes == 2 * max(m.bytes_per_shard for m in found.masks.values())
    assert 20_000 * 30_000 * 0.4 < found.disk_bytes < 20_000 * 30_000 * 16
    assert found.seconds > 0
    kinds = ["labels"] * 2 + ["shapes"] * 2 + ["tables"] * 2 * table
    assert sorted(found.outputs.values()) == kinds
    text = str(found)
    n = str(found.masks["cell"].n_shards)
    for part in ("20000 x 30000", "threshold-nuclei", "expand-nuclei", n, *found.outputs):
        assert part in text


def test_plan_of_a_region_and_of_a_volume():
    pixels = unreadable((1, 4000, 4000))
    far = ShapesModel.parse(gpd.GeoDataFrame(geometry=[box(0, 0, 900, 900)]))
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"))}, shapes={"roi": far})
    assert plan(sdata, "image", shard_size=10**6).masks["nucleus"].n_shards == 16
    assert plan(sdata, "image", shard_size=10**6, roi_key="roi").masks["nucleus"].n_shards == 1
    volume = sd.models.Image3DModel.parse(unreadable((1, 100, 600, 600)), dims=("c", "z", "y", "x"))
    found = plan(sd.SpatialData(images={"image": volume}), "image", shard_size=100**3).masks["nucleus"]
    assert np.prod(found.core) <= 100**3
    assert np.prod(found.grid) == found.n_shards >= 36


def test_plan_is_the_plan_of_the_run(tmp_path):
    """Shards, and what is written."""
    sdata = TISSUE.to_spatialdata(64)
    calls = []
    method = Function(function=lambda block: calls.append(block.shape) or np.zeros(block.shape[1:], int))
    options = {"shard_size": 3000, "overlap_px": 20, "shapes": False}
    found = plan(sdata, "image", method, **options)
    with pytest.warns(UserWarning, match="empty"):
        segment(sdata, "image", method, progress=False, n_jobs=1, **options)
    assert len(calls) == found.masks["cell"].n_shards > 10
    assert max(s[1:] for s in calls) <= tuple(c + 40 for c in found.masks["cell"].core)
    assert names_of(sdata) == {"image", *found.outputs}


@pytest.mark.parametrize(
    ("options", "error"),
    [({"channels": "GFP"}, MissingError), ({"overlap_px": 1}, InputError), ({"scale": "scale3"}, MissingError)],
)
def test_plan_refuses_what_segment_refuses(options, error):
    with pytest.raises(error):
        plan(TISSUE.to_spatialdata(64), "image", **options)


# --- polygons ---------------------------------------------------------------------------------------------


def test_polygons_of_the_result():
    sdata = TISSUE.to_spatialdata(64)
    segment(sdata, "image", Workflow(cell=ThresholdNuclei()), progress=False, n_jobs=2, shard_size=3000)
    found = labels_to_polygons(sdata["segmentation_cell_labels"], progress=False)
    written = sdata["segmentation_cell_boundaries"]
    assert_geodataframe_equal(found, written, check_like=True)
    np.testing.assert_array_equal(written.geometry.is_valid, True)
