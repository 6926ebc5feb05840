"""A region segmented again: every other cell keeps its id, its pixels, its row and its outline."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData, concat
from geopandas import GeoDataFrame
from geopandas.testing import assert_geodataframe_equal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from scipy.sparse import csr_matrix
from shapely import box
from spatialdata.models import Labels2DModel, ShapesModel
from spatialdata.transformations import Scale, get_transformation, set_transformation

from spatialdata_segment import (
    ExpandNuclei,
    Function,
    SizeFilter,
    ThresholdNuclei,
    Workflow,
    filter_labels,
    labels_to_polygons,
    match_nuclei,
)
from spatialdata_segment import resegment as resegment_
from spatialdata_segment import segment as segment_
from spatialdata_segment.errors import InputError, MissingError, SegmentationWarning
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (170, 190)
PAIR = Workflow(nucleus=ThresholdNuclei(object_radius=7), cell=ExpandNuclei(distance=4))
WORKFLOWS = {
    "one": Workflow(nucleus=ThresholdNuclei(object_radius=7)),
    "pair": PAIR,
    "unmatched kept": PAIR.model_copy(update={"unmatched": "keep", "multinucleated": "keep"}),
    "independent": PAIR.model_copy(update={"match_masks": False}),
    "duplicate": Workflow(nucleus=ThresholdNuclei(object_radius=7), duplicate_mask=True),
}
QUICK = settings(
    max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
OTHER = {"object_radius": 4, "contrast": 0.55}


def segment(*args, **options):
    return segment_(*args, **{"n_jobs": 1, "progress": False} | options)


def resegment(*args, **options):
    return resegment_(*args, **{"n_jobs": 1, "progress": False} | options)


def changed(workflow: Workflow) -> Workflow:
    """Return the workflow with other parameters."""
    return workflow.model_copy(update={"nucleus": workflow.nucleus.model_copy(update=OTHER)})


def an_object() -> sd.SpatialData:
    return Tissue(SHAPE, seed=3, cell_diameter=20, touching=0.6).to_spatialdata()


@pytest.fixture(scope="module")
def results():
    """The result of each workflow on the whole image."""
    return {name: segment(an_object(), "image", flow) for name, flow in WORKFLOWS.items()}


def masks_of(sdata, key="segmentation") -> dict[str, np.ndarray]:
    return {n: np.asarray(e) for n, e in sdata.labels.items() if n.startswith(key)}


def copied(sdata) -> sd.SpatialData:
    return sd.deepcopy(sdata)


def only(labels, ids) -> np.ndarray:
    return np.where(np.isin(labels, ids), labels, 0)


def centroids(labels) -> dict[int, tuple[int, ...]]:
    """Id -> the pixel at the centroid."""
    found = {}
    for i in np.unique(labels[labels > 0]).tolist():
        found[i] = tuple(np.floor(np.argwhere(labels == i).mean(axis=0) + 0.5).astype(int).tolist())
    return found


def inside(labels, region) -> set[int]:
    x0, y0, x1, y1 = region
    return {i for i, (y, x) in centroids(labels).items() if x0 <= x + 0.5 <= x1 and y0 <= y + 0.5 <= y1}


def check_consistent(sdata, names=("nucleus", "cell")) -> None:
    """Labels, outlines and tables say the same."""
    main = None
    for mask in names:
        labels = np.asarray(sdata[f"segmentation_{mask}_labels"])
        outlines = sdata[f"segmentation_{mask}_boundaries"]
        expected = labels_to_polygons(labels, progress=False)
        assert outlines.index.tolist() == expected.index.tolist()
        assert outlines.geometry.geom_equals(expected.geometry).all()
        main = labels
    table = sdata["segmentation_table"]
    ids, areas = np.unique(main[main > 0], return_counts=True)
    assert table.obs["cell_id"].tolist() == ids.tolist() == [int(n) for n in table.obs_names]
    np.testing.assert_array_equal(table.obs["area"], areas)
    for i, channel in enumerate(np.asarray(sdata["image"])):
        sums = np.bincount(main.ravel(), channel.ravel())[ids]
        np.testing.assert_allclose(table.X[:, i], sums / areas, rtol=1e-5)
    where = np.array([np.argwhere(main == i).mean(axis=0)[::-1] + 0.5 for i in ids])
    np.testing.assert_allclose(table.obsm["spatial"], where)
    candidates = sdata["segmentation_candidates"].obs
    assert not candidates.duplicated(["kind", "candidate_id"]).any()
    assert (candidates["is_kept"] == (candidates["drop_reason"] == "")).all()
    assert (candidates["is_kept"] == (candidates["cell_id"] > 0)).all()
    last = candidates[candidates["is_kept"] & (candidates["kind"] == candidates["kind"].iloc[-1])]
    assert sorted(last["cell_id"]) == ids.tolist()


@QUICK
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_every_other_cell_stays(results, name, data):
    """Others keep ids and pixels, rows and outlines; what was in the region goes; new ids follow."""
    x0, y0 = data.draw(st.integers(-10, 120)), data.draw(st.integers(-10, 110))
    region = (x0, y0, x0 + data.draw(st.integers(20, 120)), y0 + data.draw(st.integers(20, 120)))
    size = data.draw(st.sampled_from([None, 70 * 70]))
    before = results[name]
    after = resegment(copied(before), "image", changed(WORKFLOWS[name]), bounding_box=region, shard_size=size)
    old, new = masks_of(before), masks_of(after)
    assert set(old) == set(new)
    linked = name in ("pair", "unmatched kept")
    names = [n.split("_")[1] for n in old]
    goes = {n: inside(labels, region) for n, labels in old.items()}
    if linked:
        cells = set(np.unique(old["segmentation_cell_labels"]).tolist())
        lone = goes["segmentation_nucleus_labels"] - cells
        goes = dict.fromkeys(old, goes["segmentation_cell_labels"] | lone)
    for n, labels in old.items():
        first = max(int(x.max()) for x in old.values()) if linked else int(labels.max())
        stay = sorted(set(np.unique(labels).tolist()) - goes[n])
        np.testing.assert_array_equal(only(new[n], stay), only(labels, stay))
        came = set(np.unique(new[n]).tolist()) - set(stay)
        assert all(i > first for i in came)
        kept = [i for i in stay if i]
        shapes = n.replace("labels", "boundaries")
        assert_geodataframe_equal(after[shapes].loc[kept], before[shapes].loc[kept], check_geom_type=True)
    every = sorted({i for labels in new.values() for i in np.unique(labels).tolist() if i > first})
    if linked or len(names) == 1 or name == "duplicate":
        assert every == list(range(first + 1, first + 1 + len(every)))
    kept = before["segmentation_table"].obs["cell_id"].isin(set(map(int, after["segmentation_table"].obs["cell_id"])))
    same_rows = partial(assert_frame_equal, check_index_type=False)  # with pandas 3 names are objects, or text
    same_rows(
        after["segmentation_table"].obs.loc[before["segmentation_table"].obs_names[kept]],
        before["segmentation_table"].obs[kept],
    )
    same = after["segmentation_table"][before["segmentation_table"].obs_names[kept]]
    assert same.X.tobytes() == before["segmentation_table"][kept.to_numpy()].X.tobytes()
    assert same.obsm["spatial"].tobytes() == before["segmentation_table"][kept.to_numpy()].obsm["spatial"].tobytes()
    check_consistent(after, names)
    was, now = before["segmentation_candidates"].obs, after["segmentation_candidates"].obs
    still = now.loc[was.index]
    gone = (still["drop_reason"] == "replaced").to_numpy()
    columns = [c for c in was if c not in ("cell_id", "is_kept", "drop_reason", "instance_id")]
    same_rows(still[columns], was[columns])
    same_rows(still[["cell_id", "is_kept"]][~gone], was[["cell_id", "is_kept"]][~gone])
    for n, ids in goes.items():
        if n.split("_")[1] in set(was["kind"]):
            of_kind = was[was["kind"] == n.split("_")[1]]
            assert set(of_kind.loc[gone[was["kind"] == n.split("_")[1]], "cell_id"]) == ids - {0}


@QUICK
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_any_shards(results, name, data):
    """However the region is cut and however many run at once, all elements are the same."""
    x0, y0 = data.draw(st.integers(-10, 100)), data.draw(st.integers(-10, 90))
    region = (x0, y0, x0 + data.draw(st.integers(60, 120)), y0 + data.draw(st.integers(60, 120)))
    side = data.draw(st.integers(40, 100))
    before, flow = results[name], changed(WORKFLOWS[name])
    whole = resegment(copied(before), "image", flow, bounding_box=region)
    cut = resegment(copied(before), "image", flow, bounding_box=region, shard_size=side * side, n_jobs=2)
    check_equal(cut, whole)
    assert not np.array_equal(*(np.asarray(s["segmentation_nucleus_labels"]) for s in (before, cut)))


def check_equal(found: sd.SpatialData, expected: sd.SpatialData) -> None:
    """All labels, outlines and tables are the same, bit for bit."""
    assert {n for _, n, _ in found.gen_elements()} == {n for _, n, _ in expected.gen_elements()}
    for n, labels in masks_of(expected).items():
        assert np.asarray(found[n]).dtype == labels.dtype
        np.testing.assert_array_equal(np.asarray(found[n]), labels)
    for n, frame in expected.shapes.items():
        assert_geodataframe_equal(found[n], frame)
    for n, table in expected.tables.items():
        assert_frame_equal(found[n].obs, table.obs, check_categorical=False)
        assert (table.X is None) == (found[n].X is None) == (n == "segmentation_candidates")
        assert dict(found[n].obsm).keys() == dict(table.obsm).keys()
        for a, b in [(found[n].obsm[k], table.obsm[k]) for k in table.obsm] + [(found[n].X, table.X)] * (
            table.X is not None
        ):
            assert a.tobytes() == b.tobytes()
        assert found[n].uns.get("segmentation") == table.uns.get("segmentation")


@QUICK
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_the_same_workflow_finds_the_same_cells(results, name, data):
    """New ids apart, every pixel belongs to the cell that it belonged to."""
    x0, y0 = data.draw(st.integers(-10, 120)), data.draw(st.integers(-10, 110))
    region = (x0, y0, x0 + data.draw(st.integers(20, 120)), y0 + data.draw(st.integers(20, 120)))
    before = results[name]
    after = resegment(copied(before), "image", WORKFLOWS[name], bounding_box=region, shard_size=80 * 80)
    for n, old in masks_of(before).items():
        new = np.asarray(after[n])
        pairs = {(a, b) for a, b in np.unique(np.stack([old.ravel(), new.ravel()], 1), axis=0).tolist()}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        assert (0, 0) in pairs
        renamed = {a: b for a, b in pairs if a != b}
        assert all(b > old.max() for b in renamed.values())
        order = sorted(renamed)  # raster order of the anchors, then and now
        assert [renamed[a] for a in order] == sorted(renamed.values())
    was, now = before["segmentation_table"], after["segmentation_table"]
    assert was.n_obs == now.n_obs
    of_nuclei = {"n_nuclei", "nucleus_area", "overlap_fraction"} if name == "independent" else set()
    for column in set(was.obs) - {"cell_id", "region"} - of_nuclei:
        assert sorted(was.obs[column]) == sorted(now.obs[column])


def drawn(rows) -> np.ndarray:
    return np.array([[int(c) for c in row] for row in rows])


def labelled(old: np.ndarray, image: np.ndarray) -> sd.SpatialData:
    """An object with labels as they are given, of an image of the same grid."""
    sdata = sd.SpatialData()
    sdata["image"] = sd.models.Image2DModel.parse(image[None].astype(np.uint8), dims=("c", "y", "x"))
    sdata["segmentation_cell_labels"] = Labels2DModel.parse(old.astype(np.uint32), dims=("y", "x"))
    return sdata


NUMBERED = Workflow(cell=Function(function=lambda image: image[0].astype(int), context_px=4))


@pytest.mark.parametrize(
    ("old", "found", "expected"),
    [
        # the new cell meets one that stays, which keeps its pixels
        (["1110022", "1110022"], ["7777770", "7777770"], ["3333322", "3333322"]),
        # most of the new cell is one that stays: it is covered
        (["0022222", "0022222"], ["0777770", "0777770"], ["0022222", "0022222"]),
        # a new cell beyond the edge stands for one that goes
        (["0111100", "0111100"], ["0077770", "0077770"], ["0022220", "0022220"]),
        # and one that stands for nothing does not come
        (["1100000", "1100000"], ["7700880", "7700880"], ["2200000", "2200000"]),
        # two that come, in raster order of their anchors
        (["1100033", "1111033"], ["9088000", "9080000"], ["4055033", "4050033"]),
    ],
)
def test_pixels_that_two_want(old, found, expected):
    """The region ends at x = 3.6: the pixels of columns 0 to 3 lie in it, by their centres."""
    sdata = labelled(drawn(old), drawn(found))
    resegment(sdata, "image", NUMBERED, bounding_box=(0, 0, 3.6, 2))
    np.testing.assert_array_equal(sdata["segmentation_cell_labels"], drawn(expected))


def test_labels_alone():
    """A result without tables and outlines gets none."""
    sdata = an_object()
    segment(sdata, "image", "dapi", shapes=False, table=False)
    resegment(sdata, "image", "dapi", bounding_box=(0, 0, 90, 90))
    assert not sdata.shapes
    assert not sdata.tables


def test_store_and_memory_agree_and_others_columns_stay(results, tmp_path):
    sdata = copied(results["pair"])
    table = sdata["segmentation_table"]
    table.obs["kind_of_cell"] = pd.Categorical(np.where(np.arange(table.n_obs) % 2, "T", "B"))
    table.obsm["X_pca"] = np.arange(2.0 * table.n_obs).reshape(-1, 2)
    was = dict(zip(table.obs_names, table.obs["kind_of_cell"], strict=True))
    copied(sdata).write(tmp_path / "store.zarr")
    backed = sd.read_zarr(tmp_path / "store.zarr")
    for each in (sdata, backed):
        resegment(each, "image", changed(PAIR), bounding_box=(40, 40, 120, 120))
    backed = sd.read_zarr(tmp_path / "store.zarr")
    for n, labels in masks_of(sdata).items():
        np.testing.assert_array_equal(labels, np.asarray(backed[n]))
    for name, found in sdata.tables.items():
        assert_frame_equal(found.obs, backed.tables[name].obs, check_categorical=False)
    now = backed["segmentation_table"]
    for name, kind in zip(now.obs_names, now.obs["kind_of_cell"], strict=True):
        assert kind == was[name] if name in was else pd.isna(kind)
    new = ~now.obs_names.isin(list(was))
    assert new.any()
    assert np.isnan(now.obsm["X_pca"][new]).all()
    assert np.isfinite(now.obsm["X_pca"][~new]).all()
    assert (tmp_path / "store.zarr" / ".spatialdata_segment" / "segmentation.resegment.json").exists()
    sd.match_element_to_table(backed, element_name="segmentation_cell_labels", table_name="segmentation_table")


def test_the_same_call_on_a_store(results, tmp_path):
    """A call whose result is there is told and leaves it, as after a run that was killed as it ended; unless asked."""
    copied(results["pair"]).write(tmp_path / "store.zarr")
    how = {"bounding_box": (40, 40, 120, 120)}
    done = resegment(sd.read_zarr(tmp_path / "store.zarr"), "image", changed(PAIR), **how)
    ids = done["segmentation_table"].obs["cell_id"].tolist()
    with pytest.warns(SegmentationWarning, match="'segmentation' was this call: nothing was segmented again; resume"):
        same = resegment(sd.read_zarr(tmp_path / "store.zarr"), "image", changed(PAIR), shard_size=70 * 70, **how)
    check_equal(same, done)
    assert not list((tmp_path / "store.zarr" / ".spatialdata_segment").glob("scratch*"))
    for options in ({"resume": False}, {"bounding_box": (40, 40, 120, 121)}):
        other = resegment(sd.read_zarr(tmp_path / "store.zarr"), "image", changed(PAIR), **how | options)
        found = other["segmentation_table"].obs["cell_id"].tolist()
        assert max(found) > max(ids)
        ids = found


def test_killed_between_two_elements(results, tmp_path, monkeypatch):
    """Killed at any moment of the exchange: the next call has the whole new result, and computes nothing."""
    from spatialdata_segment import _journal

    class Kill(BaseException):
        pass

    copied(results["pair"]).write(tmp_path / "begin.zarr")
    how = {"bounding_box": (40, 40, 120, 120)}
    steps: list[str] = []
    shutil.copytree(tmp_path / "begin.zarr", tmp_path / "all.zarr")
    monkeypatch.setattr(_journal, "step", steps.append)
    done = resegment(sd.read_zarr(tmp_path / "all.zarr"), "image", changed(PAIR), **how)
    for at in ("journal", "after segmentation_nucleus_labels", "after segmentation_table", "no journal"):
        assert at in steps
        store = tmp_path / f"{at}.zarr"
        shutil.copytree(tmp_path / "begin.zarr", store)

        def stop(what, at=at):
            if what == at:
                raise Kill

        monkeypatch.setattr(_journal, "step", stop)
        with pytest.raises(Kill):
            resegment(sd.read_zarr(store), "image", changed(PAIR), **how)
        monkeypatch.setattr(_journal, "step", lambda _: None)
        with pytest.warns(SegmentationWarning, match="nothing was segmented again"):
            check_equal(resegment(sd.read_zarr(store), "image", changed(PAIR), **how), done)
        left = {p.name for p in (store / ".spatialdata_segment").glob("*")}
        assert left <= {"segmentation.resegment.json"}, at


def test_again_and_again(results):
    """Ids are never used twice, and every run is on record."""
    sdata = copied(results["pair"])
    seen = set(sdata["segmentation_table"].obs["cell_id"])
    for k, region in enumerate([(0, 0, 90, 90), (40, 40, 150, 150), (0, 0, 90, 90)]):
        before = set(sdata["segmentation_table"].obs["cell_id"])
        resegment(sdata, "image", changed(PAIR) if k % 2 else PAIR, bounding_box=region)
        new = set(sdata["segmentation_table"].obs["cell_id"]) - before
        assert new
        assert not new & seen
        seen |= new
    check_consistent(sdata)
    updates = json.loads(sdata["segmentation_table"].uns["segmentation"])["updates"]
    assert [u["counts"]["cell"]["kept"] > 0 for u in updates] == [True] * 3
    assert updates[1]["workflow"]["nucleus"] != updates[0]["workflow"]["nucleus"]


def test_regions_of_labels_and_shapes_in_a_coordinate_system():
    """The same region as a box, as shapes and as labels."""
    found = []
    for kind in ("box", "shapes", "labels"):
        sdata = an_object()
        half = Scale([0.5, 0.5], axes=("x", "y"))
        set_transformation(sdata["image"], half, "um")
        segment(sdata, "image", PAIR, to_coordinate_system="um")
        if kind == "shapes":
            sdata["roi"] = ShapesModel.parse(
                GeoDataFrame(geometry=[box(20, 20, 60, 60)]),
                transformations={"um": sd.transformations.Identity()},
            )
        elif kind == "labels":
            roi = np.zeros(SHAPE, np.uint8)
            roi[40:120, 40:120] = 1
            sdata["roi"] = Labels2DModel.parse(roi, dims=("y", "x"), transformations={"um": half})
        region = {"bounding_box": (20, 20, 60, 60)} if kind == "box" else {"roi_key": "roi"}
        resegment(sdata, "image", changed(PAIR), to_coordinate_system="um", shard_size=60 * 60, **region)
        found.append((masks_of(sdata), sdata["segmentation_table"].obsm["spatial"]))
    for labels, spatial in found[1:]:
        for n, expected in found[0][0].items():
            np.testing.assert_array_equal(labels[n], expected)
        np.testing.assert_array_equal(spatial, found[0][1])


def test_volume():
    tissue = Tissue((12, 80, 90), seed=2, cell_diameter=20, anisotropy=2)
    flow = Workflow(nucleus=ThresholdNuclei(object_radius=6), cell=ExpandNuclei(distance=2))
    sdata = segment(tissue.to_spatialdata(), "image", flow, pixel_size=(2, 1, 1))
    before = copied(sdata)
    resegment(sdata, "image", flow, bounding_box=(10, 10, 2, 60, 60, 9), shard_size=12 * 40 * 40)
    for n, old in masks_of(before).items():
        new = np.asarray(sdata[n])
        assert len(np.unique(np.stack([old.ravel(), new.ravel()], 1), axis=0)) == len(np.unique(old))
        assert (old != new).any()
        name = n.replace("labels", "boundaries")
        expected = labels_to_polygons(new, progress=False)
        frame = sdata[name]
        assert frame[["z_index", "cell_id"]].to_numpy().tolist() == expected[["z_index", "cell_id"]].to_numpy().tolist()
        assert frame.geometry.geom_equals(expected.geometry).all()
    table = sdata["segmentation_table"].obs
    assert table["volume_um3"].notna().all()


def test_nothing_found_and_nothing_there(results):
    sdata = copied(results["one"])
    none = Workflow(nucleus=Function(function=lambda image: np.zeros(image.shape[1:], int), context_px=1))
    with pytest.warns(SegmentationWarning, match="no cell was found in the region of 'image'"):
        resegment(sdata, "image", none, bounding_box=(-5, -5, 300, 300))
    assert not np.asarray(sdata["segmentation_nucleus_labels"]).any()
    assert sdata["segmentation_table"].n_obs == 0
    assert "segmentation_nucleus_boundaries" not in sdata.shapes
    resegment(sdata, "image", WORKFLOWS["one"], bounding_box=(-5, -5, 300, 300))
    assert sdata["segmentation_table"].n_obs == results["one"]["segmentation_table"].n_obs
    assert (sdata["segmentation_candidates"].obs["drop_reason"] == "replaced").sum() == sdata[
        "segmentation_table"
    ].n_obs


@pytest.mark.parametrize(
    ("workflow", "options", "error", "message"),
    [
        (PAIR, {}, InputError, "neither roi_key nor bounding_box"),
        (PAIR, {"bounding_box": (0, 0, 50, 50), "key_added": "mine"}, MissingError, "no result 'mine'"),
        ("dapi", {"bounding_box": (0, 0, 50, 50)}, InputError, "has the mask nucleus and cell, and the workflow makes"),
        (WORKFLOWS["independent"], {"bounding_box": (0, 0, 50, 50)}, InputError, "match_masks=True and the workflow"),
        (PAIR, {"bounding_box": (900, 900, 950, 950)}, InputError, "misses the image"),
        (PAIR, {"roi_key": "no"}, MissingError, "no"),
    ],
)
def test_what_cannot_be(results, workflow, options, error, message):
    sdata = copied(results["pair"])
    before = masks_of(sdata)
    with pytest.raises(error, match=message):
        resegment(sdata, "image", workflow, **options)
    for n, labels in before.items():
        np.testing.assert_array_equal(np.asarray(sdata[n]), labels)


def test_another_grid(results):
    sdata = copied(results["pair"])
    sdata["small"] = Tissue((90, 90), seed=1, cell_diameter=20).to_spatialdata()["image"]
    with pytest.raises(InputError, match="do not lie on the grid of image 'small'"):
        resegment(sdata, "small", PAIR, bounding_box=(0, 0, 50, 50))


def refused(sdata, message, workflow=None, **options) -> None:
    """The call is refused before it runs, and nothing has changed."""
    before, tables = masks_of(sdata), {n: t.copy() for n, t in sdata.tables.items()}
    with pytest.raises(InputError, match=message):
        resegment(sdata, "image", workflow or WORKFLOWS["one"], **{"bounding_box": (0, 0, 90, 90)} | options)
    for n, labels in before.items():
        np.testing.assert_array_equal(np.asarray(sdata[n]), labels)
    for n, table in tables.items():
        assert_frame_equal(sdata[n].obs, table.obs)


@pytest.mark.parametrize("name", ["one", "pair"])
def test_no_new_cell_and_others_stay(results, tmp_path, name):
    """Everything in the region goes and nothing comes: outlines and rows of the others are those that were there."""
    flow = WORKFLOWS[name]
    none = flow.model_copy(update={"nucleus": ThresholdNuclei(threshold=1e6)})
    copied(results[name]).write(tmp_path / "store.zarr")
    for sdata in (copied(results[name]), sd.read_zarr(tmp_path / "store.zarr")):
        with pytest.warns(SegmentationWarning, match="no cell was found in the region of 'image'"):
            resegment(sdata, "image", none, bounding_box=(0, 0, 90, 90))
        kept = set(sdata["segmentation_table"].obs["cell_id"])
        assert 0 < len(kept) < results[name]["segmentation_table"].n_obs
        for n, labels in masks_of(sdata).items():
            was = results[name][n]
            np.testing.assert_array_equal(labels, only(np.asarray(was), list(kept)))
            shapes = n.replace("labels", "boundaries")
            assert_geodataframe_equal(sdata[shapes], results[name][shapes].loc[sorted(kept)])
            assert get_transformation(sdata[shapes], get_all=True) == get_transformation(was, get_all=True)
    assert not (tmp_path / "store.zarr" / ".spatialdata_segment" / "scratch").exists()


@pytest.mark.parametrize(
    "change",
    [np.log1p, lambda x: x / x.sum(axis=1, keepdims=True), lambda x: (x - x.mean(0)) / x.std(0)],
    ids=["log1p", "normalised", "scaled"],
)
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("boxes", [True, False], ids=["", "no-boxes"])
def test_values_that_are_no_means_any_more(results, change, is_sparse, boxes):
    """Rows of new cells would be of another kind: refused until the means are back."""
    sdata = copied(results["pair"])
    table = sdata["segmentation_table"]
    table.layers["means"] = table.X.copy()
    if not boxes:
        table.obs = table.obs[["region", "cell_id", "area"]]
    table.X = csr_matrix(change(table.X)) if is_sparse else change(table.X)
    refused(sdata, r"'DAPI' of cell 1 is \S+ and its pixels' mean \S+\. .* table\.layers\['means'\]", PAIR)
    table.X = table.layers["means"].copy()
    resegment(sdata, "image", changed(PAIR), bounding_box=(0, 0, 90, 90))
    check_consistent(sdata)


def test_one_channel_that_is_no_mean_and_one_cell_that_was_edited(results):
    sdata = copied(results["one"])
    table = sdata["segmentation_table"]
    table.X[0] = 0  # of one cell: others may have edited its labels since
    resegment(sdata, "image", WORKFLOWS["one"], bounding_box=(60, 60, 90, 90))
    table = sdata["segmentation_table"]
    table.X[:, 1] = np.log1p(table.X[:, 1])
    refused(sdata, f"of '?\"?segmentation_table'? does not hold the mean .*: {table.var_names[1]!r} of cell")


def test_what_is_of_all_cells_is_left_out_with_a_warning(results):
    sdata = copied(results["one"])
    table = sdata["segmentation_table"]
    table.raw = table.copy()
    table.uns["leiden_colors"] = ["red"]
    table.obsp["connectivities"] = csr_matrix((table.n_obs, table.n_obs))
    with pytest.warns(SegmentationWarning, match="raw, obsp 'connectivities', uns 'leiden_colors' of 'segm"):
        resegment(sdata, "image", WORKFLOWS["one"], bounding_box=(0, 0, 90, 90))
    table = sdata["segmentation_table"]
    assert table.raw is None
    assert not table.obsp
    assert set(table.uns) == {"segmentation", "spatialdata_attrs"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", SegmentationWarning)
        resegment(sdata, "image", WORKFLOWS["one"], bounding_box=(0, 0, 90, 90), resume=False)


@pytest.mark.parametrize(("was", "given"), [(0.5, 0.65), (None, 0.5), (0.5, (0.5, 0.6))])
def test_another_pixel_size(was, given):
    sdata = segment(an_object(), "image", WORKFLOWS["one"], pixel_size=was)
    told = None if was is None else r"\[0\.5, 0\.5\]"
    refused(sdata, rf"has pixel_size={told}, and this call pixel_size=\(.*area_um2", pixel_size=given)
    resegment(sdata, "image", WORKFLOWS["one"], bounding_box=(0, 0, 90, 90), pixel_size=was)
    if was is not None:
        obs = sdata["segmentation_table"].obs
        np.testing.assert_allclose(obs["area_um2"], obs["area"] * 0.25)


def test_text_of_others_is_missing_for_new_cells(results, tmp_path):
    """It is no text "nan", neither in memory nor read from a store."""
    sdata = copied(results["one"])
    table = sdata["segmentation_table"]
    table.obs["note"], table.obs["seen"], table.obs["rank"] = "tumour", True, np.arange(table.n_obs)
    names = set(table.obs_names)
    resegment(sdata, "image", WORKFLOWS["one"], bounding_box=(0, 0, 90, 90))
    sdata.write(tmp_path / "store.zarr")
    for found in (sdata, sd.read_zarr(tmp_path / "store.zarr")):
        obs = found["segmentation_table"].obs
        new = ~obs.index.isin(list(names))
        assert new.any()
        for column, value in {"note": "tumour", "seen": True}.items():
            assert obs[column][new].isna().all()
            assert (obs[column][~new] == value).all()
        assert obs["rank"][new].isna().all()


def test_a_result_of_labels_says_what_it_is(results):
    """Of `match_nuclei` and `filter_labels` there is no image to segment again."""
    sdata = copied(results["independent"])
    match_nuclei(
        sdata, "segmentation_nucleus_labels", "segmentation_cell_labels", image_key="image", key_added="m",
        progress=False,
    )  # fmt: skip
    filter_labels(sdata, "segmentation_cell_labels", SizeFilter(min_size=9), key_added="f", progress=False)
    told = r"'{}' was not segmented from an image: .*resegment with key_added='segmentation'"
    refused(sdata, told.format("m"), PAIR, key_added="m")
    refused(sdata, told.format("f"), ThresholdNuclei(), key_added="f")


def test_a_method_by_itself_makes_the_one_mask(results):
    for name, expected in (("one", "nucleus"), ("cell", "cell")):
        sdata = copied(results["one"]) if name == "one" else segment(an_object(), "image", ThresholdNuclei())
        resegment(sdata, "image", ThresholdNuclei(object_radius=4), bounding_box=(0, 0, 90, 90))
        assert set(masks_of(sdata)) == {f"segmentation_{expected}_labels"}
        (update,) = json.loads(sdata["segmentation_table"].uns["segmentation"])["updates"]
        assert update["workflow"][expected]["object_radius"] == 4
    how = {"pair": r"Workflow\(nucleus=..., cell=...\)", "duplicate": r"Workflow\(nucleus=..., duplicate_mask=True\)"}
    for name, told in how.items():
        refused(copied(results[name]), rf"nucleus and cell, and the workflow makes cell: .* {told}", ThresholdNuclei())


def test_variables_that_are_no_channels(results):
    sdata = copied(results["one"])
    table = sdata["segmentation_table"]
    genes = AnnData(np.zeros((table.n_obs, 2), np.float32), obs=table.obs[[]], var=pd.DataFrame(index=["g1", "g2"]))
    both = concat([table, genes], axis=1, merge="first", uns_merge="first")
    sdata["segmentation_table"] = both
    refused(
        sdata, r"2 variables that are no channels of image 'image' \('g1', 'g2'; its channels: 'DAPI'.*table of their"
    )
    sdata["segmentation_table"] = both[:, ["DAPI", "WGA"]].copy()
    resegment(sdata, "image", WORKFLOWS["one"], bounding_box=(0, 0, 90, 90))
