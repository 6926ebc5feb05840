"""`predict` and `decode` apart are `segment` in one: the same labels, shapes and tables, wherever they run."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata as sd
import zarr
from spatialdata.models import Labels2DModel, ShapesModel
from spatialdata.transformations import Identity

from spatialdata_segment import (
    Cellpose,
    ExpandNuclei,
    SeededWatershed,
    Step,
    ThresholdNuclei,
    Workflow,
    _journal,
    decode,
    predict,
    register_method,
    segment,
)
from spatialdata_segment._maps import digest
from spatialdata_segment.engine.events import listen
from spatialdata_segment.errors import ExistsError, InputError, MissingError, ScratchError, ShardError
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.dummies import DummyDiscs, DummyNetwork, DummyVolume

pytestmark = pytest.mark.filterwarnings("ignore")

for method in (DummyNetwork, DummyVolume, DummyDiscs):
    register_method(method)

SMALL = {"progress": False, "n_jobs": 1, "shard_size": 80 * 90}
NUCLEI = ThresholdNuclei(threshold="otsu", min_distance=4)
PAIR = Workflow(nucleus=NUCLEI, cell=SeededWatershed(max_distance=12))
WORKFLOWS = {
    "nuclei": Workflow(nucleus=ThresholdNuclei()),
    "pair": PAIR,
    "grown": Workflow(nucleus=NUCLEI, cell=ExpandNuclei(distance=5)),
    "network": Workflow(cell=DummyNetwork(tile=16)),
    "proposals": Workflow(cell=DummyDiscs(threshold=900)),
    "preprocessed": Workflow(
        nucleus=ThresholdNuclei(threshold=0.3), lower_quantile_normalization=0.01, median_filter_size=2
    ),
}


@pytest.fixture(scope="module")
def tissue():
    return Tissue((170, 230), seed=3, cell_diameter=18, density=0.9)


@pytest.fixture
def sdata(tissue, tmp_path):
    tissue.to_spatialdata(chunks=64).write(tmp_path / "image.zarr")
    return sd.read_zarr(tmp_path / "image.zarr")


def assert_same(found, expected, key="segmentation", means=True):
    """Labels, shapes and tables; without the image there are no mean intensities."""
    names = [n for n in expected.labels if n.startswith(key)]
    assert names
    assert sorted(n for n in found.labels if n.startswith(key)) == sorted(names)
    for name in names:
        a, b = (np.asarray(o.labels[name]["scale0"]["image"] if hasattr(o.labels[name], "children") else o.labels[name])
                for o in (found, expected))  # fmt: skip
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
        assert a.max() > 3
    for name in (n for n in expected.shapes if n.startswith(key)):
        assert found.shapes[name].equals(expected.shapes[name])
    for name in (f"{key}_table", f"{key}_candidates"):
        a, b = found.tables[name], expected.tables[name]
        assert a.obs.drop(columns="region").equals(b.obs.drop(columns="region"))
        assert a.uns.get("segmentation") == b.uns.get("segmentation")
        if means:
            assert np.array_equal(a.X, b.X)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_two_phases_are_one(sdata, tmp_path, name):
    flow = WORKFLOWS[name]
    maps = predict(sdata, "image", flow, tmp_path / "maps", **SMALL)
    alone = decode(maps, **SMALL)
    segment(sdata, "image", flow, **SMALL)
    assert_same(alone, sdata, means=False)
    with_image = decode(maps, sdata=sdata, key_added="again", **(SMALL | {"shard_size": 5000}))
    for mask in ("nucleus", "cell"):
        if f"segmentation_{mask}_labels" in sdata.labels:
            a, b = (np.asarray(_finest(with_image.labels[f"{k}_{mask}_labels"])) for k in ("again", "segmentation"))
            assert np.array_equal(a, b)
    assert np.array_equal(with_image["again_table"].X, sdata["segmentation_table"].X)
    assert with_image["again_table"].n_vars > 0


def _finest(labels):
    return labels["scale0"]["image"] if hasattr(labels, "children") else labels


def test_a_volume(tmp_path):
    sdata = Tissue((24, 70, 80), seed=3, cell_diameter=14).to_spatialdata(chunks=40)
    flow, how = Workflow(cell=DummyVolume()), {"progress": False, "n_jobs": 1, "shard_size": 30_000}
    maps = predict(sdata, "image", flow, tmp_path / "maps", channels=0, **how)
    segment(sdata, "image", flow, channels=0, **how)
    assert_same(decode(maps, **how), sdata, means=False)


@pytest.mark.parametrize("resample", [True, False])
def test_cellpose_without_torch_and_weights(sdata, tmp_path, resample):
    """The process that decodes cannot import torch, and the file of the network is gone."""
    torch = pytest.importorskip("torch")
    from spatialdata_segment.methods.cellpose.network import CPnet

    recipes = runpy.run_path(str(Path(__file__).parent / "parity/cellpose3/networks.py"))
    state = CPnet(recipes["CELL_NBASE"], size=recipes["CELL_SIZE"], diameter=17.0).state_dict()
    made = recipes["cell_weights"]({n: tuple(v.shape) for n, v in state.items()})
    weights = tmp_path / "weights"
    torch.save(state | {n: torch.from_numpy(v).to(state[n].dtype) for n, v in made.items()}, weights)
    method = Cellpose(model_path=weights, diameter=14.0, tile_size=64, resample=resample, channels=0)
    maps = predict(sdata, "image", Workflow(cell=method), tmp_path / "maps", devices="cpu", **SMALL)
    segment(sdata, "image", Workflow(cell=method), devices="cpu", **SMALL)
    weights.unlink()
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import spatialdata, warnings; warnings.simplefilter('ignore')\n"
        "from spatialdata_segment import decode\n"
        "spatialdata.SpatialData().write(sys.argv[2])\n"
        "decode(sys.argv[1], sdata=spatialdata.read_zarr(sys.argv[2]), n_jobs=1, shard_size=6000, progress=False)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(maps), str(tmp_path / "out.zarr")], check=True)
    assert_same(sd.read_zarr(tmp_path / "out.zarr"), sdata, means=False)


def test_other_thresholds(sdata, tmp_path):
    flow = Workflow(cell=DummyNetwork(tile=16))
    maps = predict(sdata, "image", flow, tmp_path / "maps", **SMALL)
    for threshold in (0.3, 0.7):
        other = Workflow(cell=DummyNetwork(tile=16, threshold=threshold))
        fused = segment(sdata, "image", other, overwrite=True, **SMALL)
        assert_same(decode(maps, workflow=other, **SMALL), fused, means=False)
    with pytest.raises(InputError, match=r"cell.tile is 32, and the maps were predicted with 16"):
        decode(maps, workflow=Workflow(cell=DummyNetwork(tile=32)), **SMALL)
    with pytest.raises(InputError, match="the nucleus method is 'dummy-network', and the maps have none"):
        decode(maps, workflow=Workflow(nucleus=DummyNetwork(tile=16)), **SMALL)


def test_rules_of_the_workflow_may_differ(sdata, tmp_path):
    maps = predict(sdata, "image", PAIR, tmp_path / "maps", **SMALL)
    other = PAIR.model_copy(update={"match_masks": False})
    fused = segment(sdata, "image", other, **SMALL)
    assert_same(decode(maps, workflow=other, **SMALL), fused, means=False)


def test_a_region(tmp_path):
    sdata = Tissue((360, 400), seed=3, cell_diameter=18, density=0.9).to_spatialdata(chunks=64)
    circle = shapely.Point(20, 25).buffer(18)
    sdata["roi"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[circle]), transformations={"global": Identity()})
    small = SMALL | {"shard_size": 40 * 40, "overlap_px": 32}
    maps = predict(sdata, "image", PAIR, tmp_path / "maps", roi_key="roi", **small)
    fused = segment(sdata, "image", PAIR, roi_key="roi", **small)
    done = np.asarray(zarr.open_array(maps / "nucleus" / "done", mode="r")[...])
    assert 0 < (done > 0).sum() < done.size
    assert_same(decode(maps, **small), fused, means=False)


def test_maps_that_do_not_reach(sdata, tmp_path):
    flow, small = Workflow(nucleus=NUCLEI), SMALL | {"shard_size": 900, "overlap_px": 6}
    maps = predict(sdata, "image", flow, tmp_path / "maps", bounding_box=(0, 0, 10, 10), **small)
    manifest = json.loads((maps / "maps.json").read_text())
    del manifest["check"]
    manifest["region"] = None
    (maps / "maps.json").write_text(json.dumps({**manifest, "check": digest(manifest)}))
    with pytest.raises(ShardError, match=r"do not reach as far as .* or pass sdata="):
        decode(maps, **SMALL)
    fused = segment(sdata, "image", flow, **SMALL)
    decode(maps, sdata=sdata, key_added="again", **small)
    assert np.array_equal(*(_finest(fused.labels[f"{k}_nucleus_labels"]) for k in ("segmentation", "again")))


def test_kept_maps_of_a_run(sdata, tmp_path):
    segment(sdata, "image", PAIR, keep_maps=True, **SMALL)
    maps = tmp_path / "image.zarr" / ".spatialdata_segment" / "segmentation.maps"
    assert_same(decode(maps, **SMALL), sdata, means=False)
    plain = segment(sd.SpatialData(images={"image": sdata["image"]}), "image", PAIR, **SMALL)
    assert_same(sdata, plain)
    with pytest.raises(InputError, match="needs scratch="):
        segment(sd.SpatialData(images={"image": sdata["image"]}), "image", PAIR, keep_maps=True, **SMALL)


def test_a_function_has_no_maps(sdata, tmp_path):
    with pytest.raises(InputError, match="labels each window by itself"):
        predict(sdata, "image", lambda block: (block[0] > 900).astype(int), tmp_path / "maps", **SMALL)


def test_resumed(sdata, tmp_path):
    flow = WORKFLOWS["network"]
    maps = predict(sdata, "image", flow, tmp_path / "maps", **SMALL)
    whole = np.asarray(zarr.open_array(maps / "cell" / "maps", mode="r")[...])
    chunks = sorted((maps / "cell" / "done" / "c").rglob("*/*"))
    for path in chunks[::2]:
        path.unlink()
    (maps / "maps.json").unlink()
    with pytest.raises(MissingError, match="not complete"):
        decode(maps, **SMALL)
    events = []
    with listen(events.append):
        predict(sdata, "image", flow, maps, **SMALL)
    first = next(e for e in events if e.stage == "cell maps")
    assert (first.done, first.total) == (len(chunks) // 2, len(chunks))
    assert np.array_equal(np.asarray(zarr.open_array(maps / "cell" / "maps", mode="r")[...]), whole)


def test_maps_of_another_run_are_not_taken(sdata, tmp_path):
    maps = predict(sdata, "image", "dapi", tmp_path / "maps", **SMALL)
    with pytest.raises(ScratchError, match="belongs to another run"):
        predict(sdata, "image", WORKFLOWS["network"], maps, **SMALL)
    predict(sdata, "image", WORKFLOWS["network"], maps, overwrite=True, **SMALL)
    assert list(decode(maps, **SMALL).labels) == ["segmentation_cell_labels"]


DAMAGE = {
    "flipped": lambda path, content: path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]),
    "truncated": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "empty": lambda path, content: path.write_bytes(b""),
    "missing": lambda path, content: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("array", ["maps", "done"])
def test_damage_is_told_and_mended(sdata, tmp_path, caplog, array, how):
    """Whatever befalls a chunk of the maps, nothing is decoded from it; the next `predict` mends it, and no other."""
    flow = WORKFLOWS["network"]
    maps = predict(sdata, "image", flow, tmp_path / "maps", **SMALL)
    whole = np.asarray(zarr.open_array(maps / "cell" / "maps", mode="r")[...])
    path = sorted(p for p in (maps / "cell" / array / "c").rglob("*") if p.is_file())[2]
    DAMAGE[how](path, path.read_bytes())
    if array == "maps":
        with pytest.raises((ScratchError, ShardError), match=r"cannot be read .* Call predict\(\) again"):
            decode(maps, **SMALL)
    events = []
    with listen(events.append):
        predict(sdata, "image", flow, maps, **SMALL)
    first = next(e for e in events if e.stage == "cell maps")
    assert first.total - first.done == 1
    assert (how == "missing" and array == "done") or "damaged, predicted again" in caplog.text
    np.testing.assert_array_equal(np.asarray(zarr.open_array(maps / "cell" / "maps", mode="r")[...]), whole)
    decode(maps, **SMALL)


def test_maps_without_a_signal_are_there_as_well(tmp_path):
    """A chunk of zeros is written: one that is not there is gone."""
    sdata = Tissue((150, 160), seed=3, cell_diameter=18, density=0.9).to_spatialdata(chunks=64)
    sdata["image"].data[:, :80] = 0
    maps = predict(sdata, "image", WORKFLOWS["network"], tmp_path / "maps", **SMALL)
    array = zarr.open_array(maps / "cell" / "maps", mode="r")
    assert array.nchunks_initialized == array.nchunks
    decode(maps, **SMALL)


@pytest.mark.parametrize("content", ["", "null", "{}", None])
def test_a_damaged_manifest_is_told(sdata, tmp_path, content):
    maps = predict(sdata, "image", "dapi", tmp_path / "maps", **SMALL)
    said = (maps / "maps.json").read_text()
    (maps / "maps.json").write_text(said.replace('"statistics"', '"statistic"') if content is None else content)
    with pytest.raises(ScratchError, match=r"damaged: call predict\(\) again"):
        decode(maps, **SMALL)
    predict(sdata, "image", "dapi", maps, **SMALL)
    assert (maps / "maps.json").read_text() == said


def test_a_damaged_region_is_told(sdata, tmp_path):
    inside = np.zeros((170, 230), np.int16)
    inside[20:90, 30:99] = 1
    sdata["roi"] = Labels2DModel.parse(inside, dims=("y", "x"))
    maps = predict(sdata, "image", PAIR, tmp_path / "maps", roi_key="roi", **SMALL)
    shutil.rmtree(maps / "region" / "c")
    with pytest.raises(ScratchError, match="region is damaged"):
        decode(maps, **SMALL)
    predict(sdata, "image", PAIR, maps, roi_key="roi", **SMALL)
    segment(sdata, "image", PAIR, roi_key="roi", **SMALL)
    assert_same(decode(maps, **SMALL), sdata, means=False)


def test_resume_false_discards_kept_maps(sdata, tmp_path):
    """They are of the same settings, and of whatever the run before saw."""
    for resume in (True, False):
        segment(sdata, "image", PAIR, keep_maps=True, overwrite=True, resume=resume, **SMALL)
        maps = tmp_path / "image.zarr" / ".spatialdata_segment" / "segmentation.maps" / "nucleus"
        token = zarr.open_group(maps, mode="r").attrs["token"]
        events = []
        with listen(events.append):
            segment(sdata, "image", PAIR, keep_maps=True, overwrite=True, resume=resume, **SMALL)
        first = next(e for e in events if e.stage == "nucleus maps")
        assert (first.done == first.total) is resume
        assert (zarr.open_group(maps, mode="r").attrs["token"] == token) is resume


def _brighter(block, by=[1]):  # noqa: B006 (a function that changes without a version)
    return block * by[0]


def test_a_step_without_a_version_does_not_resume(sdata, tmp_path):
    flow = Workflow(nucleus=ThresholdNuclei(threshold=900), preprocess=(Step(function=_brighter),))
    maps = predict(sdata, "image", flow, tmp_path / "maps", **SMALL)
    before = np.asarray(zarr.open_array(maps / "nucleus" / "maps", mode="r")[...])
    _brighter.__defaults__[0][0] = 2
    predict(sdata, "image", flow, maps, **SMALL)
    assert not np.array_equal(np.asarray(zarr.open_array(maps / "nucleus" / "maps", mode="r")[...]), before)


def test_killed_as_it_began(sdata, tmp_path):
    """What is half written of the first file is no folder of somebody else's."""
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / ".run.json.123.456").write_text('{"pro')
    predict(sdata, "image", "dapi", tmp_path / "maps", **SMALL)
    assert not list((tmp_path / "maps").glob(".run.json.*"))


def test_decode_first_finishes_what_was_being_put_in_place(sdata, tmp_path, monkeypatch):
    maps, store = predict(sdata, "image", PAIR, tmp_path / "maps", **SMALL), tmp_path / "image.zarr"

    def stop(store, journal):
        raise OSError("no more")

    with monkeypatch.context() as patched:
        patched.setattr(_journal, "roll_forward", stop)
        with pytest.raises(ScratchError, match="the next run on this store"):
            decode(maps, sdata=sdata, **SMALL)
    with pytest.raises(ExistsError):
        decode(maps, sdata=sd.read_zarr(store), **SMALL)
    assert not (store / ".spatialdata_segment" / "journal.json").exists()
    fused = segment(sd.SpatialData(images={"image": sdata["image"]}), "image", PAIR, **SMALL)
    assert_same(sd.read_zarr(store), fused)


def test_what_is_no_store_of_maps(tmp_path, sdata):
    with pytest.raises(MissingError, match="expected a folder that predict"):
        decode(tmp_path / "nothing")
    maps = predict(sdata, "image", "dapi", tmp_path / "maps", **SMALL)
    shutil.rmtree(tmp_path / "image.zarr")
    other = Tissue((100, 90), seed=3).to_spatialdata()
    with pytest.raises(InputError, match="has shape"):
        decode(maps, sdata=other, **SMALL)
    with pytest.raises(InputError, match="no coordinate system"):
        decode(maps, to_coordinate_system="nowhere", **SMALL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("median_filter_size", 3),
        ("upper_quantile_normalization", 0.99),
        ("segmentation_channel_nuclei", 1),
        ("combine_nucleus_channels", (0, 1)),
    ],
)
def test_what_acts_before_the_maps_may_not_differ(sdata, tmp_path, name, value):
    maps = predict(sdata, "image", PAIR, tmp_path / "maps", **SMALL)
    with pytest.raises(InputError, match=f"{name} is .*, and the maps were predicted with None: predict again"):
        decode(maps, workflow=PAIR.model_copy(update={name: value}), **SMALL)


def test_shards_of_earlier_maps_are_not_taken(tissue, tmp_path, monkeypatch):
    """The image in memory changes, and its maps with it; a decode that was killed began with the old ones."""
    flow, result = WORKFLOWS["network"], tmp_path / "result.zarr"
    sd.SpatialData().write(result)
    one = tissue.to_spatialdata()
    other = Tissue(tissue.shape, seed=4, cell_diameter=18, density=0.9).to_spatialdata()
    maps = predict(one, "image", flow, tmp_path / "maps", **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("spatialdata_segment._segment.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            decode(maps, sdata=sd.read_zarr(result), **SMALL)
    predict(other, "image", flow, maps, **SMALL)
    found = decode(maps, sdata=sd.read_zarr(result), **SMALL)
    assert_same(found, segment(other, "image", flow, **SMALL), means=False)


@pytest.mark.parametrize("overlap", [np.int64(70), np.array([70, 70])])
def test_numbers_of_numpy(sdata, tmp_path, overlap):
    maps = predict(sdata, "image", "dapi", tmp_path / "maps", overlap_px=overlap, **SMALL)
    assert decode(maps, **SMALL).labels


def test_steps_of_functions(sdata, tmp_path):
    step = Step(function=np.sqrt, version="1")
    flow = Workflow(nucleus=ThresholdNuclei(threshold="otsu", min_distance=4), preprocess=(step,))
    maps = predict(sdata, "image", flow, tmp_path / "maps", **SMALL)
    with pytest.raises(InputError, match="or give workflow="):
        decode(maps, **SMALL)
    assert_same(decode(maps, workflow=flow, **SMALL), segment(sdata, "image", flow, **SMALL), means=False)


def test_the_region_outlives_the_result(sdata, tmp_path):
    segment(sdata, "image", PAIR, **SMALL)
    maps = predict(sdata, "image", "dapi", tmp_path / "maps", roi_key="segmentation_cell_labels", **SMALL)
    decode(maps, sdata=sdata, overwrite=True, **SMALL)
    assert "segmentation_cell_labels" in sdata.labels


def test_maps_are_no_scratch(sdata, tmp_path):
    maps = predict(sdata, "image", "dapi", tmp_path / "maps", **SMALL)
    with pytest.raises(ScratchError, match="belongs to another run"):
        segment(sdata, "image", "dapi", scratch=maps, **SMALL)
    with pytest.raises(InputError, match="lies in the folder of the maps"):
        decode(maps, scratch=maps / "inside", **SMALL)
    with pytest.raises(InputError, match="needs the image"):
        decode(maps, measure_channels=0, **SMALL)
    with pytest.raises(InputError, match="shard_size=0"):
        decode(maps, **(SMALL | {"shard_size": 0}))
    assert decode(maps, **SMALL).labels


def test_another_image_of_that_name(sdata, tissue, tmp_path):
    maps = predict(sdata, "image", "dapi", tmp_path / "maps", **SMALL)
    other = Tissue(tissue.shape, seed=9, cell_diameter=18, density=0.9).to_spatialdata()
    with pytest.raises(InputError, match="has other pixels than that of the maps"):
        decode(maps, sdata=other, **SMALL)
    assert decode(maps, sdata=tissue.to_spatialdata(chunks=100), **SMALL)["segmentation_table"].n_vars


def test_kept_maps_go_with_their_result(sdata, tmp_path):
    kept = tmp_path / "image.zarr" / ".spatialdata_segment" / "segmentation.maps"
    segment(sdata, "image", PAIR, keep_maps=True, **SMALL)
    decode(kept, sdata=sdata, overwrite=True, **SMALL)
    assert kept.is_dir()
    segment(sdata, "image", "dapi", overwrite=True, **SMALL)
    assert not kept.exists()


def test_places_that_are_none_for_maps(sdata, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ScratchError, match=r"folder of maps .*file is a file: pass a folder"):
        predict(sdata, "image", "dapi", tmp_path / "file", **SMALL)
    with pytest.raises(InputError, match="lies among the elements of"):
        predict(sdata, "image", "dapi", tmp_path / "image.zarr" / "images" / "maps", **SMALL)
    predict(sdata, "image", "dapi", tmp_path / "image.zarr" / ".spatialdata_segment" / "mine.maps", **SMALL)
