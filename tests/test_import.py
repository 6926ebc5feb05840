"""`add_labels` and `add_polygons`: the elements of `segment` from what other programs found."""

from __future__ import annotations

import functools
import json
import pickle

import dask.array as da
import geopandas as gpd
import numpy as np
import pytest
import shapely
import skimage.io
import spatialdata as sd
import tifffile
import xarray as xr
import zarr
from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Affine, Scale

from spatialdata_segment import (
    SizeFilter,
    _raster,
    _write,
    add_labels,
    add_polygons,
    filter_labels,
    labels_to_polygons,
    saved_configuration,
)
from spatialdata_segment.cli import main
from spatialdata_segment.errors import ExistsError, InputError, MissingError, SegmentationWarning
from spatialdata_segment.formats import (
    read_labels,
    write_geojson,
    write_imagej,
    write_label_tiff,
    write_parquet,
    write_seg_npy,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPE = (96, 140)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Return cells with gaps between them, ids that are sparse and in no order."""
    image = np.kron(np.random.default_rng(0).permutation(42).reshape(6, 7) * 5, np.ones((16, 20), np.uint32))
    image[::8], image[:, ::20] = 0, 0
    image.flags.writeable = False
    return image


def new(shape=SHAPE, **options) -> sd.SpatialData:
    pixels = np.random.default_rng(1).integers(0, 1000, (2, *shape), np.uint16)
    model, dims = (Image2DModel, ("c", "y", "x")) if len(shape) == 2 else (Image3DModel, ("c", "z", "y", "x"))
    lazy = da.from_array(pixels, chunks=(1, *(max(1, n // 2) for n in shape)))
    image = model.parse(
        lazy, dims=dims, c_coords=["DAPI", "WGA"], transformations={"global": Scale([0.5] * 2, ("x", "y"))}, **options
    )
    return sd.SpatialData(images={"image": image})


def written(sdata, name="segmentation_cell_labels"):
    element = sdata[name]
    return np.asarray(element["scale0"]["image"] if hasattr(element, "children") else element)


def outlines(image: np.ndarray) -> gpd.GeoDataFrame:
    return labels_to_polygons(image, progress=False)


def test_labels_are_written_as_segment_writes_them(labels, tmp_path):
    """`filter_labels` with a filter that drops none renumbers, and else writes the same."""
    sdata = new(scale_factors=[2])
    add_labels(sdata, labels, "image", renumber=True, pixel_size=0.5, progress=False)
    sdata["given"] = Labels2DModel.parse(
        labels, dims=("y", "x"), transformations={"global": Scale([0.5] * 2, ("x", "y"))}
    )
    other = {"image_key": "image", "key_added": "same", "pixel_size": 0.5, "progress": False}
    filter_labels(sdata, "given", SizeFilter(min_size=1), **other)
    assert np.array_equal(written(sdata), written(sdata, "same_cell_labels"))
    table, same = sdata["segmentation_table"], sdata["same_table"]
    assert table.obs.drop(columns="region").equals(same.obs.drop(columns="region"))
    assert np.array_equal(table.X, same.X)
    assert np.array_equal(table.obsm["spatial"], same.obsm["spatial"])
    assert sdata["segmentation_cell_boundaries"].equals(sdata["same_cell_boundaries"])
    assert sdata["segmentation_candidates"].obs["is_kept"].all()
    assert sorted(sdata["segmentation_cell_labels"].children) == ["scale0", "scale1"]
    sdata.write(tmp_path / "a.zarr")
    assert set(sd.read_zarr(tmp_path / "a.zarr").tables) == set(sdata.tables)


def test_ids_are_kept(labels):
    sdata = add_labels(new(), labels, "image", kind="nucleus", key_added="mine", progress=False)
    assert np.array_equal(written(sdata, "mine_nucleus_labels"), labels)
    ids = np.unique(labels)[1:]
    assert sdata["mine_table"].obs["cell_id"].tolist() == ids.tolist()
    assert sdata["mine_nucleus_boundaries"].index.tolist() == ids.tolist()
    means = [sdata["image"].values[:, labels == i].mean(axis=1) for i in ids]
    assert np.allclose(sdata["mine_table"].X, means)
    big = np.where(labels > 0, labels.astype(np.uint64) + 2**40, 0)
    add_labels(sdata, big, "image", shapes=False, table=False, progress=False)
    assert written(sdata).dtype == np.uint64
    assert np.array_equal(written(sdata), big)
    assert "segmentation_table" not in sdata


FILES = {
    "tiff": (write_label_tiff, "a.tif"),
    "imagej": (lambda p, x: tifffile.imwrite(p, x.astype(np.float32), imagej=True), "a.tiff"),
    "short": (lambda p, x: tifffile.imwrite(p, x[None].astype(np.uint16)), "a.tiff"),
    "zarr": (lambda p, x: zarr.create_array(p, data=x, chunks=(30, 30)), "a.zarr"),
    "ome": (lambda p, x: sd.SpatialData(labels={"a": Labels2DModel.parse(x, scale_factors=[2])}).write(p), "a.zarr"),
    "npy": (np.save, "a.npy"),
    "seg": (lambda p, x: write_seg_npy(p, np.searchsorted(np.unique(x), x)), "a_seg.npy"),
    "png": (lambda p, x: skimage.io.imsave(p, x.astype(np.uint16), check_contrast=False), "a.png"),
}


@pytest.mark.parametrize("name", FILES)
def test_labels_of_files(labels, tmp_path, name):
    write, file = FILES[name]
    write(tmp_path / file, labels)
    path = tmp_path / file / "labels" / "a" if name == "ome" else tmp_path / file
    found = read_labels(path)
    expected = np.searchsorted(np.unique(labels), labels) if name == "seg" else labels
    assert isinstance(found, da.Array)
    assert found.dtype.kind in "iu"
    assert np.array_equal(found, expected)


def test_a_volume_and_turned_axes(labels):
    stack = np.stack([labels, np.roll(labels, 3, axis=1), labels * 0])
    sdata = add_labels(new(stack.shape), xr.DataArray(stack.T, dims=("x", "y", "z")), "image", progress=False)
    assert np.array_equal(written(sdata), stack)
    assert "bbox_z_max" in sdata["segmentation_table"].obs
    frame = outlines(stack).assign(name=lambda f: f["cell_id"].map(str))
    back = add_polygons(new(stack.shape), frame, "image", progress=False)
    assert np.array_equal(written(back), stack)
    assert back["segmentation_cell_boundaries"][["z_index", "cell_id"]].equals(frame[["z_index", "cell_id"]])
    assert (back["segmentation_table"].obs["name"] == back["segmentation_table"].obs["cell_id"].map(str)).all()
    with pytest.raises(InputError, match="no column z_index"):
        add_polygons(new(stack.shape), outlines(labels), "image")
    with pytest.raises(InputError, match="a column z_index"):
        add_polygons(new(), frame, "image")


@pytest.mark.parametrize(
    ("write", "file"), [(write_parquet, "a.parquet"), (write_geojson, "a.geojson"), (write_imagej, "a.zip")]
)
def test_polygons_of_files_are_the_labels(labels, tmp_path, write, file):
    write(tmp_path / file, outlines(labels))
    sdata = add_polygons(new(), str(tmp_path / file), "image", progress=False)
    expected = add_labels(new(), labels, "image", progress=False)
    assert np.array_equal(written(sdata), labels)
    found, same = sdata["segmentation_table"], expected["segmentation_table"]
    assert found.obs.equals(same.obs)
    assert np.array_equal(found.X, same.X)
    assert shapely.equals(
        sdata["segmentation_cell_boundaries"].geometry.to_numpy(),
        expected["segmentation_cell_boundaries"].geometry.to_numpy(),
    ).all()


def test_polygons_stay_as_they_are_and_names_go_along(labels):
    smooth = outlines(labels).assign(score=0.5)
    smooth["geometry"] = smooth.geometry.buffer(0.2)
    smooth.index = [f"cell-{i}" for i in smooth.index]
    sdata = add_polygons(new(), smooth[::-1], "image", renumber=True, progress=False)
    table, shapes = sdata["segmentation_table"], sdata["segmentation_cell_boundaries"]
    assert table.obs["cell_id"].tolist() == list(range(1, len(smooth) + 1))
    assert shapes.index.tolist() == table.obs["cell_id"].tolist()
    assert shapes["name"].tolist() == table.obs["name"].tolist()
    assert shapely.equals_exact(shapes.geometry.to_numpy(), smooth.geometry.loc[table.obs["name"]].to_numpy()).all()
    assert (shapes["score"] == 0.5).all()
    centres = shapely.points(table.obsm["spatial"] / 0.5)
    assert shapely.contains(shapes.geometry.envelope.to_numpy(), centres).all()


def test_polygons_without_a_pixel_are_left_out():
    shapes = [
        shapely.box(0, 0, 5, 5),
        shapely.box(1, 1, 4, 4),
        shapely.box(900, 0, 905, 5),
        shapely.box(9.6, 9.6, 9.9, 9.9),
    ]
    with pytest.warns(SegmentationWarning, match="3 polygons have no pixel.* the first is 2"):
        sdata = add_polygons(new(), shapes, "image", progress=False)
    assert sdata["segmentation_cell_boundaries"].index.tolist() == [1]
    assert sdata["segmentation_table"].obs["area"].tolist() == [25]
    with pytest.warns(SegmentationWarning, match="is empty"):
        none = add_polygons(new(), shapes[2:3], "image", progress=False)
    assert len(none["segmentation_table"]) == 0
    assert "segmentation_cell_boundaries" not in none


def test_elements_of_the_object(labels):
    sdata = new()
    turn = Affine([[0, 0.25, 3], [0.25, 0, 1], [0, 0, 1]], ("x", "y"), ("x", "y"))
    to_units = np.linalg.inv([[0, 0.25, 3], [0.25, 0, 1], [0, 0, 1]]) @ np.diag([0.5, 0.5, 1])
    moved = outlines(labels).affine_transform(to_units[:2, :2].ravel().tolist() + to_units[:2, 2].tolist())
    sdata["drawn"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=moved), transformations={"global": turn})
    add_polygons(sdata, "drawn", "image", progress=False)
    assert np.array_equal(written(sdata), labels)
    sdata["plain"] = Labels2DModel.parse(labels, dims=("y", "x"))
    add_labels(sdata, "plain", "image", key_added="again", progress=False)
    assert np.array_equal(written(sdata, "again_cell_labels"), labels)


def test_a_coarser_scale(labels):
    sdata = new(scale_factors=[2])
    coarse = labels[::2, ::2]
    add_labels(sdata, coarse, "image", scale="scale1", progress=False)
    assert np.array_equal(written(sdata), coarse)
    low, high = sdata["segmentation_table"].obsm["spatial"].min(), sdata["segmentation_table"].obsm["spatial"].max()
    assert 0 < low < high < 70
    assert high > 60


def elements(sdata):
    return sorted(name for _, name, _ in sdata.gen_elements())


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (np.zeros(SHAPE), {}, InputError, "float64"),
        (np.zeros((3, 4), int), {}, InputError, r"\(3, 4\).*expected the shape \(96, 140\)"),
        (np.full(SHAPE, -2), {}, InputError, "-2"),
        (np.ones(SHAPE, int), {"kind": "bead"}, InputError, "'bead'"),
        (np.ones(SHAPE, int), {"image_key": "none"}, MissingError, "'none'"),
        (np.ones(SHAPE, int), {"scale": "scale7"}, MissingError, "'scale7'"),
        (np.ones(SHAPE, int), {"measure_channels": "CD8"}, MissingError, "CD8"),
        (np.ones(SHAPE, int), {"pixel_size": -1}, InputError, "pixel_size=-1"),
        (np.ones(SHAPE, int), {"to_coordinate_system": "none"}, InputError, "'none'"),
        ("nowhere.tif", {}, MissingError, "nowhere.tif"),
    ],
)
def test_labels_that_cannot_be_added(given, options, error, message):
    sdata = new()
    with pytest.raises(error, match=message):
        add_labels(sdata, given, **{"image_key": "image", "progress": False} | options)
    assert elements(sdata) == ["image"]


def test_what_is_there_stays(labels):
    sdata = add_labels(new(), labels, "image", progress=False)
    with pytest.raises(ExistsError):
        add_labels(sdata, labels, "image", progress=False)
    add_labels(sdata, np.minimum(labels, 1), "image", overwrite=True, kind="nucleus", progress=False)
    assert elements(sdata) == [
        "image", "segmentation_candidates", "segmentation_nucleus_boundaries", "segmentation_nucleus_labels",
        "segmentation_table",
    ]  # fmt: skip


class Mean:
    """What would run code when it is read."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tif", b"no tiff", "cannot be read"),
        ("a.npy", b"no npy", "cannot be read"),
        ("a.npy", np.array([1, 2]), r"shape \(2,\)"),
        ("a.npy", np.zeros((2, 3, 4, 5), int), r"shape \(2, 3, 4, 5\)"),
        ("a.npy", np.array([[True]]), "bool"),
        ("a.npy", np.array([[0.5]]), "no labels"),
        ("a.npy", np.array([[-1.0]]), "no labels"),
        ("a_seg.npy", np.array({"outlines": 1}, object), "no 'masks'"),
        ("a_seg.npy", np.array({"masks": Mean()}, object), "no code in a file is run"),
        ("a.png", b"no png", "cannot be read"),
        ("a.csv", b"1,2", "'.csv' is none of them"),
    ],
)
def test_files_that_are_no_labels(tmp_path, name, content, message, capsys):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content, allow_pickle=True)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(tmp_path / name).compute()
    assert str(tmp_path / name) in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_group_that_is_no_labels(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("x", shape=(2, 2), dtype="u1")
    with pytest.raises(InputError, match=r"a group of \['x'\] and no OME-Zarr"):
        read_labels(tmp_path / "a.zarr")


def test_seg_npy_with_flows_and_of_old_versions(tmp_path):
    fields = {"masks": np.array([[-1, 0], [1, 1]], np.int32), "flows": [np.zeros((2, 2), np.float32), []], "a": None}
    np.save(tmp_path / "a_seg.npy", fields)
    assert read_labels(tmp_path / "a_seg.npy").compute().tolist() == [[0, 1], [2, 2]]
    assert pickle.dumps(fields)


def test_import_on_the_command_line(labels, tmp_path, capsys):
    new().write(tmp_path / "a.zarr")
    store = str(tmp_path / "a.zarr")
    write_label_tiff(tmp_path / "a.tif", labels)
    write_parquet(tmp_path / "a.parquet", outlines(labels))
    quiet = ["--quiet", "--measure-channels", "DAPI"]
    assert main(["import", store, "--labels", str(tmp_path / "a.tif"), "--image", "image", *quiet]) == 0
    out = capsys.readouterr()
    assert out.out.startswith(f"{store}: segmentation_candidates, segmentation_cell_boundaries")
    assert out.err == ""
    options = ["--key-added", "drawn", "--renumber", "--kind", "nucleus", "--pixel-size", "0.5", *quiet]
    assert main(["import", store, "--polygons", str(tmp_path / "a.parquet"), *options]) == 0
    found = sd.read_zarr(store)
    assert np.array_equal(written(found), labels)
    assert np.array_equal(written(found, "drawn_nucleus_labels") > 0, labels > 0)
    assert list(found["segmentation_table"].var_names) == ["DAPI"]
    assert "area_um2" in found["drawn_table"].obs
    capsys.readouterr()
    before = sorted(p.as_posix() for p in (tmp_path / "a.zarr").rglob("*"))
    for wrong in (
        [store, "--labels", str(tmp_path / "none.tif")],
        [store, "--polygons", str(tmp_path / "a.tif"), "--key-added", "b"],
        [store, "--labels", str(tmp_path / "a.tif")],
        [store, "--labels", str(tmp_path / "a.tif"), "--image", "none"],
        [str(tmp_path / "none.zarr"), "--labels", str(tmp_path / "a.tif")],
    ):
        assert main(["import", *wrong]) == 2
        err = capsys.readouterr().err
        assert err.startswith("spatialdata-segment: error: ")
        assert err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["import", store])
    assert sorted(p.as_posix() for p in (tmp_path / "a.zarr").rglob("*")) == before


def test_outlines_that_cross_themselves_are_repaired(tmp_path):
    bow = shapely.Polygon([(2, 2), (12, 12), (12, 2), (2, 12)])
    sdata = new()
    with pytest.warns(
        SegmentationWarning, match=r"1 polygons of .* crossed themselves and were repaired, such as id 5"
    ):
        add_polygons(sdata, gpd.GeoDataFrame({"cell_id": [5]}, geometry=[bow]), "image", progress=False)
    outline = sdata["segmentation_cell_boundaries"].geometry.loc[5]
    assert outline.is_valid
    assert outline.area == pytest.approx(50)


def test_some_ids_alone(tmp_path):
    frame = gpd.GeoDataFrame({"cell_id": [3, None]}, geometry=[shapely.box(0, 0, 2, 2), shapely.box(4, 4, 6, 6)])
    with pytest.raises(InputError, match="1 of 2 polygons have no cell_id, and others have"):
        add_polygons(new(), frame, "image")


def test_a_damaged_tiff_is_told(labels, tmp_path, capsys):
    write_label_tiff(tmp_path / "a.tif", labels)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[len(content) // 3 : len(content) // 3 + 200] = bytes(200)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tif cannot be"):
        add_labels(new(), tmp_path / "a.tif", "image", progress=False)


def test_an_import_has_no_configuration(labels):
    sdata = new()
    add_labels(sdata, labels, "image", progress=False)
    with pytest.raises(InputError, match=r"imported from .*: no workflow made it"):
        saved_configuration(sdata)


@pytest.mark.parametrize("name", ["labels", "polygons", "labels beyond 32 bits"])
@pytest.mark.parametrize("renumber", [False, True])
def test_labels_are_read_once(labels, tmp_path, monkeypatch, name, renumber):
    """Whatever is measured and written of them: outlines, tables, pyramid; wide ids alone are found on the way."""
    seen = []

    def load(block: np.ndarray) -> np.ndarray:
        seen.append(block.shape)
        return block

    paint = _raster._paint_block

    @functools.wraps(paint)  # dask looks for block_info
    def drawn(**given):
        seen.append(given)
        return paint(**given)

    monkeypatch.setattr(_raster, "_paint_block", drawn)
    image = np.where(labels > 0, labels + np.int64(2**40), 0) if name.endswith("bits") else labels
    monkeypatch.setitem(_write.CHUNK, 2, 32)
    sdata = new(scale_factors=[2])
    if name == "polygons":
        monkeypatch.setattr(_raster.Drawing.draw, "__defaults__", (40, None))
        add_polygons(sdata, outlines(labels), "image", renumber=renumber, progress=False)
        n_blocks = 3 * 4
    else:
        lazy = da.from_array(image, chunks=40).map_blocks(load, dtype=image.dtype, meta=image[:0, :0])
        add_labels(sdata, lazy, "image", renumber=renumber, progress=False)
        n_blocks = lazy.npartitions
    found, ids = written(sdata), np.unique(image)
    assert np.array_equal(np.unique(found), np.arange(len(ids)) if renumber else ids)
    assert len(np.unique(np.stack([found.ravel(), image.ravel()]), axis=1).T) == len(ids)
    assert renumber or np.array_equal(found, image)
    if name.endswith("bits"):
        assert n_blocks < len(seen) <= 3 * n_blocks
    else:
        assert len(seen) == n_blocks


@pytest.mark.parametrize("what", ["labels", "polygons"])
def test_import_dry_run(labels, tmp_path, what, capsys):
    new().write(tmp_path / "a.zarr")
    store = str(tmp_path / "a.zarr")
    write_label_tiff(tmp_path / "labels.tif", labels)
    write_parquet(tmp_path / "polygons.parquet", outlines(labels))
    file = next(tmp_path.glob(f"{what}.*"))
    command = ["import", store, f"--{what}", str(file), "--quiet"]
    before = tree(tmp_path)
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "labels of 96 x 140 px, uint32" in shown
    assert shown.endswith("dry run: nothing was run or written\n")
    assert main([*command, "--dry-run", "--json", "--no-shapes", "--kind", "nucleus"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["result"]["plans"]
    assert plan["of"] == f"{store} image"
    assert plan["shape"] == list(SHAPE)
    assert plan["n_polygons"] == (None if what == "labels" else len(outlines(labels)))
    assert (plan["memory_bytes_per_cell"] > 0) == (what == "labels")
    assert sorted(plan["outputs"]) == ["segmentation_candidates", "segmentation_nucleus_labels", "segmentation_table"]
    for wrong in (
        ["--image", "none"], ["--scale", "scale7"], ["--pixel-size", "-1"], ["--measure-channels", "CD8"],
        ["--to-coordinate-system", "none"], ["--key-added", "a b"],
    ):  # fmt: skip
        assert main([*command, *wrong, "--dry-run"]) == 2
        assert capsys.readouterr().err.startswith("spatialdata-segment: error: ")
    assert tree(tmp_path) == before
    assert main([*command]) == 0
    before = tree(tmp_path)
    assert main([*command, "--dry-run"]) == 2
    assert "overwrite" in capsys.readouterr().err
    assert main([*command, "--dry-run", "--overwrite"]) == 0
    write_label_tiff(tmp_path / "labels.tif", labels[1:])
    (tmp_path / "polygons.parquet").write_bytes(b"none")
    assert main([*command, "--dry-run", "--overwrite"]) == 2
    assert tree(tmp_path / "a.zarr") == {k: v for k, v in before.items() if "a.zarr" in str(k)}


def tree(folder):
    """Return names and contents of all files below."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
