"""`segment` end to end: what DESIGN.md's semantics say, on images small enough to check with numpy."""

from __future__ import annotations

import functools
import logging
import threading

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from pandas.testing import assert_frame_equal
from scipy import ndimage
from shapely import Point, Polygon, box
from skimage.measure import regionprops_table
from skimage.segmentation import expand_labels
from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation, get_transformation
from xarray import DataArray, DataTree

from spatialdata_segment import (
    ExpandNuclei,
    Function,
    SizeFilter,
    ThresholdNuclei,
    Workflow,
    labels_to_polygons,
    register_workflow,
    segment,
)
from spatialdata_segment._table import read_metadata
from spatialdata_segment.engine.events import listen
from spatialdata_segment.errors import ExistsError, InputError
from spatialdata_segment.testing import Tissue

AFFINE = Affine([[0.5, 0.1, 7], [-0.2, 0.4, -3], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
CELL = {"segmentation_cell_labels", "segmentation_cell_boundaries"}
NUCLEUS = {"segmentation_nucleus_labels", "segmentation_nucleus_boundaries"}
TABLES = {"segmentation_table", "segmentation_candidates"}


def drawn(image: np.ndarray) -> np.ndarray:
    """Take the pixel values of the first channel for labels: what is drawn is found."""
    return image[0].astype(np.int64)


def parts(image: np.ndarray) -> np.ndarray:
    return ndimage.label(image[0] > 0)[0]


class Calls:
    """Labels what is drawn in the first channel, and keeps what it was called with."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []
        self.lock = threading.Lock()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        with self.lock:
            self.blocks.append(np.array(image))
        return image[0].astype(np.int64)


def an_object(
    pixels: np.ndarray, *, names: list[str] | None = None, transformations=None, scale_factors=None
) -> sd.SpatialData:
    """Put ``(c, [z], y, x)`` pixels into an object, in chunks that fit no plan."""
    model, dims = (Image2DModel, ("c", "y", "x")) if pixels.ndim == 3 else (Image3DModel, ("c", "z", "y", "x"))
    pixels = da.from_array(pixels, chunks=(1, *(37,) * (pixels.ndim - 1)))
    parsed = model.parse(
        pixels, dims=dims, c_coords=names, transformations=transformations, scale_factors=scale_factors
    )
    return sd.SpatialData(images={"image": parsed})


def stored(sdata: sd.SpatialData, path) -> sd.SpatialData:
    """Write a copy; the object itself stays in memory."""
    sd.SpatialData(images=dict(sdata.images)).write(path)
    return sd.read_zarr(path)


def run(sdata: sd.SpatialData, workflow="dapi", **options) -> sd.SpatialData:
    return segment(sdata, "image", workflow, **{"n_jobs": 2, "progress": False, **options})


def labels_of(sdata: sd.SpatialData, mask: str = "cell", key: str = "segmentation") -> np.ndarray:
    element = sdata.labels[f"{key}_{mask}_labels"]
    return np.asarray(element if isinstance(element, DataArray) else element["scale0"]["image"])


def names_of(sdata: sd.SpatialData) -> set[str]:
    return {name for _, name, _ in sdata.gen_elements()} - {"image"}


def anchor(where: np.ndarray) -> tuple[int, ...]:
    """The pixel nearest the centroid, the first in raster order."""
    return tuple(where[((where - where.mean(0)) ** 2).sum(1).argmin()].tolist())


def ordered(mask: np.ndarray) -> np.ndarray:
    """Number the objects of a mask 1..N in raster order of their anchors."""
    ids = np.unique(mask[mask > 0])
    out = np.zeros(mask.shape, np.uint32)
    for new, old in enumerate(sorted(ids, key=lambda i: anchor(np.argwhere(mask == i))), 1):
        out[mask == old] = new
    return out


def squares(side: int, places: list[tuple[int, int]], size: int = 6) -> np.ndarray:
    """Draw squares, the object at a place with the number of the place."""
    out = np.zeros((side, side), np.uint16)
    for i, (y, x) in enumerate(places, 1):
        out[y : y + size, x : x + size] = i
    return out


def plain(obs: pd.DataFrame) -> pd.DataFrame:
    """Texts as objects: which type of text comes back from disk is a matter of pandas' version."""
    texts = {name: obs[name].astype(object) for name in obs if isinstance(obs[name].dtype, pd.CategoricalDtype)}
    return obs.assign(**texts).set_index(obs.index.astype(object))


def assert_same(a: sd.SpatialData, b: sd.SpatialData) -> None:
    """Two objects hold the same results."""
    assert names_of(a) == names_of(b)
    for name in a.labels:
        mask = name.removeprefix("segmentation_").removesuffix("_labels")
        assert labels_of(a, mask).dtype == labels_of(b, mask).dtype
        np.testing.assert_array_equal(labels_of(a, mask), labels_of(b, mask))
    for name in a.shapes:
        assert_frame_equal(a.shapes[name], b.shapes[name])
    for name in a.tables:
        assert_frame_equal(plain(a.tables[name].obs), plain(b.tables[name].obs))
        np.testing.assert_array_equal(a.tables[name].obsm["spatial"], b.tables[name].obsm["spatial"])
        if a.tables[name].n_vars:
            np.testing.assert_array_equal(a.tables[name].X, b.tables[name].X)
        assert a.tables[name].uns.get("segmentation") == b.tables[name].uns.get("segmentation")


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    pixels = Tissue((150, 210), seed=3, cell_diameter=20).image().compute()
    pixels.flags.writeable = False
    return pixels


@pytest.fixture(scope="module")
def dapi(tissue) -> sd.SpatialData:
    """A result on nine shards, not to be changed."""
    return run(an_object(tissue, names=["DAPI", "WGA"]), shard_size=70 * 70)


@pytest.fixture(scope="module")
def grown(tissue) -> sd.SpatialData:
    """Nuclei and cells, not to be changed."""
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    return run(an_object(tissue, names=["DAPI", "WGA"]), workflow, shard_size=70 * 70)


# --- names, ids -------------------------------------------------------------------------------------------


def test_single_method_writes_the_cell_pair():
    sdata = an_object(squares(60, [(5, 5), (30, 40)])[None])
    assert run(sdata, Function(function=drawn)) is sdata
    assert names_of(sdata) == CELL | TABLES


def test_dapi_writes_the_nucleus_pair(dapi):
    assert names_of(dapi) == NUCLEUS | TABLES
    assert set(dapi.tables["segmentation_table"].obs["region"]) == {"segmentation_nucleus_labels"}
    assert set(dapi.tables["segmentation_candidates"].obs["kind"]) == {"nucleus"}


def test_two_methods_write_both_pairs(grown):
    assert names_of(grown) == NUCLEUS | CELL | TABLES
    assert set(grown.tables["segmentation_table"].obs["region"]) == {"segmentation_cell_labels"}


def test_duplicate_mask(tissue, dapi):
    sdata = run(an_object(tissue), Workflow(nucleus=ThresholdNuclei(), duplicate_mask=True))
    assert names_of(sdata) == NUCLEUS | CELL | TABLES
    np.testing.assert_array_equal(labels_of(sdata, "cell"), labels_of(dapi, "nucleus"))
    np.testing.assert_array_equal(labels_of(sdata, "nucleus"), labels_of(dapi, "nucleus"))
    assert_frame_equal(sdata.shapes["segmentation_cell_boundaries"], sdata.shapes["segmentation_nucleus_boundaries"])
    assert len(sdata.tables["segmentation_candidates"]) == len(dapi.tables["segmentation_candidates"])


def test_ids_in_raster_order_of_the_anchors():
    """Numbers drawn at random, also of a ring, whose centroid lies outside of it, and at the image's border."""
    mask = squares(90, [(0, 0), (0, 60), (1, 40), (60, 84), (84, 3), (40, 40), (33, 70)])
    mask[20:41, 5:26] = 8
    mask[23:38, 8:23] = 0
    rng = np.random.default_rng(0)
    names = np.append(0, rng.permutation(np.arange(1, 60000))[:8]).astype(np.uint16)
    sdata = run(an_object(names[mask][None]), Function(function=drawn, context_px=1), shard_size=900)
    found = labels_of(sdata)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, ordered(mask))


def test_nucleus_and_cell_share_ids(grown):
    nuclei, cells = labels_of(grown, "nucleus"), labels_of(grown, "cell")
    n = nuclei.max()
    assert n > 40
    assert nuclei.dtype == cells.dtype == np.uint32
    np.testing.assert_array_equal(np.unique(nuclei), np.arange(n + 1))
    np.testing.assert_array_equal(np.unique(cells), np.arange(n + 1))
    np.testing.assert_array_equal(cells[nuclei > 0], nuclei[nuclei > 0])
    for mask in ("nucleus", "cell"):
        assert grown.shapes[f"segmentation_{mask}_boundaries"].index.tolist() == list(range(1, n + 1))
    assert grown.tables["segmentation_table"].obs["cell_id"].tolist() == list(range(1, n + 1))


def test_image_is_not_changed(tissue):
    sdata = an_object(tissue)
    before = sdata.images["image"]
    run(sdata)
    assert sdata.images["image"] is before
    np.testing.assert_array_equal(before, tissue)


# --- callables --------------------------------------------------------------------------------------------


def above(image: np.ndarray, level: int) -> np.ndarray:
    return ndimage.label(image[0] > level)[0]


@pytest.mark.parametrize(
    "function",
    [parts, lambda image: parts(image), functools.partial(above, level=0), Calls(), Function(function=parts)],
    ids=["function", "lambda", "partial", "class", "method"],
)
def test_any_callable(function):
    mask = squares(80, [(3, 3), (36, 38), (60, 70), (74, 0)])
    sdata = run(an_object(mask[None]), function, shard_size=1600)
    np.testing.assert_array_equal(labels_of(sdata), ordered(mask))


def test_block_is_read_only():
    def scribbles(image):
        image[0, 0] = 0
        return parts(image)

    with pytest.raises(Exception, match="read-only"):
        run(an_object(squares(40, [(3, 3)])[None]), scribbles)


def test_mapping_and_registered_name_are_the_same_workflow(tissue, grown):
    given = {"nucleus": "threshold-nuclei", "cell": {"method": "expand-nuclei", "distance": 4}}
    assert_same(run(an_object(tissue, names=["DAPI", "WGA"]), given), grown)
    register_workflow("test-grown", Workflow(**given))
    assert_same(run(an_object(tissue, names=["DAPI", "WGA"]), "test-grown"), grown)


# --- channels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_method", "of_call", "expected"),
    [
        (None, None, [1, 2, 3]),
        (None, "C", [3]),
        (None, ["C", "A"], [3, 1]),
        (None, [2, "B"], [3, 2]),
        (None, 1, [2]),
        ("B", None, [2]),
        (("C", 0), None, [3, 1]),
        ("B", "C", [2]),
    ],
)
def test_channels_of_a_function(of_method, of_call, expected):
    calls = Calls()
    pixels = np.ones((3, 20, 20), np.uint8) * np.array([1, 2, 3], np.uint8)[:, None, None]
    run(an_object(pixels, names=["A", "B", "C"]), Function(function=calls, channels=of_method), channels=of_call)
    assert [b[:, 0, 0].tolist() for b in calls.blocks] == [expected]


@pytest.mark.parametrize(
    ("options", "method", "stain"),
    [
        ({}, ThresholdNuclei(), 0),
        ({"channels": "B"}, ThresholdNuclei(), 1),
        ({"channels": [2, 0]}, ThresholdNuclei(), 2),
        ({"channels": 2}, ThresholdNuclei(channels="B"), 1),
    ],
)
def test_channel_of_dapi(options, method, stain):
    pixels = np.stack([200 * (squares(60, [p]) > 0) for p in [(5, 5), (20, 40), (45, 20)]]).astype(np.uint8)
    sdata = run(an_object(pixels, names=["A", "B", "C"]), Workflow(nucleus=method), **options)
    found = labels_of(sdata, "nucleus") > 0
    centre = anchor(np.argwhere(pixels[stain]))
    assert found.any()
    assert found[centre]
    assert not found[pixels[[i for i in range(3) if i != stain]].any(0)].any()


def test_each_mask_reads_its_own_channels():
    nucleus, cell = Calls(), Calls()
    pixels = np.ones((3, 20, 20), np.uint8) * np.array([1, 2, 3], np.uint8)[:, None, None]
    workflow = Workflow(
        nucleus=Function(function=nucleus, channels="A"), cell=Function(function=cell, channels=["C", "A"])
    )
    run(an_object(pixels, names=["A", "B", "C"]), workflow)
    assert nucleus.blocks[0][:, 0, 0].tolist() == [1]
    assert cell.blocks[0][:, 0, 0].tolist() == [3, 1]


class TwoStains(ThresholdNuclei):
    """A method that reads the nuclear and the membrane stain."""

    default_channels = (0, 1)


def test_too_few_channels(tissue):
    with pytest.raises(InputError, match=r"needs 2 channels.*1 is given; the image has: DAPI, WGA"):
        run(an_object(tissue, names=["DAPI", "WGA"]), Workflow(nucleus=TwoStains()), channels="WGA")
    with pytest.raises(InputError, match=r"needs 2 channels.*1 is given"):
        run(an_object(tissue[:1]), Workflow(nucleus=TwoStains()))
    assert names_of(run(an_object(tissue), Workflow(nucleus=TwoStains()))) == NUCLEUS | TABLES


def test_channels_that_nobody_needs_are_not_read(tissue):
    def broken(block, block_id=None):
        assert block_id[0] == 0, "the membrane stain was read"
        return block

    lazy = da.from_array(tissue, chunks=(1, 64, 64)).map_blocks(broken, dtype=tissue.dtype)
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(lazy, dims=("c", "y", "x"))})
    run(sdata, "dapi", measure_channels=0)
    assert sdata.tables["segmentation_table"].n_obs > 40


# --- scale, transformations -------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "sides"), [("scale0", [96, 48, 24]), ("scale1", [48, 24]), ("scale2", [24])])
def test_result_lies_on_the_grid_of_the_scale(tmp_path, scale, sides):
    """A square at 32..64 is at the same place in every scale."""
    mask = np.zeros((1, 96, 96), np.uint8)
    mask[0, 32:64, 16:48] = 7
    sdata = an_object(mask, scale_factors=[2, 2], transformations={"um": AFFINE, "global": Identity()})
    for found in (sdata, stored(sdata, tmp_path / "a.zarr")):
        run(found, Function(function=parts, context_px=1), scale=scale, to_coordinate_system="um", shard_size=500)
        levels = found.labels["segmentation_cell_labels"]
        arrays = [levels] if isinstance(levels, DataArray) else [n["image"] for n in levels.children.values()]
        assert isinstance(levels, DataTree) == (len(sides) > 1)
        assert [a.shape for a in arrays] == [(n, n) for n in sides]
        k = 96 // sides[0]
        for array, n in zip(arrays, sides, strict=True):
            expected = np.zeros((n, n), np.uint32)
            expected[n // 3 : 2 * n // 3, n // 6 : n // 2] = 1
            np.testing.assert_array_equal(array, expected)
        image = found.images["image"][scale]["image"]
        for system in ("um", "global"):
            expected = get_transformation(image, system).to_affine_matrix(("x", "y"), ("x", "y"))
            for element in (arrays[0], found.shapes["segmentation_cell_boundaries"]):
                actual = get_transformation(element, system).to_affine_matrix(("x", "y"), ("x", "y"))
                np.testing.assert_allclose(actual, expected, atol=1e-12)
        (outline,) = found.shapes["segmentation_cell_boundaries"].geometry
        assert outline.equals(box(16 / k, 32 / k, 48 / k, 64 / k))
        spatial = found.tables["segmentation_table"].obsm["spatial"]
        np.testing.assert_allclose(spatial, [AFFINE.matrix[:2] @ [32, 48, 1]], atol=1e-9)


@pytest.mark.parametrize(
    "transformation",
    [
        Identity(),
        AFFINE,
        Scale([0.3, 0.7], axes=("x", "y")),
        Translation([100.0, -20.0], axes=("x", "y")),
        Sequence([Scale([0.5, 0.5], axes=("x", "y")), Translation([3.0], axes=("x",))]),
    ],
    ids=["identity", "affine", "scale", "translation", "sequence"],
)
def test_transformations_are_carried_over(transformation):
    """Spatialdata's own centroids of labels and shapes lie where the table says, pixel centres at +0.5."""
    mask = squares(50, [(0, 0), (10, 30), (41, 17)])
    sdata = an_object(mask[None], transformations={"um": transformation, "px": Identity()})
    run(sdata, drawn, to_coordinate_system="um")
    spatial = sdata.tables["segmentation_table"].obsm["spatial"]
    matrix = transformation.to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(spatial, np.array([[3, 3, 1], [33, 13, 1], [20, 44, 1]]) @ matrix[:2].T)
    for name in sorted(CELL):
        assert set(get_transformation(sdata[name], get_all=True)) == {"um", "px"}
        centroids = sd.get_centroids(sdata[name], coordinate_system="um").compute()
        np.testing.assert_allclose(centroids.loc[[1, 2, 3], ["x", "y"]], spatial)


def test_transformations_are_copies():
    sdata = an_object(squares(40, [(5, 5)])[None], transformations={"um": AFFINE})
    run(sdata, drawn, to_coordinate_system="um")
    sd.transformations.set_transformation(sdata.images["image"], Identity(), "um")
    found = get_transformation(sdata.labels["segmentation_cell_labels"], "um")
    np.testing.assert_array_equal(found.to_affine_matrix(("x", "y"), ("x", "y")), AFFINE.matrix)


# --- tables -----------------------------------------------------------------------------------------------


def test_table_against_regionprops(tissue, grown):
    table = grown.tables["segmentation_table"]
    cells, nuclei = labels_of(grown, "cell"), labels_of(grown, "nucleus")
    props = regionprops_table(cells, np.moveaxis(tissue, 0, -1), ["label", "area", "bbox", "centroid"])
    obs = table.obs
    np.testing.assert_array_equal(obs["cell_id"], props["label"])
    np.testing.assert_array_equal(obs["area"], props["area"])
    for column, i in {"y_min": 0, "x_min": 1, "y_max": 2, "x_max": 3}.items():
        np.testing.assert_array_equal(obs[f"bbox_{column}"], props[f"bbox-{i}"])
    np.testing.assert_allclose(
        table.obsm["spatial"], np.column_stack([props["centroid-1"], props["centroid-0"]]) + 0.5, rtol=1e-12
    )
    np.testing.assert_array_equal(obs["n_nuclei"], 1)
    np.testing.assert_array_equal(obs["nucleus_area"], np.bincount(nuclei.ravel())[1:])
    np.testing.assert_array_equal(obs["overlap_fraction"], 1.0)
    assert table.uns["spatialdata_attrs"] == {
        "region": "segmentation_cell_labels", "region_key": "region", "instance_key": "cell_id",
    }  # fmt: skip
    assert table.var_names.tolist() == ["DAPI", "WGA"]
    count = np.bincount(cells.ravel())[1:]
    for i, channel in enumerate(tissue):
        total = np.bincount(cells.ravel(), channel.ravel())[1:]  # exact: sums of integers
        np.testing.assert_array_equal(table.X[:, i], (total / count).astype(np.float32))


def test_float_intensities():
    mask = squares(60, [(5, 5), (26, 26), (50, 40)])
    values = np.random.default_rng(1).normal(1e6, 1, mask.shape)
    sdata = run(an_object(np.stack([mask.astype(float), values])), Function(function=drawn, channels=0), shard_size=900)
    expected = ndimage.mean(values, ordered(mask), [1, 2, 3])
    np.testing.assert_allclose(sdata.tables["segmentation_table"].X[:, 1], expected, rtol=1e-7)


@pytest.mark.parametrize(("size", "area"), [(0.5, 0.25), ((0.5, 0.2), 0.1)])
def test_area_in_um2(size, area):
    mask = squares(60, [(5, 5), (26, 26)])
    obs = run(an_object(mask[None]), drawn, pixel_size=size).tables["segmentation_table"].obs
    np.testing.assert_allclose(obs["area_um2"], [36 * area] * 2)
    assert "area_um2" not in run(an_object(mask[None]), drawn).tables["segmentation_table"].obs


@pytest.mark.parametrize(
    ("given", "names"),
    [(None, ["A", "B", "C"]), ("C", ["C"]), ([1, "A"], ["B", "A"]), (2, ["C"]), ([], [])],
)
def test_measure_channels(given, names):
    pixels = np.stack([squares(40, [(5, 5), (20, 20)]) * k for k in (1, 10, 100)])
    method = Function(function=drawn, channels=0)
    table = run(an_object(pixels, names=["A", "B", "C"]), method, measure_channels=given).tables["segmentation_table"]
    assert table.var_names.tolist() == names
    expected = np.outer([1, 2], [{"A": 1, "B": 10, "C": 100}[n] for n in names])
    np.testing.assert_array_equal(np.asarray(table.X), expected)


def test_metadata_says_what_decides_the_result(tissue, grown):
    found = read_metadata(grown.tables["segmentation_table"])
    assert found["channels"] == {"nucleus": ["DAPI"], "cell": []}
    assert found["workflow"]["cell"]["distance"] == 4
    assert found["counts"]["nucleus"]["kept"] == labels_of(grown, "nucleus").max()
    assert found["versions"]["numpy"] == np.__version__
    statistics = found["statistics"]["nucleus"]
    assert tissue[0].min() < statistics["channel0_dark"] < statistics["channel0_bright"] < tissue[0].max()
    assert 3 < statistics["channel0_radius"] < 12
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    other = run(an_object(tissue, names=["DAPI", "WGA"]), workflow, shard_size=3000, overlap_px=60, n_jobs=1)
    assert_same(other, grown)  # another plan, another executor: nothing of it is in the result


# --- matching and filters ---------------------------------------------------------------------------------

# name: (cell rows, columns), [(nucleus rows, columns)]
_CASES = {
    "pair": ((5, 25, 5, 25), [(10, 18, 10, 18)]),
    "most": ((5, 25, 35, 55), [(10, 20, 50, 56)]),  # 5/6 inside: 0.833
    "two": ((35, 55, 5, 25), [(38, 44, 8, 14), (46, 52, 16, 22)]),
    "bare": ((35, 55, 35, 55), []),
    "alone": (None, [(62, 70, 5, 13)]),
    "full": ((62, 72, 35, 45), [(62, 72, 35, 45)]),  # a nucleus as large as its cell
}


@pytest.fixture
def cases() -> np.ndarray:
    pixels = np.zeros((2, 80, 64), np.uint8)
    n = 0
    for i, (cell, nuclei) in enumerate(_CASES.values(), 1):
        if cell:
            pixels[1, cell[0] : cell[1], cell[2] : cell[3]] = i
        for a, b, c, d in nuclei:
            n += 1
            pixels[0, a:b, c:d] = n
    return pixels


def pair(**options) -> Workflow:
    methods = {"nucleus": Function(function=drawn, channels=0, context_px=1)}
    methods["cell"] = Function(function=drawn, channels=1, context_px=1)
    return Workflow(**methods, **options)


def outcome(sdata: sd.SpatialData) -> dict[str, tuple[list[int], list[int]]]:
    """For every case: the ids left in its cell's area, and those in its nuclei's, 0 for what was dropped."""
    cells, nuclei = labels_of(sdata, "cell"), labels_of(sdata, "nucleus")
    found = {}
    for name, (cell, drawn_nuclei) in _CASES.items():
        a = [] if cell is None else [int(cells[cell[0], cell[2]])]
        found[name] = a, [int(nuclei[n[0], n[2]]) for n in drawn_nuclei]
    return found


@pytest.mark.parametrize("shard_size", [None, 500])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {},
            {"pair": ([1], [1]), "most": ([0], [0]), "two": ([0], [0, 0]), "bare": ([0], []), "alone": ([], [0]),
             "full": ([2], [2])},
        ),
        (
            {"filtering_threshold_mask_matching": 0.8},
            {"pair": ([1], [1]), "most": ([2], [2]), "two": ([0], [0, 0]), "bare": ([0], []), "alone": ([], [0]),
             "full": ([3], [3])},
        ),
        (
            {"multinucleated": "keep"},
            {"pair": ([1], [1]), "most": ([0], [0]), "two": ([2], [2, 2]), "bare": ([0], []), "alone": ([], [0]),
             "full": ([3], [3])},
        ),
        (  # raster order of the anchors: pair, most's cell, most's nucleus, two's cell, bare, alone, full
            {"multinucleated": "keep", "unmatched": "keep"},
            {"pair": ([1], [1]), "most": ([2], [3]), "two": ([4], [4, 4]), "bare": ([5], []), "alone": ([], [6]),
             "full": ([7], [7])},
        ),
        (
            {"unmatched": "keep"},
            {"pair": ([1], [1]), "most": ([2], [3]), "two": ([0], [0, 0]), "bare": ([4], []), "alone": ([], [5]),
             "full": ([6], [6])},
        ),
        (  # each mask numbered by itself
            {"match_masks": False},
            {"pair": ([1], [1]), "most": ([2], [2]), "two": ([3], [3, 4]), "bare": ([4], []), "alone": ([], [5]),
             "full": ([5], [6])},
        ),
    ],
    ids=["default", "threshold", "multinucleated", "keep all", "unmatched", "no matching"],
)  # fmt: skip
def test_matching(cases, options, expected, shard_size):
    sdata = run(an_object(cases), pair(**options), shard_size=shard_size)
    assert outcome(sdata) == expected
    kept = sorted({i for cell, _ in expected.values() for i in cell if i})
    table = sdata.tables["segmentation_table"].obs
    assert table["cell_id"].tolist() == kept
    by_id = {cell[0]: name for name, (cell, _) in expected.items() if cell and cell[0]}
    threshold = options.get("filtering_threshold_mask_matching", 0.95)
    held = {"pair": 1, "most": int(threshold <= 5 / 6), "two": 2, "bare": 0, "full": 1}
    assert table["n_nuclei"].tolist() == [held[by_id[i]] for i in kept]
    area = {"pair": 64, "most": 60, "two": 72, "bare": 0, "full": 100}
    assert table["nucleus_area"].tolist() == [area[by_id[i]] if held[by_id[i]] else 0 for i in kept]


def test_candidates_account_for_every_object(cases):
    sdata = run(an_object(cases), pair(), shard_size=500)
    obs = sdata.tables["segmentation_candidates"].obs
    assert obs["kind"].value_counts().to_dict() == {"nucleus": 6, "cell": 5}
    # in raster order of the anchors: nuclei pair, most, two, two, alone, full; cells pair, most, two, bare, full
    two = ["multinucleated"] * 2
    assert obs["drop_reason"].tolist() == [
        "", "unmatched", *two, "unmatched", "", "", "unmatched", "multinucleated", "unmatched", "",
    ]  # fmt: skip
    assert obs["is_kept"].tolist() == [r == "" for r in obs["drop_reason"]]
    assert obs["cell_id"].tolist() == [1, 0, 0, 0, 0, 2, 1, 0, 0, 0, 2]
    assert obs["area"].tolist() == [64, 60, 36, 36, 64, 100, 400, 400, 400, 400, 100]
    assert obs["match"].tolist() == [1, 0, 3, 3, 0, 5, 1, 0, 3, 0, 6]
    np.testing.assert_allclose(obs["overlap_fraction"][:6], [1, 5 / 6, 1, 1, 0, 1])
    assert obs.loc["nucleus-1", ["bbox_x_min", "bbox_y_min", "bbox_x_max", "bbox_y_max"]].tolist() == [10, 10, 18, 18]
    assert obs.loc["nucleus-2", ["centroid_x", "centroid_y"]].tolist() == [53.0, 15.0]
    np.testing.assert_array_equal(
        sdata.tables["segmentation_candidates"].obsm["spatial"], obs[["centroid_x", "centroid_y"]]
    )


_SIDES = (2, 4, 6, 8, 12, 20)  # areas 4, 16, 36, 64, 144, 400


def by_size() -> np.ndarray:
    mask = np.zeros((1, 30, 96), np.uint8)
    for i, side in enumerate(_SIDES):
        mask[0, 2 : 2 + side, 1 + 14 * i : 1 + 14 * i + side] = i + 1
    return mask


@pytest.mark.parametrize(
    ("size", "pixel_size", "kept"),
    [
        ({"min_size": 36}, None, (6, 8, 12, 20)),
        ({"max_size": 36}, None, (2, 4, 6)),
        ({"min_size": 5, "max_size": 143.9}, None, (4, 6, 8)),
        ({"min_size": 9, "unit": "um2"}, 0.5, (6, 8, 12, 20)),
        ({"max_size": 9, "unit": "um2"}, (1.0, 0.25), (2, 4, 6)),
        ({"confidence_interval": 0.7}, None, (4, 6, 8, 12)),  # areas from 10 to 193
    ],
)
def test_size_filters(size, pixel_size, kept):
    workflow = Workflow(cell=Function(function=drawn), filter_masks_size=True, cell_size=SizeFilter(**size))
    sdata = run(an_object(by_size()), workflow, pixel_size=pixel_size)
    assert sorted(sdata.tables["segmentation_table"].obs["area"]) == [s * s for s in kept]
    found = labels_of(sdata)
    assert sorted(np.bincount(found.ravel())[1:]) == [s * s for s in kept]
    obs = sdata.tables["segmentation_candidates"].obs.set_index("area")["drop_reason"]
    assert obs.to_dict() == {s * s: "" if s in kept else "too_small" if s < min(kept) else "too_large" for s in _SIDES}


def test_interval_is_that_of_the_whole_image():
    """The same for shards that hold one cell each."""
    workflow = Workflow(
        cell=Function(function=drawn, context_px=1),
        filter_masks_size=True,
        cell_size=SizeFilter(confidence_interval=0.7),
    )
    one, many = (run(an_object(by_size()), workflow, shard_size=s) for s in (None, 15 * 30))
    assert_same(one, many)


def test_size_filter_goes_before_matching(cases):
    """The smaller of a cell's nuclei does not count when it is too small; a cell falls with its nucleus."""
    cases[0, 46:52, 16:22] = 0
    cases[0, 46:48, 16:18] = 4  # the second nucleus of "two", now of 4 px
    workflow = pair(filter_masks_size=True, nucleus_size=SizeFilter(min_size=30, max_size=99))
    sdata = run(an_object(cases), workflow)
    assert outcome(sdata)["two"] == ([2], [2, 0])
    assert outcome(sdata)["full"] == ([0], [0])
    obs = sdata.tables["segmentation_candidates"].obs
    assert obs.loc[["nucleus-4", "nucleus-6", "cell-5"], "drop_reason"].tolist() == [
        "too_small", "too_large", "partner_dropped",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter_masks_size": True}, "without a bound"),
        ({"filter_masks_size": True, "cell_size": {}}, "without a bound"),
        ({"cell_size": {"min_size": 3}}, "no effect while filter_masks_size is False"),
        ({"filter_masks_size": True, "nucleus_size": {"min_size": 3}}, "no nucleus method"),
        ({"filter_masks_size": True, "cell_size": {"min_size": 3, "unit": "um2"}}, "pass pixel_size="),
        ({"duplicate_mask": True, "nucleus": "threshold-nuclei"}, "for one mask"),
        ({"filtering_threshold_mask_matching": 0}, "greater than 0"),
        ({"no_such_option": 1}, "no_such_option"),
    ],
)
def test_workflows_that_cannot_act(options, message):
    with pytest.raises(InputError, match=message):
        run(an_object(by_size()), {"cell": {"method": "function", "function": drawn}, **options})


# --- region -----------------------------------------------------------------------------------------------


def places() -> np.ndarray:
    """Channel 0: squares of 6 px, one in the middle of each field of 24 px. Channels 1, 2: where a pixel lies."""
    mask = squares(96, [(24 * i + 9, 24 * j + 9) for i in range(4) for j in range(4)])
    return np.stack([mask, *np.indices(mask.shape)]).astype(np.uint16)


def fields(image: np.ndarray) -> set[int]:
    """Which of the 16 squares an array of labels still has, by their place."""
    mask = squares(96, [(24 * i + 9, 24 * j + 9) for i in range(4) for j in range(4)])
    found = np.unique(mask[image > 0])
    assert ((image > 0) == np.isin(mask, found)).all()  # whole
    return set(found.tolist())


def shapes_element(geometry, **options) -> gpd.GeoDataFrame:
    return ShapesModel.parse(gpd.GeoDataFrame({k: options[k] for k in ("radius",) if k in options}, geometry=geometry))


@pytest.mark.parametrize("kind", ["bounding_box", "polygon", "polygons", "circles", "labels"])
@pytest.mark.parametrize("system", ["px", "um"])
def test_region(kind, system):
    """Cells 1, 2, 5, 6: the upper left quarter; shards elsewhere are never computed."""
    calls = Calls()
    half = Scale([0.5, 0.5], axes=("x", "y"))
    sdata = an_object(places(), transformations={"px": Identity(), "um": half})
    k = 0.5 if system == "um" else 1
    options = {"roi_key": "roi"}
    in_system = {system: Identity()}
    if kind == "bounding_box":
        options = {"bounding_box": (0, 0, 47.9 * k, 47.9 * k)}
    elif kind == "labels":
        region = np.zeros((96, 96), np.uint8)
        region[:48, :48] = 5
        sdata["roi"] = Labels2DModel.parse(region, dims=("y", "x"), transformations={"px": Identity(), "um": half})
    elif kind == "circles":
        table = gpd.GeoDataFrame({"radius": [23.0 * k]}, geometry=[Point(24 * k, 24 * k)])
        sdata["roi"] = ShapesModel.parse(table, transformations=in_system)
    else:
        geometry = {
            "polygon": [Polygon([(0, 0), (47.9 * k, 0), (47.9 * k, 47.9 * k), (0, 47.9 * k)])],
            "polygons": [box(0, 0, 47.9 * k, 24 * k), box(0, 20 * k, 47.9 * k, 47.9 * k)],
        }
        sdata["roi"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=geometry[kind]), transformations=in_system)
    run(sdata, Function(function=calls), shard_size=24 * 24, overlap_px=16, to_coordinate_system=system, **options)
    assert fields(labels_of(sdata)) == {1, 2, 5, 6}
    assert labels_of(sdata).max() == 4
    assert len(calls.blocks) == 4
    assert max(b[1:].max() for b in calls.blocks) < 48 + 16


def test_cell_with_its_anchor_inside_is_kept_whole():
    """A cell across the region's edge is judged by its anchor pixel, at (32, 16)."""
    mask = np.zeros((96, 96), np.uint8)
    mask[20:45, 10:23] = 1
    for low, kept in [(31.9, True), (32.6, False)]:
        sdata = an_object(mask[None])
        options = {"bounding_box": (0, low, 96, 96), "shard_size": 24 * 24, "overlap_px": 16}
        if kept:
            run(sdata, drawn, **options)
            np.testing.assert_array_equal(labels_of(sdata), mask)
        else:
            with pytest.warns(UserWarning, match="empty"):
                run(sdata, drawn, **options)
            assert not labels_of(sdata).any()


def test_region_by_hand_drawn_pairs(cases):
    """A nucleus goes with its cell, wherever its own anchor lies; what was refused is listed."""
    cases[:, 62:72, 20:30] = 9  # a second full pair, at columns 20..30
    cases[0, 62:72, 20:27] = 0  # its nucleus at 27..30
    sdata = run(an_object(cases), pair(), bounding_box=(0, 0, 26, 80))  # holds the cell's anchor, at 24
    nuclei = labels_of(sdata, "nucleus")
    assert nuclei[65, 28] == labels_of(sdata)[65, 28] > 0
    obs = sdata.tables["segmentation_candidates"].obs
    assert set(obs.loc[obs["is_kept"], "cell_id"]) == {1, 2}
    assert not labels_of(sdata)[:, 30:].any()


@pytest.mark.parametrize("workflow", ["dapi", pair(), "grown"], ids=["dapi", "pair", "grown"])
@pytest.mark.parametrize("region", [(20, 30, 90, 110), (0, 0, 15, 150)])
def test_region_is_the_part_of_the_whole(tissue, workflow, region):
    """The cells whose anchors lie inside, numbered anew; the same for any plan."""
    if workflow == "grown":
        workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    elif workflow != "dapi":
        truth = Tissue((150, 210), seed=3, cell_diameter=20)
        tissue = np.stack([truth.nuclei().compute(), truth.cells().compute()]).astype(np.uint16)
    whole = run(an_object(tissue), workflow)
    found = [run(an_object(tissue), workflow, bounding_box=region, shard_size=s) for s in (None, 3000)]
    assert_same(found[0], found[1])
    main = "nucleus" if workflow == "dapi" else "cell"
    for mask in ("nucleus", main):
        every, part = labels_of(whole, mask), labels_of(found[0], mask)
        ids = np.unique(every[part > 0])
        assert len(ids) > 2
        np.testing.assert_array_equal(part > 0, np.isin(every, ids) & (every > 0))
    spatial = whole.tables["segmentation_table"].obsm["spatial"]
    near = 3  # anchors lie near the centroids
    x0, y0, x1, y1 = region
    inside = (spatial > (x0 + near, y0 + near)).all(1) & (spatial < (x1 - near, y1 - near)).all(1)
    outside = (spatial < (x0 - near, y0 - near)).any(1) | (spatial > (x1 + near, y1 + near)).any(1)
    ids = np.unique(labels_of(whole, main)[labels_of(found[0], main) > 0])
    kept = np.isin(whole.tables["segmentation_table"].obs["cell_id"], ids)
    assert kept[inside].all()
    assert not kept[outside].any()


# --- writing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"shapes": False}, {"segmentation_cell_labels"} | TABLES),
        ({"table": False}, CELL),
        ({"shapes": False, "table": False}, {"segmentation_cell_labels"}),
        ({"key_added": "mine"}, {n.replace("segmentation", "mine") for n in CELL | TABLES}),
    ],
)
def test_what_is_written(tmp_path, options, names):
    mask = squares(80, [(3, 3), (36, 38), (60, 70), (74, 0)])
    sdata = an_object(mask[None])
    for found in (sdata, stored(sdata, tmp_path / "a.zarr")):
        run(found, Function(function=drawn, context_px=1), shard_size=1600, **options)
        assert names_of(found) == names
        np.testing.assert_array_equal(labels_of(found, key=options.get("key_added", "segmentation")), ordered(mask))
    assert names_of(sd.read_zarr(tmp_path / "a.zarr")) == names


@pytest.mark.parametrize("workflow", ["dapi", "grown"])
def test_unbacked_and_backed_are_equal(tmp_path, tissue, dapi, grown, workflow):
    expected = dapi if workflow == "dapi" else grown
    given = "dapi" if workflow == "dapi" else Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    sdata = stored(an_object(tissue, names=["DAPI", "WGA"]), tmp_path / "a.zarr")
    assert run(sdata, given, shard_size=70 * 70) is sdata
    assert_same(sdata, expected)
    assert_same(sd.read_zarr(tmp_path / "a.zarr"), expected)


@pytest.mark.parametrize("backed", [False, True])
def test_overwrite_removes_what_the_new_result_does_not_have(tmp_path, tissue, grown, dapi, backed):
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    sdata = an_object(tissue, names=["DAPI", "WGA"])
    if backed:
        sdata = stored(sdata, tmp_path / "a.zarr")

    def holds(expected):
        assert_same(sdata, expected)
        if backed:
            assert_same(sd.read_zarr(tmp_path / "a.zarr"), expected)

    run(sdata, workflow)
    with pytest.raises(ExistsError):
        run(sdata, workflow)
    holds(grown)
    run(sdata, "dapi", overwrite=True)
    holds(dapi)
    run(sdata, workflow, overwrite=True)
    holds(grown)
    run(sdata, "dapi", overwrite=True, table=False, shapes=False)
    assert names_of(sdata) == {"segmentation_nucleus_labels"}
    if backed:
        assert names_of(sd.read_zarr(tmp_path / "a.zarr")) == {"segmentation_nucleus_labels"}


def test_results_side_by_side(tmp_path, tissue):
    sdata = stored(an_object(tissue), tmp_path / "a.zarr")
    run(sdata, "dapi", key_added="a")
    run(sdata, Workflow(nucleus=ThresholdNuclei(min_distance=2, debris=0)), key_added="b", overwrite=True)
    kinds = ("nucleus_labels", "nucleus_boundaries", "table", "candidates")
    assert names_of(sdata) == {f"{k}_{name}" for k in "ab" for name in kinds}
    assert labels_of(sdata, "nucleus", "a").max() < labels_of(sdata, "nucleus", "b").max()


def test_shapes_are_the_outlines_of_the_labels(grown):
    for mask in ("nucleus", "cell"):
        expected = labels_to_polygons(labels_of(grown, mask), progress=False)
        found = grown.shapes[f"segmentation_{mask}_boundaries"]
        assert found.index.name == "cell_id"
        assert_frame_equal(found, expected, check_like=True)
        np.testing.assert_array_equal(found.area, np.bincount(labels_of(grown, mask).ravel())[1:])


# --- 3D ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [None, 12**3])
def test_volume(tmp_path, shard_size):
    """Two balls and a third at the border; sizes in voxels, shapes plane by plane."""
    z, y, x = np.indices((14, 40, 50))
    centres, radii = [(5, 10, 12), (8, 28, 30), (0, 30, 8)], [5, 6, 5]
    balls = [(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 <= r * r for (a, b, c), r in zip(centres, radii, strict=True)]
    pixels = (200 * np.any(balls, axis=0)).astype(np.uint16)[None] + 10
    scale = Scale([0.5, 0.5, 2.0], axes=("x", "y", "z"))
    sdata = an_object(pixels, transformations={"um": scale})
    sdata = stored(sdata, tmp_path / "a.zarr")
    run(
        sdata, Workflow(nucleus=ThresholdNuclei(sigma=0)), to_coordinate_system="um",
        pixel_size=(2, 0.5, 0.5), shard_size=shard_size,
    )  # fmt: skip
    labels = labels_of(sdata, "nucleus")
    expected = np.zeros(labels.shape, np.uint32)
    for ball, i in zip(balls, (2, 3, 1), strict=True):
        expected[ball] = i
    np.testing.assert_array_equal(labels, expected)
    table = sdata.tables["segmentation_table"]
    counts = np.bincount(expected.ravel())[1:]
    np.testing.assert_array_equal(table.obs["area"], counts)
    np.testing.assert_allclose(table.obs["volume_um3"], counts * 0.5)
    centroids = np.array(ndimage.center_of_mass(expected > 0, expected, [1, 2, 3]))[:, ::-1] + 0.5
    np.testing.assert_allclose(table.obsm["spatial"], centroids * [0.5, 0.5, 2.0])
    assert table.obs.loc["3", ["bbox_z_min", "bbox_z_max"]].tolist() == [2, 14]
    shapes = sdata.shapes["segmentation_nucleus_boundaries"]
    for plane, rows in shapes.groupby("z_index"):
        drawn_areas = np.bincount(expected[plane].ravel(), minlength=4)
        assert dict(zip(rows["cell_id"], rows.area, strict=True)) == {
            i: drawn_areas[i] for i in range(1, 4) if drawn_areas[i]
        }
    assert set(shapes["z_index"]) == set(range(14))


# --- expansion --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "pixel_size", "distance"),
    [
        (ExpandNuclei(distance=5), None, 5),
        (ExpandNuclei(distance=2.5, unit="um"), 0.5, 5),
        (ExpandNuclei(distance=0), None, 0),
    ],
)
def test_expanded_nuclei(tissue, method, pixel_size, distance):
    """As far as skimage's rule reaches, and never across another cell: each pixel is its nearest nucleus'."""
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=method)
    sdata = run(an_object(tissue), workflow, pixel_size=pixel_size, shard_size=70 * 70)
    nuclei, cells = labels_of(sdata, "nucleus"), labels_of(sdata, "cell")
    every = run(an_object(tissue), "dapi")
    assert labels_of(every, "nucleus").max() == nuclei.max()  # an expanded nucleus has no reason to fall
    np.testing.assert_array_equal(cells > 0, expand_labels(nuclei, distance) > 0)
    near, at = ndimage.distance_transform_edt(nuclei == 0, return_indices=True)
    own = np.full(cells.shape, np.inf)
    for i in range(1, nuclei.max() + 1):
        mine = cells == i
        own[mine] = ndimage.distance_transform_edt(nuclei != i)[mine]
    np.testing.assert_allclose(own[cells > 0], near[cells > 0])
    assert at.shape[0] == 2


def test_anisotropic_expansion():
    """Of 2 µm: four pixels along x, one along y."""
    mask = np.zeros((1, 21, 21), np.uint8)
    mask[0, 10, 10] = 1
    workflow = Workflow(nucleus=Function(function=drawn), cell=ExpandNuclei(distance=2, unit="um"))
    cells = labels_of(run(an_object(mask), workflow, pixel_size=(2.0, 0.5)))
    y, x = np.indices((21, 21)) - 10
    np.testing.assert_array_equal(cells, (4 * y * y + x * x / 4) <= 4)


def test_expansion_in_um_needs_the_pixel_size(tissue):
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=2, unit="um"))
    with pytest.raises(InputError, match="pass pixel_size="):
        run(an_object(tissue), workflow)


# --- progress ---------------------------------------------------------------------------------------------


def test_progress_false_is_silent_and_events_arrive(tissue, capfd, caplog):
    events = []
    with listen(events.append), caplog.at_level(logging.WARNING):
        run(an_object(tissue), "dapi", shard_size=70 * 70)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    last = {e.stage: e for e in events}
    assert {"nucleus statistics", "nucleus shards", "writing"} <= set(last)
    assert all(e.done == e.total for e in last.values())
    shards = [e.done for e in events if e.stage == "nucleus shards"]
    assert shards == list(range(last["nucleus shards"].total + 1))
    events.clear()
    run(an_object(tissue), "dapi", progress=True)
    assert not events  # nobody listens any more
    out, err = capfd.readouterr()
    assert out == ""
    assert "nucleus shards: 100%" in err
