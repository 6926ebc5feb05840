from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Labels2DModel, TableModel

from spatialdata_segment._table import candidates_table, cells_table, nucleus_columns, read_metadata
from spatialdata_segment.core.matching import Rules, SizeFilter, resolve
from spatialdata_segment.core.measure import intensity_sums, measure, nearest_pixel, pair_counts
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.errors import InputError

NUCLEI = np.array([[0, 5, 5, 0, 0, 2], [0, 0, 0, 0, 8, 0]])
CELLS = np.array([[3, 3, 3, 0, 0, 9], [3, 3, 0, 0, 6, 6]])
IMAGE = np.arange(24, dtype=np.uint16).reshape(2, 2, 6)
METADATA = {
    "b": [1, None, "µ"],
    "a": {"none": None, "nested": [[1, 2], []], "t": (1, 2.5)},
    "n": np.float32(0.5),
}
for array in (NUCLEI, CELLS, IMAGE):
    array.flags.writeable = False


def objects(labels):
    zero = (0,) * labels.ndim
    moments = measure(labels, zero)
    return moments.objects(nearest_pixel(labels, zero, moments).pixel)


@pytest.fixture
def masks():
    nuclei, cells = objects(NUCLEI), objects(CELLS)
    r = resolve(nuclei, cells, pair_counts(NUCLEI, CELLS), Rules(cell_size=SizeFilter(min_size=2)))
    return (nuclei, r.nucleus), (cells, r.cell)


def cells(masks, **options):
    found, fate = masks[1]
    means = intensity_sums(CELLS, IMAGE).mean(found.ids)
    options = {"region": "seg_cell_labels", "channels": ["DAPI", "WGA"], "intensities": means} | options
    return cells_table(found, fate, **options)


def roundtrip(path, table):
    labels = Labels2DModel.parse(CELLS.astype(np.uint32), dims=("y", "x"))
    sdata = sd.SpatialData(labels={"seg_cell_labels": labels}, tables={"t": table})
    sdata.write(path / "s.zarr")
    return sd.read_zarr(path / "s.zarr")["t"]


def same(a, b):
    assert a.obs.equals(b.obs)
    assert (a.obs.dtypes == b.obs.dtypes).all()
    assert a.obs_names.tolist() == b.obs_names.tolist()
    assert a.var_names.tolist() == b.var_names.tolist()
    assert a.obsm["spatial"].tobytes() == b.obsm["spatial"].tobytes()
    if a.X is not None:
        assert a.X.tobytes() == b.X.tobytes()
    assert dict(a.uns) == dict(b.uns)


def test_cells(masks):
    table = cells(masks, pixel_area=0.25, two_masks=True)
    assert table.obs["cell_id"].tolist() == [1, 2]
    assert table.obs["cell_id"].dtype == np.int64
    assert table.obs_names.tolist() == ["1", "2"]
    assert table.obs["region"].tolist() == ["seg_cell_labels"] * 2
    assert table.obs["area"].tolist() == [5, 2]
    assert table.obs["area_um2"].tolist() == [1.25, 0.5]
    assert table.obs["n_nuclei"].tolist() == [1, 1]
    assert table.obs["nucleus_area"].tolist() == [2, 1]
    assert table.obs["overlap_fraction"].tolist() == [1, 1]
    box = [f"bbox_{a}_{e}" for e in ("min", "max") for a in "xy"]
    assert table.obs[box].to_numpy().tolist() == [[0, 0, 3, 2], [4, 1, 6, 2]]
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X, np.float32([[16 / 5, 76 / 5], [10.5, 22.5]]))
    np.testing.assert_allclose(table.obsm["spatial"], [[1.3, 0.9], [5.0, 1.5]])
    assert table.uns[TableModel.ATTRS_KEY] == {
        "region": "seg_cell_labels",
        "region_key": "region",
        "instance_key": "cell_id",
    }


def test_columns_of_a_single_mask_without_pixel_size(masks):
    table = cells(masks, intensities=None, channels=())
    assert table.shape == (2, 0)
    assert not {"area_um2", "n_nuclei", "nucleus_area", "overlap_fraction"} & set(table.obs)


def test_rows_follow_the_final_ids():
    picture = np.array([[9, 9, 1]])
    found = objects(picture)
    r = resolve(None, found, None, Rules())
    table = cells_table(found, r.cell, region="r", channels=["c"], intensities=np.array([[1.0], [9.0]]))
    assert table.obs["area"].tolist() == [2, 1]
    assert table.X.tolist() == [[9], [1]]


def test_the_affine_moves_centroids(masks):
    affine = np.array([[2.0, 0, 10], [0, 3, 20], [0, 0, 1]])
    table = cells(masks, affine=affine)
    np.testing.assert_allclose(table.obsm["spatial"], [[12.6, 22.7], [20.0, 24.5]])
    with pytest.raises(InputError, match="affine"):
        cells(masks, affine=np.eye(4))


def test_metadata_comes_back_as_it_was(masks, tmp_path):
    back = read_metadata(roundtrip(tmp_path, cells(masks, metadata=METADATA)))
    assert back == {
        "a": {"none": None, "nested": [[1, 2], []], "t": [1, 2.5]},
        "b": [1, None, "µ"],
        "n": 0.5,
    }


def test_cells_roundtrip(masks, tmp_path):
    table = cells(masks, pixel_area=0.5, two_masks=True, metadata=METADATA)
    same(roundtrip(tmp_path, table), table)


def test_no_cells(tmp_path):
    none = Objects.empty(2)
    fate = resolve(None, none, None, Rules()).cell
    table = cells_table(none, fate, region="r", channels=["a"], intensities=np.zeros((0, 1)), two_masks=True)
    assert table.shape == (0, 1)
    assert TableModel.ATTRS_KEY not in table.uns
    back = roundtrip(tmp_path, table)
    assert back.shape == (0, 1)
    assert back.obs.columns.tolist() == table.obs.columns.tolist()
    assert back.obsm["spatial"].shape == (0, 2)


def test_intensities_must_fit(masks):
    with pytest.raises(InputError, match="intensities"):
        cells(masks, channels=["one"])


def test_candidates(masks, tmp_path):
    table = candidates_table(*masks)
    assert table.obs_names.tolist() == ["nucleus-2", "nucleus-5", "nucleus-8", "cell-3", "cell-6", "cell-9"]
    assert table.obs["kind"].tolist() == ["nucleus"] * 3 + ["cell"] * 3
    assert table.obs["candidate_id"].tolist() == [2, 5, 8, 3, 6, 9]
    assert table.obs["cell_id"].tolist() == [0, 1, 2, 1, 2, 0]
    assert table.obs["is_kept"].tolist() == [False, True, True, True, True, False]
    assert table.obs["drop_reason"].tolist() == ["partner_dropped", "", "", "", "", "too_small"]
    assert table.obs["match"].tolist() == [9, 3, 6, 5, 8, 2]
    assert table.obs["area"].tolist() == [1, 2, 1, 5, 2, 1]
    assert table.obs["overlap_fraction"].tolist() == [1] * 6
    assert table.obs[["centroid_x", "centroid_y"]].iloc[1].tolist() == [2, 0.5]
    assert table.obs[["bbox_x_min", "bbox_y_min", "bbox_x_max", "bbox_y_max"]].iloc[1].tolist() == [
        1,
        0,
        3,
        1,
    ]
    assert TableModel.ATTRS_KEY not in table.uns
    same(roundtrip(tmp_path, table), table)


def test_candidates_of_one_mask_and_of_none(masks, tmp_path):
    only = candidates_table(None, masks[1], affine=np.diag([2.0, 2.0, 1.0]))
    assert only.obs["kind"].cat.categories.tolist() == ["nucleus", "cell"]
    assert only.obsm["spatial"][1].tolist() == [10, 3]
    with pytest.raises(InputError, match="no mask"):
        candidates_table(None, None)
    none = Objects.empty(3)
    empty = candidates_table((none, resolve(none, None, None, Rules()).nucleus), None)
    assert empty.n_obs == 0
    assert roundtrip(tmp_path, empty).obs.columns.tolist() == empty.obs.columns.tolist()


def test_three_axes():
    picture = np.zeros((2, 3, 4), int)
    picture[1, 2, 1:] = 4
    found = objects(picture)
    fate = resolve(None, found, None, Rules()).cell
    table = cells_table(found, fate, region="r", pixel_area=2.0)
    assert table.obs["volume_um3"].tolist() == [6]
    assert table.obsm["spatial"].tolist() == [[2.5, 2.5, 1.5]]
    box = [f"bbox_{a}_{e}" for a in "xyz" for e in ("min", "max")]
    assert table.obs[box].iloc[0].tolist() == [1, 4, 2, 3, 1, 2]
    candidates = candidates_table(None, (found, fate))
    assert candidates.obs[["centroid_x", "centroid_y", "centroid_z"]].iloc[0].tolist() == [2.5, 2.5, 1.5]


def test_a_candidate_takes_less_than_a_kilobyte(masks):
    n = 2000
    labels = np.arange(1, n + 1).reshape(40, 50) * 10**15
    found = objects(labels)
    table = candidates_table(None, (found, resolve(None, found, None, Rules()).cell))
    size = table.obs.memory_usage(index=True, deep=True).sum() + table.obsm["spatial"].nbytes
    assert size <= 800 * n


def test_equal_results_are_equal_bytes(masks, tmp_path):
    def written(name):
        path = tmp_path / name
        path.mkdir()
        roundtrip(path, cells(masks, metadata=METADATA))
        return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and "t" in p.parts}

    assert written("a") == written("b") != {}


def test_candidates_name_the_elements_they_were_found_in(masks):
    """A region for each kind; the ids of the rows are those of the candidates. Without a row there is none."""
    table = candidates_table(*masks, regions={"nucleus": "nuclei", "cell": "cells"})
    assert table.obs.groupby("kind", observed=True)["region"].unique().map(list).to_dict() == {
        "nucleus": ["nuclei"], "cell": ["cells"],
    }  # fmt: skip
    assert table.uns["spatialdata_attrs"] == {
        "region": ["nuclei", "cells"], "region_key": "region", "instance_key": "instance_id",
    }  # fmt: skip
    one = candidates_table(*masks, regions=dict.fromkeys(["nucleus", "cell"], "image"))
    assert set(one.obs["region"]) == {"image"}
    assert table.obs["instance_id"].tolist() == [2, 5, 8, 3, 6, 9]
    assert one.obs["instance_id"].tolist() == [1, 2, 3, 4, 5, 6]
    none = Objects.empty(2)
    fate = resolve(none, None, None, Rules()).nucleus
    assert "spatialdata_attrs" not in candidates_table((none, fate), None, regions={"nucleus": "image"}).uns


def test_what_is_said_of_nuclei_stands_with_their_cells():
    """By the first of several nuclei; what has none is marked."""
    nuclei, cells = np.array([[1, 0, 2, 0, 0, 3, 0]]), np.array([[4, 4, 4, 7, 0, 8, 8]])
    a, b = objects(nuclei), objects(cells)
    r = resolve(a, b, pair_counts(nuclei, cells), Rules(multinucleated="keep", unmatched="keep"))
    said = {
        "prob": np.array([0.5, 0.7, 0.9], np.float32),
        "class_id": np.array([0, 1, 2]),
        "class_prob": np.arange(6, dtype=np.float32).reshape(3, 2),
        "count": np.array([4, 5, 6], np.uint8),
        "is_round": np.array([True, False, False]),
        "kind": np.array(["a", "bb", "c"]),
    }
    columns = nucleus_columns(said, r.nucleus, r.cell)
    expected = {
        "nucleus_prob": np.array([0.5, np.nan, 0.9], np.float32),
        "nucleus_class_id": np.array([0, -1, 2]),
        "nucleus_class_prob": np.array([[0, 1], [np.nan, np.nan], [4, 5]], np.float32),
        "nucleus_count": np.array([4, -1, 6]),
        "nucleus_is_round": np.array([1, -1, 0], np.int8),
        "nucleus_kind": np.array(["a", "", "c"]),
    }
    assert list(columns) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(columns[name], values)
        assert columns[name].dtype.kind == values.dtype.kind
    table = cells_table(b, r.cell, region="r", two_masks=True, extra=columns)
    assert table.obs["nucleus_class_id"].tolist() == [0, -1, 2]
    assert table.obsm["nucleus_class_prob"].shape == (3, 2)


def test_nuclei_that_were_dropped_say_nothing():
    """Such as one that is too small, where the masks are not matched."""
    nuclei, cells = np.array([[1, 0, 2, 2, 0]]), np.array([[4, 4, 7, 7, 7]])
    a, b = objects(nuclei), objects(cells)
    r = resolve(a, b, pair_counts(nuclei, cells), Rules(match_masks=False, nucleus_size=SizeFilter(min_size=2)))
    columns = nucleus_columns({"prob": np.array([0.5, 0.7])}, r.nucleus, r.cell)
    np.testing.assert_array_equal(columns["nucleus_prob"], [np.nan, 0.7])
