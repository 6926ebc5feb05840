"""From cells to biology, with the real packages: clusters in space, transcripts a cell, objects of readers."""

from __future__ import annotations

import dask.dataframe as dd
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, get_transformation

from spatialdata_segment import ExpandNuclei, ThresholdNuclei, Workflow, segment
from spatialdata_segment.testing import Tissue

mpl.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore")
PIXEL = 0.2125  # µm, as of a Xenium
LABELS, SHAPES, TABLE = "segmentation_cell_labels", "segmentation_cell_boundaries", "segmentation_table"
WORKFLOW = Workflow(nucleus=ThresholdNuclei(channels="DAPI"), cell=ExpandNuclei(distance=4))
GENES = ("Actb", "Gapdh", "Cd3e")


def transcripts(shape: tuple[int, int], n: int = 4000) -> pd.DataFrame:
    """Points in µm, never on the edge of a pixel, as readers have them: a row a molecule, the gene a category."""
    rng = np.random.default_rng(7)
    pixel = rng.integers(0, shape, (n, 2)) + rng.uniform(0.1, 0.9, (n, 2))
    gene = pd.Categorical.from_codes(rng.integers(0, len(GENES), n), list(GENES))
    quality = rng.uniform(10, 40, n)
    return pd.DataFrame({"x": pixel[:, 1] * PIXEL, "y": pixel[:, 0] * PIXEL, "feature_name": gene, "qv": quality})


@pytest.fixture(scope="module")
def xenium(tmp_path_factory):
    """A store with the names of a reader of spatialdata-io: image, segmentation of the maker, transcripts, table."""
    path = tmp_path_factory.mktemp("xenium") / "data.zarr"
    pixels = Tissue((240, 300), seed=5, cell_diameter=20).image().compute()
    names = ["DAPI", "ATP1A1/CD45/E-Cadherin"]
    transformations = {"global": Identity()}
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=names, scale_factors=[2], transformations=transformations
    )
    to_pixels = {"global": Scale([1 / PIXEL, 1 / PIXEL], axes=("x", "y"))}
    frame = dd.from_pandas(transcripts(pixels.shape[1:]), npartitions=1)
    points = PointsModel.parse(frame, feature_key="feature_name", transformations=to_pixels)
    circles = ShapesModel.parse(np.array([[5.0, 5.0], [20.0, 30.0]]), geometry=0, radius=4, transformations=to_pixels)
    obs = pd.DataFrame({"cell_id": [0, 1], "region": pd.Categorical(["cell_circles"] * 2)}, index=["a", "b"])
    maker = AnnData(np.ones((2, 3), np.float32), obs=obs, var=pd.DataFrame(index=list(GENES)))
    table = TableModel.parse(maker, region="cell_circles", region_key="region", instance_key="cell_id")
    sdata = sd.SpatialData(
        images={"morphology_focus": image},
        points={"transcripts": points},
        shapes={"cell_circles": circles},
        tables={"table": table},
    )
    sdata.write(path)
    sdata = sd.read_zarr(path)
    segment(sdata, "morphology_focus", WORKFLOW, pixel_size=PIXEL, shard_size=120 * 120, n_jobs=2, progress=False)
    return path


@pytest.fixture
def sdata(xenium):
    return sd.read_zarr(xenium)


def test_what_the_reader_made_stays(sdata):
    assert {"table", TABLE, "segmentation_candidates"} == set(sdata.tables)
    assert {"cell_circles", SHAPES, "segmentation_nucleus_boundaries"} == set(sdata.shapes)
    assert sdata["table"].uns["spatialdata_attrs"]["region"] == "cell_circles"
    assert list(sdata[TABLE].var_names) == ["DAPI", "ATP1A1/CD45/E-Cadherin"]
    assert sdata[TABLE].n_obs > 50
    assert isinstance(get_transformation(sdata[LABELS], "global"), Identity)


def test_transcripts_counted_per_cell(sdata):
    """`aggregate` on our shapes counts what a look into our labels counts, gene by gene."""
    counted = sd.aggregate(values=sdata["transcripts"], by=sdata[SHAPES], value_key="feature_name", agg_func="count")
    table = counted.tables["table"]
    labels = np.asarray(sdata[LABELS]["scale0"]["image"])
    points = sdata["transcripts"].compute()
    cell = labels[(points["y"] // PIXEL).astype(int), (points["x"] // PIXEL).astype(int)]
    expected = pd.crosstab(cell, points["feature_name"]).drop(index=0, errors="ignore")
    expected = expected.reindex(sdata[SHAPES].index, fill_value=0)[list(table.var_names)]
    assert expected.to_numpy().sum() > 1000
    np.testing.assert_array_equal(np.asarray(table.X.todense()), expected.to_numpy())
    assert table.obs["instance_id"].tolist() == sdata[SHAPES].index.tolist()


def test_transcripts_and_intensities_in_one_table(sdata):
    """The rows of both tables are the same cells: counts join ours, and annotate our shapes."""
    counted = sd.aggregate(values=sdata["transcripts"], by=sdata[SHAPES], value_key="feature_name", agg_func="count")
    counts, ours = counted.tables["table"], sdata[TABLE]
    by_id = counts.obs.set_index("instance_id").index.get_indexer(ours.obs["cell_id"])
    assert (by_id >= 0).all()
    ours.obsm["transcripts"] = counts.X[by_id].toarray()
    np.testing.assert_array_equal(ours.obsm["transcripts"].sum(1), np.asarray(counts.X.sum(1)).ravel()[by_id])


def test_clusters_in_space(sdata):
    """Squidpy and scanpy take the table as it is: scaling, PCA, Leiden, neighbours, enrichment between clusters."""
    import scanpy as sc
    import squidpy as sq

    table = sdata[TABLE].copy()
    sc.pp.log1p(table)
    sc.pp.scale(table)
    sc.pp.pca(table, n_comps=1)
    sc.pp.neighbors(table, n_neighbors=10, method="gauss")  # umap would compile for ten seconds
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, key_added="cluster")
    found = table.obs["cluster"].cat.codes.to_numpy()
    n = found.max() + 1
    assert 1 < n < table.n_obs / 2
    sc.tl.rank_genes_groups(table, "cluster", method="t-test")
    sq.gr.spatial_neighbors(table, coord_type="generic", delaunay=True)
    sq.gr.nhood_enrichment(table, "cluster", n_perms=20, seed=0, show_progress_bar=False, numba_parallel=False)
    score = table.uns["cluster_nhood_enrichment"]["zscore"]
    count = table.uns["cluster_nhood_enrichment"]["count"]
    assert score.shape == (n, n)
    graph = table.obsp["spatial_connectivities"]
    edges = np.array([[graph[found == a][:, found == b].sum() for b in range(n)] for a in range(n)])
    np.testing.assert_array_equal(count, edges)
    sq.gr.interaction_matrix(table, "cluster")
    sq.gr.centrality_scores(table, "cluster", show_progress_bar=False)
    assert np.isfinite(table.uns["cluster_centrality_scores"].to_numpy()).all()


@pytest.mark.parametrize(
    "image_key", ["1_image", "Visium_Human_hires_image", "merscope_region_0_z3", "raw.image", "IF-stack"]
)
def test_names_of_readers(image_key, tmp_path):
    """Names that readers give images go into the store, and into results of several images."""
    sdata = Tissue((80, 90), seed=1, cell_diameter=20).to_spatialdata()
    image = sdata.images.pop("image")
    sdata[image_key] = image
    sdata.write(tmp_path / "data.zarr")
    segment(sdata, [image_key], WORKFLOW, progress=False)
    back = sd.read_zarr(tmp_path / "data.zarr")
    assert f"{image_key}_segmentation_cell_labels" in back.labels
    assert set(back[f"{image_key}_segmentation_table"].obs["region"]) == {f"{image_key}_segmentation_cell_labels"}
    assert back[f"{image_key}_segmentation_table"].n_obs > 3
