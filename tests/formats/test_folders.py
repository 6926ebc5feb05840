"""`poly2mask` and `stitch` on folders as `infer` writes them."""

from __future__ import annotations

import json
import tracemalloc

import dask
import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata as sd
import yaml
import zarr
from spatialdata.models import Labels3DModel

from spatialdata_segment import labels_to_polygons, stitch_planes
from spatialdata_segment.cli import main
from spatialdata_segment.engine.executor import cores
from spatialdata_segment.errors import SegmentationWarning
from spatialdata_segment.formats import _folders, _poly2mask, poly2mask, stitch_folders, write_parquet


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """Return planes (z, y, x) whose objects have ids of each plane's own."""
    cells = np.kron(np.arange(1, 31).reshape(5, 6), np.ones((12, 15), np.int64))
    cells[::12] = cells[:, ::15] = 0
    rolled = [np.roll(cells, (2 * z, z), axis=(0, 1)) for z in range(4)]
    planes = np.stack([np.where(p > 0, (p * 7 + 3 * z) % 1009 + 1, 0) for z, p in enumerate(rolled)])
    planes.flags.writeable = False
    return planes


def outlines(labels: np.ndarray) -> gpd.GeoDataFrame:
    return labels_to_polygons(labels, progress=False)


def write(folder, frame, metadata=None):
    folder.mkdir(parents=True)
    write_parquet(folder / "polygons.parquet", frame)
    if metadata is not None:
        (folder / "metadata.json").write_text(json.dumps(metadata))


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def fails(capsys, *args):
    assert main([str(a) for a in args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("spatialdata-segment: error: ")
    assert err.count("\n") == 1
    return err


def test_poly2mask_gives_back_the_labels(tmp_path, volume, capsys, monkeypatch):
    monkeypatch.setattr(_poly2mask, "_CHUNK", 32)
    write(tmp_path / "a", outlines(volume[1]), {"image-shape": [60, 90], "model-type": "cyto3"})
    assert main(["poly2mask", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "mask.zarr")
    mask = zarr.open(tmp_path / "a" / "mask.zarr")
    assert (mask.dtype, mask.chunks, mask.metadata.zarr_format) == (np.uint32, (32, 32), 2)
    assert np.array_equal(mask[:], volume[1])
    fails(capsys, "poly2mask", tmp_path / "a")
    assert main(["poly2mask", str(tmp_path / "a"), "--overwrite"]) == 0
    write(tmp_path / "b", outlines(volume), {"image-shape": [4, 60, 90]})
    assert main(["poly2mask", str(tmp_path / "b"), "--output-dir", str(tmp_path / "new" / "c")]) == 0
    assert np.array_equal(zarr.open(tmp_path / "new" / "c" / "mask.zarr")[:], volume)
    assert listing(tmp_path / "b") == ["metadata.json", "polygons.parquet"]


def test_without_metadata_the_shape_is_that_of_the_polygons(tmp_path):
    shapes = [shapely.box(2, 1, 5, 3), shapely.box(0, 0, 1.2, 6.4)]
    write(tmp_path / "a", gpd.GeoDataFrame(geometry=shapes, index=[2**40, 3]))
    mask = zarr.open(poly2mask(tmp_path / "a"))
    assert (mask.shape, mask.dtype) == ((7, 5), np.uint64)
    assert mask[1:3, 2:5].tolist() == [[2**40] * 3] * 2
    write(tmp_path / "b", gpd.GeoDataFrame({"z_index": [2], "cell_id": [7], "geometry": shapes[:1]}))
    assert zarr.open(poly2mask(tmp_path / "b"))[:].nonzero()[0].tolist() == [2] * 6
    write(tmp_path / "c", outlines(np.zeros((3, 3), int)), {"image-shape": [3, 4]})
    assert zarr.open(poly2mask(tmp_path / "c"))[:].tolist() == [[0] * 4] * 3


BOX = shapely.box(0, 0, 3, 3)


@pytest.mark.parametrize(
    ("frame", "metadata", "message"),
    [
        (None, None, "holds no polygons.parquet"),
        ([BOX], "{", "is no JSON"),
        ([BOX], "[1]", r"holds \[1\]"),
        ([BOX], "{}", "image-shape None"),
        ([BOX], '{"image-shape": [3]}', r"image-shape \[3\]"),
        ([BOX], '{"image-shape": [3, -4]}', r"image-shape \[3, -4\]"),
        ([BOX], '{"image-shape": "3, 4"}', "image-shape '3, 4'"),
        ([BOX], '{"image-shape": [2, 3, 4]}', "z_index"),
        ([shapely.Point(1, 1)], None, "Point at position 0"),
        ([BOX, None], None, "None"),
        ({"cell_id": [3, 3]}, None, "id 3 stands 2 times"),
        ({"cell_id": [3, -3]}, None, "hold -3"),
        ({"cell_id": [1, 2], "z_index": [0, 1]}, '{"image-shape": [3, 4]}', "2 planes"),
    ],
)
def test_poly2mask_says_what_is_wrong(tmp_path, capsys, frame, metadata, message):
    folder = tmp_path / "a"
    folder.mkdir()
    if isinstance(frame, dict):
        gpd.GeoDataFrame(frame, geometry=[BOX, BOX]).to_parquet(folder / "polygons.parquet")
    elif frame is not None:
        gpd.GeoDataFrame(geometry=frame).to_parquet(folder / "polygons.parquet")
    if metadata is not None:
        (folder / "metadata.json").write_text(metadata)
    before = listing(tmp_path)
    error = fails(capsys, "poly2mask", folder, "--output-dir", tmp_path / "out")
    assert str(folder) in error
    with pytest.raises(ValueError, match=message):
        poly2mask(folder)
    assert listing(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_no_folder_and_no_parquet(tmp_path, capsys):
    assert "there is no folder" in fails(capsys, "poly2mask", tmp_path / "none")
    (tmp_path / "polygons.parquet").write_text("nothing")
    assert "cannot be read" in fails(capsys, "poly2mask", tmp_path)


@pytest.fixture
def planes(tmp_path, volume):
    """Return a folder of planes, whose names are not in the order of z."""
    for z, name in enumerate("dbca"):
        write(tmp_path / "planes" / name, outlines(volume[z]), {"image-shape": [60, 90], "z_index": 10 * z - 10})
    return tmp_path / "planes"


@pytest.mark.parametrize("num_process", [0, 2])
def test_stitch_is_stitch_planes(planes, volume, capsys, num_process):
    assert main(["stitch", str(planes), "--iou-threshold", "0.4", "--num-process", str(num_process)]) == 0
    assert capsys.readouterr().out.strip() == str(planes / "3d_polygons.parquet")
    found = gpd.read_parquet(planes / "3d_polygons.parquet")
    assert set(found.columns) == {"geometry", "z_index", "cell_id"}
    sdata = sd.SpatialData(labels={"planes": Labels3DModel.parse(volume, dims=("z", "y", "x"))})
    stitch_planes(sdata, "planes", threshold=0.4)
    expected = labels_to_polygons(sdata["segmentation_cell_labels"], progress=False)
    assert 0 < expected["cell_id"].max() < len(expected)
    key = ["z_index", "cell_id"]
    found = found.assign(z_index=found["z_index"] // 10 + 1).sort_values(key, ignore_index=True)
    assert found[key].equals(expected[key])
    assert shapely.equals(found.geometry.to_numpy(), expected.geometry.to_numpy()).all()


def test_places_of_configs_yml_come_first(planes):
    by_metadata = gpd.read_parquet(stitch_folders(planes))
    entries = [{"image_name": name, "z_index": z} for z, name in enumerate("abcd")]
    (planes / "configs.yml").write_text(yaml.safe_dump({"stitch": entries}))
    by_config = gpd.read_parquet(stitch_folders(planes, output_dir=planes.with_name("out")))
    assert by_config["z_index"].unique().tolist() == [0, 1, 2, 3]
    first = by_metadata[by_metadata["z_index"] == 20]
    assert shapely.equals(by_config[by_config["z_index"] == 0].geometry.to_numpy(), first.geometry.to_numpy()).all()
    (planes / "configs.yml").write_text(yaml.safe_dump({"stitch": entries[:3]}))
    with pytest.warns(SegmentationWarning, match="does not name d"):
        stitch_folders(planes, overwrite=True)
    assert gpd.read_parquet(planes / "3d_polygons.parquet")["z_index"].max() == 2


def test_a_plane_without_cells(planes, volume):
    write(planes / "e", outlines(volume[0] * 0), {"z_index": 5})
    found = gpd.read_parquet(stitch_folders(planes))
    above = found[found["z_index"] >= 10]
    assert above["cell_id"].min() > found[found["z_index"] <= 0]["cell_id"].max()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("stitch: [{image_name: a, z_index: null}, {image_name: b, z_index: 1}]", "a: null"),
        ("stitch: [{image_name: a}, {image_name: b, z_index: 1}]", "a: null"),
        ("stitch: [{image_name: a, z_index: x}, {image_name: b, z_index: 1.5}]", "a: 'x', b: 1.5"),
        ("stitch: [{image_name: a, z_index: 1}, {image_name: b, z_index: 1}]", "a: 1, b: 1"),
        ("stitch: [{image_name: a, z_index: 1}, {image_name: a, z_index: 2}]", "more than once"),
        ("stitch: [{image_name: none, z_index: 1}]", "names none, and there is no such folder"),
        ("stitch: []", "lists no image under 'stitch'"),
        ("stitch:", "lists no image under 'stitch'"),
        ("stitch: 3", "cannot be read"),
        ("stitch: [a, b]", "cannot be read"),
        ("other: 3", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_stitch_says_what_is_wrong_with_configs_yml(planes, capsys, config, message):
    (planes / "configs.yml").write_text(config)
    before = listing(planes)
    error = fails(capsys, "stitch", planes)
    assert message in error.replace("\n", " ")
    assert listing(planes) == before


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"b": {"z_index": None}, "c": {}}, "b: null, c: null"),
        ({"a": {"z_index": 0}}, "a: 0, b: 0"),
        ({"a": {"z_index": True}}, "a: True"),
    ],
)
def test_stitch_says_which_folders_have_no_place(planes, capsys, metadata, message):
    for name, content in metadata.items():
        (planes / name / "metadata.json").write_text(json.dumps(content))
    assert message in fails(capsys, "stitch", planes)
    (planes / "a" / "metadata.json").unlink()
    assert "a: null" in fails(capsys, "stitch", planes)
    assert not (planes / "3d_polygons.parquet").exists()


def test_stitch_refuses_other_inputs(planes, tmp_path, volume, capsys):
    assert "there is no folder" in fails(capsys, "stitch", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no folder" in fails(capsys, "stitch", tmp_path / "empty")
    assert "threshold=1.5" in fails(capsys, "stitch", planes, "--iou-threshold", "1.5")
    assert "--num-process -1: expected" in fails(capsys, "stitch", planes, "--num-process", "-1")
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    write(planes / "e", gpd.GeoDataFrame(geometry=[bow]), {"z_index": 99})
    assert "not valid" in fails(capsys, "stitch", planes)
    write_parquet(planes / "e" / "polygons.parquet", outlines(volume))
    assert "planes of its own" in fails(capsys, "stitch", planes)
    (planes / "3d_polygons.parquet").write_text("before")
    assert "is there already" in fails(capsys, "stitch", planes)
    assert (planes / "3d_polygons.parquet").read_text() == "before"


def test_polygons_outside_of_the_image_are_told(tmp_path):
    frame = gpd.GeoDataFrame(
        {
            "cell_id": [1, 2, 3],
            "geometry": [shapely.box(0, 0, 2, 2), shapely.box(7, 7, 9, 9), shapely.box(-3, 0, -1, 2)],
        }
    )
    write(tmp_path / "a", frame, {"image-shape": [4, 4]})
    with pytest.warns(SegmentationWarning, match=r"2 of 3 polygons .* lie outside of the"):
        assert np.unique(zarr.open_array(poly2mask(tmp_path / "a"))[:]).tolist() == [0, 1]


def test_without_metadata_a_far_polygon_makes_no_huge_image(tmp_path, capsys):
    write(tmp_path / "a", gpd.GeoDataFrame({"cell_id": [1], "geometry": [shapely.box(5e6, 5e6, 5e6 + 1, 5e6 + 1)]}))
    assert "expected at most 1,000,000 a side" in fails(capsys, "poly2mask", tmp_path / "a")
    assert listing(tmp_path / "a") == ["polygons.parquet"]


def test_an_output_where_something_else_is(tmp_path, volume, capsys):
    write(tmp_path / "a", outlines(volume[0]))
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        said = fails(capsys, "poly2mask", tmp_path / "a", "--output-dir", tmp_path / path)
        assert "file is a file: expected a folder" in said
    (tmp_path / "a" / "mask.zarr").touch()
    assert main(["poly2mask", str(tmp_path / "a"), "--overwrite"]) == 0
    assert np.array_equal(zarr.open_array(tmp_path / "a" / "mask.zarr")[:], volume[0])
    assert listing(tmp_path)[0] == "a/mask.zarr/.zarray"


# dry runs


def dry(capsys, *args):
    """Return what a dry run prints, and its plan of a second one with ``--json``."""
    arguments = [*map(str, args), "--dry-run"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("dry run: nothing was run or written\n")
    assert main([*arguments, "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["result"]["plans"]
    assert plan["of"] == str(args[1])
    return shown, plan


def test_poly2mask_dry_run(tmp_path, volume, capsys):
    write(tmp_path / "a", outlines(volume), {"image-shape": [4, 60, 90]})
    before = listing(tmp_path)
    shown, plan = dry(capsys, "poly2mask", tmp_path / "a", "--output-dir", tmp_path / "new")
    target = tmp_path / "new" / "mask.zarr"
    assert f"{len(outlines(volume))} polygons, 4 planes, labels of 4 x 60 x 90 px, uint32" in shown
    assert f"writes {target}" in shown
    assert (plan["shape"], plan["dtype"], plan["n_planes"]) == ([4, 60, 90], "uint32", 4)
    assert plan["outputs"] == {str(target): "labels"}
    assert listing(tmp_path) == before
    mask = zarr.open(poly2mask(tmp_path / "a"))
    assert (list(mask.shape), str(mask.dtype)) == (plan["shape"], plan["dtype"])


def test_what_poly2mask_holds_is_foreseen(tmp_path):
    """What is allocated while they are drawn, polygons included, is at most what was told, and no fraction of it."""
    y, x = np.indices((60, 60)).reshape(2, -1) * 33.0 + 16
    disks = shapely.buffer(shapely.points(x, y), 15.0)
    write(tmp_path / "a", gpd.GeoDataFrame(geometry=disks), {"image-shape": [1990, 1990]})
    tracemalloc.start()
    ready = _poly2mask.ready_mask(tmp_path / "a", output_dir=None, overwrite=False)
    told = ready.plan().memory_bytes
    tracemalloc.reset_peak()
    with dask.config.set(scheduler="threads", num_workers=cores()):
        ready.write()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told / 3 < peak < told


def test_stitch_dry_run(planes, volume, capsys):
    before = listing(planes)
    shown, plan = dry(capsys, "stitch", planes, "--iou-threshold", "0.4")
    assert f"{len(outlines(volume))} polygons, 4 planes\n" in shown
    assert (plan["n_polygons"], plan["n_planes"], plan["shape"]) == (len(outlines(volume)), 4, None)
    assert plan["outputs"] == {str(planes / "3d_polygons.parquet"): "polygons"}
    assert plan["memory_bytes"] > 1000 * plan["n_polygons"]
    assert listing(planes) == before


@pytest.mark.parametrize("command", ["poly2mask", "stitch"])
def test_dry_runs_find_what_is_wrong(tmp_path, planes, command, capsys, monkeypatch):
    folder, out = (planes / "a", "mask.zarr") if command == "poly2mask" else (planes, "3d_polygons.parquet")
    (folder / out).touch()
    assert "is there already" in fails(capsys, command, folder, "--dry-run")
    assert main([command, str(folder), "--dry-run", "--overwrite"]) == 0
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert "file is a file" in fails(capsys, command, folder, "--dry-run", "--output-dir", tmp_path / "file" / "below")
    assert "there is no folder" in fails(capsys, command, tmp_path / "none", "--dry-run")
    monkeypatch.setattr(_folders.os, "access", lambda *_: False)
    assert "may not be written to" in fails(capsys, command, folder, "--dry-run", "--output-dir", tmp_path / "new")
    monkeypatch.undo()
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    write_parquet(planes / "a" / "polygons.parquet", gpd.GeoDataFrame(geometry=[bow]))
    (planes / "a" / "metadata.json").write_text('{"image-shape": [3], "z_index": 3}')
    fails(capsys, command, folder, "--dry-run", "--overwrite")
    assert (folder / out).read_bytes() == b""
