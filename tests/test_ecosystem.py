"""What others do with a result: squidpy, scanpy, spatialdata-plot, and spatialdata's own verbs, for real."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import spatialdata as sd
from geopandas.testing import assert_geodataframe_equal
from pandas.testing import assert_frame_equal
from scipy.spatial import cKDTree
from spatialdata.transformations import Scale, get_transformation, set_transformation

from spatialdata_segment import ExpandNuclei, ThresholdNuclei, Workflow, segment
from spatialdata_segment.testing import Tissue

mpl.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore")
LABELS, SHAPES, TABLE = "segmentation_cell_labels", "segmentation_cell_boundaries", "segmentation_table"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a multiscale image of 0.5 µm a pixel, and its cells."""
    path = tmp_path_factory.mktemp("ecosystem") / "tissue.zarr"
    sdata = Tissue((240, 300), seed=5, cell_diameter=20).to_spatialdata(100, [2])
    set_transformation(sdata.images["image"], Scale([0.5, 0.5], axes=("x", "y")), "um")
    sdata.write(path)
    sdata = sd.read_zarr(path)
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    segment(sdata, "image", workflow, to_coordinate_system="um", shard_size=120 * 120, n_jobs=2, progress=False)
    return path


@pytest.fixture
def sdata(store):
    return sd.read_zarr(store)


def pixels(element) -> np.ndarray:
    return np.asarray(element["scale0"]["image"])


def test_squidpy_neighbours(sdata):
    import squidpy as sq

    table = sdata.tables[TABLE]
    sq.gr.spatial_neighbors(table, coord_type="generic", radius=12.0)  # µm
    found = table.obsp["spatial_connectivities"]
    pairs = cKDTree(table.obsm["spatial"]).query_pairs(12.0)
    assert len(pairs) > table.n_obs
    assert {(min(a, b), max(a, b)) for a, b in zip(*found.nonzero(), strict=True)} == pairs
    sq.gr.spatial_neighbors(table, coord_type="generic", delaunay=True)
    assert (np.asarray(table.obsp["spatial_connectivities"].sum(1)) >= 2).all()


def test_scanpy_preprocessing(sdata):
    import scanpy as sc

    table = sdata.tables[TABLE]
    raw = np.asarray(table.X).copy()
    sc.pp.normalize_total(table, target_sum=100)
    np.testing.assert_allclose(table.X, 100 * raw / raw.sum(1, keepdims=True), rtol=1e-5)
    sc.pp.log1p(table)
    sc.pp.pca(table, n_comps=1)
    sc.pp.neighbors(table, n_neighbors=5, use_rep="X_pca", method="gauss")  # umap's compiles for most of a minute
    assert table.obsp["connectivities"].shape == (table.n_obs, table.n_obs)
    assert (table.obsp["connectivities"].getnnz(1) > 0).all()


def colours(sdata: sd.SpatialData, render, **options) -> set[tuple[int, ...]]:
    """Colours of a picture."""
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401

    figure, axes = plt.subplots(figsize=(3, 3))
    render(sdata.pl, **options).pl.show(ax=axes, coordinate_systems="um", colorbar=False, legend_loc=None)
    axes.set_axis_off()
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())
    plt.close(figure)
    return {tuple(c) for c in np.unique(picture.reshape(-1, 4), axis=0).tolist()}


@pytest.mark.parametrize("kind", ["labels", "shapes"])
def test_spatialdata_plot(sdata, kind):
    """A column of the table colours the cells; the same for all gives fewer colours than one a cell."""
    table = sdata.tables[TABLE]
    table.obs["rank"] = np.arange(table.n_obs, dtype=float)
    table.obs["same"] = 1.0
    if kind == "shapes":
        table.obs["region"] = table.obs["region"].cat.rename_categories([SHAPES])
        table.uns["spatialdata_attrs"]["region"] = SHAPES
    render = {
        "labels": lambda pl, column: pl.render_labels(LABELS, color=column, table_name=TABLE),
        "shapes": lambda pl, column: pl.render_shapes(SHAPES, color=column, table_name=TABLE),
    }[kind]
    many, few = (len(colours(sdata, render, column=c)) for c in ("rank", "same"))
    assert many > 20
    assert many > 1.5 * few


def test_bounding_box_query(sdata):
    part = sd.bounding_box_query(
        sdata, axes=("x", "y"), min_coordinate=[20, 30], max_coordinate=[70, 80], target_coordinate_system="um"
    )
    whole = pixels(sdata.labels[LABELS])
    np.testing.assert_array_equal(pixels(part.labels[LABELS]), whole[60:160, 40:140])
    touched = set(np.unique(whole[60:160, 40:140]).tolist()) - {0}
    assert set(part.shapes[SHAPES].index) >= touched
    assert len(part.shapes[SHAPES]) < len(sdata.shapes[SHAPES])
    assert 0 < part.tables[TABLE].n_obs < sdata.tables[TABLE].n_obs
    assert "segmentation_candidates" not in part  # they annotate the image, which has no instances
    assert set(part.tables[TABLE].obs["cell_id"]) == touched


def test_write_and_read_back(sdata, tmp_path):
    sdata.write(tmp_path / "copy.zarr")
    copy = sd.read_zarr(tmp_path / "copy.zarr")
    assert {n for _, n, _ in copy.gen_elements()} == {n for _, n, _ in sdata.gen_elements()}
    for name, element in sdata.labels.items():
        assert copy.labels[name]["scale0"]["image"].dtype == np.uint32
        for scale in element.children:
            np.testing.assert_array_equal(copy.labels[name][scale]["image"], element[scale]["image"])
        assert get_transformation(copy.labels[name], get_all=True) == get_transformation(element, get_all=True)
    for name, element in sdata.shapes.items():
        assert_geodataframe_equal(copy.shapes[name], element)
    for name, table in sdata.tables.items():
        assert_frame_equal(copy.tables[name].obs, table.obs)
        assert_frame_equal(copy.tables[name].var, table.var)
        np.testing.assert_array_equal(copy.tables[name].obsm["spatial"], table.obsm["spatial"])
        assert copy.tables[name].uns == table.uns
    np.testing.assert_array_equal(copy.tables[TABLE].X, sdata.tables[TABLE].X)


def test_result_in_memory_is_written_by_spatialdata(tmp_path):
    sdata = Tissue((100, 120), seed=1, cell_diameter=20).to_spatialdata(64)
    segment(sdata, "image", n_jobs=2, progress=False)
    sdata.write(tmp_path / "memory.zarr")
    back = sd.read_zarr(tmp_path / "memory.zarr")
    name = "segmentation_nucleus_labels"
    np.testing.assert_array_equal(back.labels[name], sdata.labels[name])
    assert back.labels[name].max() == sdata.tables[TABLE].n_obs > 10


def test_match_element_to_table(sdata):
    elements, table = sd.match_element_to_table(sdata, element_name=LABELS, table_name=TABLE)
    assert list(elements) == [LABELS]
    assert table.n_obs == sdata.tables[TABLE].n_obs
    sdata.tables[TABLE] = sdata.tables[TABLE][:10].copy()
    _, table = sd.match_element_to_table(sdata, element_name=LABELS, table_name=TABLE)
    assert table.obs["cell_id"].tolist() == list(range(1, 11))


def test_values_of_table_and_image(sdata):
    """The table joins the labels; the means of the image in the outlines are those of the table."""
    table = sdata.tables[TABLE]
    values = sd.get_values("area", sdata=sdata, element_name=LABELS, table_name=TABLE)
    assert values["area"].to_dict() == dict(zip(table.obs["cell_id"], table.obs["area"], strict=True))
    means = sd.get_values("DAPI", sdata=sdata, element_name=LABELS, table_name=TABLE)
    image = np.asarray(sdata.images["image"]["scale0"]["image"])
    labels = pixels(sdata.labels[LABELS])
    expected = np.bincount(labels.ravel(), image[0].ravel())[1:] / np.bincount(labels.ravel())[1:]
    np.testing.assert_array_equal(means["DAPI"], expected.astype(np.float32))


def test_aggregate_points(sdata):
    """Points at every centroid: one in each cell whose centroid lies inside of it."""
    shapes = sdata.shapes[SHAPES]
    spatial = sdata.tables[TABLE].obsm["spatial"]
    points = sd.models.PointsModel.parse(
        spatial, annotation=None, transformations={"um": sd.transformations.Identity()}
    )
    counted = sd.aggregate(values=points, by=shapes, value_key=None, agg_func="count", target_coordinate_system="um")
    assert counted.tables["table"].n_obs == len(shapes)


def test_extent_of_the_result(sdata):
    """Labels and outlines lie where the image does."""
    image, labels = (sd.get_extent(sdata[name], coordinate_system="um") for name in ("image", LABELS))
    assert labels == image
    shapes = sd.get_extent(sdata[SHAPES], coordinate_system="um")
    where = np.argwhere(pixels(sdata.labels[LABELS]) > 0)
    assert shapes["y"] == (where[:, 0].min() / 2, (where[:, 0].max() + 1) / 2)
    assert shapes["x"] == (where[:, 1].min() / 2, (where[:, 1].max() + 1) / 2)
