"""Reading: images, channels, transformations, regions and the names that are taken."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata._io.format import SpatialDataContainerFormatV01
from spatialdata.models import (
    Image2DModel,
    Image3DModel,
    Labels2DModel,
    Labels3DModel,
    ShapesModel,
    TableModel,
)
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation, get_transformation

from spatialdata_segment._elements import (
    check_outputs,
    pixel_matrix,
    read_image,
    resolve_channels,
    roi_geometry,
    stat_fingerprint,
)
from spatialdata_segment._outputs import container_format
from spatialdata_segment.engine.arrays import folder_of
from spatialdata_segment.errors import ExistsError, InputError, MissingError, ScratchError

pytestmark = pytest.mark.filterwarnings("ignore")
PIXELS = np.random.default_rng(0).integers(0, 999, (3, 64, 48)).astype(np.uint16)
PIXELS.flags.writeable = False
HALF = Scale([0.5, 0.5], axes=("x", "y"))


@pytest.fixture
def sdata() -> sd.SpatialData:
    flat = Image2DModel.parse(
        PIXELS, dims=("c", "y", "x"), c_coords=["DAPI", "WGA", "WGA"], transformations={"global": HALF}
    )
    tree = Image2DModel.parse(
        PIXELS, dims=("c", "y", "x"), scale_factors=[2, 2], transformations={"global": HALF, "b": Identity()}
    )
    stack = Image3DModel.parse(np.stack([PIXELS] * 4, axis=1), dims=("c", "z", "y", "x"))
    return sd.SpatialData(images={"flat": flat, "tree": tree, "stack": stack})


@pytest.fixture(params=[None, SpatialDataContainerFormatV01()], ids=["v3", "v2"])
def backed(sdata: sd.SpatialData, tmp_path: Path, request: pytest.FixtureRequest) -> sd.SpatialData:
    sdata.write(tmp_path / "s.zarr", sdata_formats=request.param)
    return sd.read_zarr(tmp_path / "s.zarr")


def test_read_a_single_scale(sdata: sd.SpatialData) -> None:
    ref = read_image(sdata, "flat")
    assert (ref.key, ref.scale, ref.data.dims) == ("flat", "scale0", ("c", "y", "x"))
    assert isinstance(ref.data.data, da.Array)
    assert np.array_equal(ref.data.values, PIXELS)
    assert ref.channels == ("DAPI", "WGA", "WGA")
    assert ref.pyramid == ((64, 48),)
    assert ref.array is None
    assert stat_fingerprint(ref) is None


def test_read_a_scale_of_many(sdata: sd.SpatialData) -> None:
    ref = read_image(sdata, "tree", "scale1")
    assert ref.data.shape == (3, 32, 24)
    assert ref.pyramid == ((32, 24), (16, 12))
    assert ref.channels == ("0", "1", "2")
    assert set(ref.transformations) == {"global", "b"}
    assert np.allclose(pixel_matrix(ref.transformations["global"], 2), np.eye(3))
    assert np.allclose(pixel_matrix(ref.transformations["b"], 2), np.diag([2, 2, 1]))


def test_read_planes(sdata: sd.SpatialData) -> None:
    ref = read_image(sdata, "stack")
    assert ref.data.dims == ("c", "z", "y", "x")
    assert ref.pyramid == ((4, 64, 48),)
    assert pixel_matrix(ref.transformations["global"], 3).shape == (4, 4)


def test_transformations_are_copies(sdata: sd.SpatialData) -> None:
    read_image(sdata, "flat").transformations["global"].scale[:] = 9
    assert get_transformation(sdata["flat"]).scale.tolist() == [0.5, 0.5]


def test_what_is_not_there(sdata: sd.SpatialData) -> None:
    with pytest.raises(MissingError, match=r"'nope'.*'flat', 'tree', 'stack'"):
        read_image(sdata, "nope")
    with pytest.raises(MissingError, match=r"'scale7'.*'scale0', 'scale1', 'scale2'"):
        read_image(sdata, "tree", "scale7")
    with pytest.raises(MissingError, match=r"'scale1'.*'scale0'"):
        read_image(sdata, "flat", "scale1")


def test_no_pixels(sdata: sd.SpatialData) -> None:
    sdata["empty"] = sdata["flat"][:, :0]
    with pytest.raises(InputError, match="'y': 0"):
        read_image(sdata, "empty")


def test_channels(sdata: sd.SpatialData) -> None:
    ref = read_image(sdata, "flat")
    assert resolve_channels(ref, "DAPI") == (0,)
    assert resolve_channels(ref, [2, "DAPI", np.int64(1)]) == (2, 0, 1)
    assert resolve_channels(ref, 1) == (1,)
    assert resolve_channels(read_image(sdata, "tree"), "2") == (2,)
    with pytest.raises(MissingError, match=r"'CD3'.*0: 'DAPI', 1: 'WGA'"):
        resolve_channels(ref, ["CD3"])
    with pytest.raises(InputError, match="2 channels named 'WGA'"):
        resolve_channels(ref, "WGA")
    for index in (3, -1):
        with pytest.raises(MissingError, match=f"no channel {index}; expected 0 to 2"):
            resolve_channels(ref, index)
    for wrong in (True, 1.0, None):
        with pytest.raises(InputError, match="expected a name or a 0-based index"):
            resolve_channels(ref, [wrong])


def test_backing(backed: sd.SpatialData) -> None:
    store = backed.path
    for key, scale, k in (("flat", "scale0", 0), ("tree", "scale0", 0), ("tree", "scale2", 2)):
        ref = read_image(backed, key, scale)
        assert folder_of(ref.array) == store / "images" / key / f"s{k}"
    backed["new"] = Image2DModel.parse(PIXELS, dims=("c", "y", "x"))
    assert read_image(backed, "new").array is None
    backed["changed"] = backed["flat"] + 1
    assert read_image(backed, "changed").array is None
    backed["renamed"] = backed["flat"].copy()
    assert read_image(backed, "renamed").array is None
    backed.images["flat"] = backed["flat"][:, :-1]
    assert read_image(backed, "flat").array is None


def test_fingerprint(backed: sd.SpatialData) -> None:
    ref = read_image(backed, "flat")
    first = stat_fingerprint(ref)
    assert first == stat_fingerprint(read_image(sd.read_zarr(backed.path), "flat"))
    chunk = next(p for p in folder_of(ref.array).rglob("*") if p.is_file() and p.name.isdigit())
    os.utime(chunk, ns=(0, 12345))
    second = stat_fingerprint(ref)
    assert second["chunks"] != first["chunks"]
    assert second["metadata"] == first["metadata"]
    chunk.unlink()
    assert stat_fingerprint(ref)["n_chunks"] == first["n_chunks"] - 1


@pytest.mark.parametrize("on_disk", [True, False])
def test_outputs(sdata: sd.SpatialData, tmp_path: Path, on_disk: bool) -> None:
    sdata["seg"] = Labels2DModel.parse(np.zeros((4, 4), np.uint32), dims=("y", "x"))
    sdata["counts"] = TableModel.parse(ad.AnnData(np.ones((2, 2))))
    if on_disk:
        sdata.write(tmp_path / "s.zarr")
        for name in ("seg", "counts"):  # known to the disk alone
            del sdata[name]
    check_outputs(sdata, {"fresh": "labels"}, overwrite=False)
    check_outputs(sdata, {"seg": "labels", "counts": "tables"}, overwrite=True)
    with pytest.raises(ExistsError, match=r"labels/seg, tables/counts exist already.*overwrite=True"):
        check_outputs(sdata, {"counts": "tables", "seg": "labels", "fresh": "shapes"}, overwrite=False)
    for overwrite in (True, False):
        with pytest.raises(ExistsError, match="'seg' would be written as shapes but names an element of labels"):
            check_outputs(sdata, {"seg": "shapes"}, overwrite=overwrite)
        with pytest.raises(InputError, match=r"'Seg' differs from 'seg' in case alone"):
            check_outputs(sdata, {"Seg": "labels"}, overwrite=overwrite)
    for name in ("a/b", "", "__x", ".."):
        with pytest.raises(InputError, match="cannot name an element"):
            check_outputs(sdata, {name: "labels"}, overwrite=True)


def test_what_reads_the_replaced_files(backed: sd.SpatialData) -> None:
    backed["seg"] = Labels2DModel.parse(np.zeros((4, 4), np.uint32), dims=("y", "x"))
    check_outputs(backed, {"seg": "labels"}, overwrite=True)
    backed.write_element("seg", sdata_formats=container_format(backed.path))
    fresh = sd.read_zarr(backed.path)
    fresh["shifted"] = fresh["seg"] + 1
    check_outputs(fresh, {"other": "labels"}, overwrite=True)
    with pytest.raises(InputError, match=r"labels/shifted is lazy and reads 'seg'"):
        check_outputs(fresh, {"seg": "labels"}, overwrite=True)
    del fresh["shifted"]
    check_outputs(fresh, {"seg": "labels"}, overwrite=True)


def test_a_store_that_is_gone_or_locked(
    backed: sd.SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        m.setattr(os, "access", lambda *_: False)
        with pytest.raises(ScratchError, match="cannot be written to"):
            check_outputs(backed, {"x": "labels"}, overwrite=False)
    backed.path = tmp_path / "gone.zarr"
    with pytest.raises(InputError, match="no folder of this machine"):
        check_outputs(backed, {"x": "labels"}, overwrite=False)


scales = st.floats(0.1, 10).map(lambda v: round(v, 3))
shifts = st.floats(-50, 50).map(lambda v: round(v, 3))


@settings(deadline=None)
@given(scales, scales, shifts, shifts)
def test_region_of_shapes_lands_on_the_image(s: float, t: float, u: float, v: float) -> None:
    of_image = Sequence([Scale([s, t], axes=("x", "y")), Translation([u, v], axes=("x", "y"))])
    of_shapes = Affine([[0, 2, 1], [-1, 0, 3], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    image = Image2DModel.parse(PIXELS, dims=("c", "y", "x"), transformations={"cs": of_image})
    box = gpd.GeoDataFrame(geometry=[shapely.box(2, 3, 5, 7)])
    region = ShapesModel.parse(box, transformations={"cs": of_shapes})
    sdata = sd.SpatialData(images={"image": image}, shapes={"roi": region})
    (polygon,) = roi_geometry(sdata, "roi", read_image(sdata, "image"), "cs")
    x, y = np.array([2 * 3 + 1, 2 * 7 + 1]), np.array([-5 + 3, -2 + 3])  # of the box, in cs
    expected = [(x[0] - u) / s, (y[0] - v) / t, (x[1] - u) / s, (y[1] - v) / t]
    assert np.allclose(polygon.bounds, expected)


def test_region_of_circles_at_a_coarser_scale(sdata: sd.SpatialData) -> None:
    points = gpd.GeoDataFrame({"radius": [4.0]}, geometry=[shapely.Point(8, 12)])
    sdata["roi"] = ShapesModel.parse(points, transformations={"b": Identity()})
    (circle,) = roi_geometry(sdata, "roi", read_image(sdata, "tree", "scale1"), "b")
    assert np.allclose(circle.bounds, (2, 4, 6, 8))
    assert circle.area == pytest.approx(np.pi * 4, rel=1e-2)


def test_region_of_labels(sdata: sd.SpatialData) -> None:
    mask = (PIXELS[0] > 500).astype(np.uint32)
    sdata["roi"] = Labels2DModel.parse(mask, dims=("y", "x"), transformations={"global": HALF})
    region = roi_geometry(sdata, "roi", read_image(sdata, "flat"))
    assert isinstance(region, da.Array)
    assert region.dtype == bool
    assert np.array_equal(region.compute(), mask > 0)
    sdata["levels"] = Labels2DModel.parse(mask, dims=("y", "x"), scale_factors=[2], transformations={"global": HALF})
    assert roi_geometry(sdata, "levels", read_image(sdata, "tree", "scale1")).shape == (32, 24)
    sdata["planes"] = Labels3DModel.parse(np.stack([mask] * 4), dims=("z", "y", "x"))
    assert roi_geometry(sdata, "planes", read_image(sdata, "stack")).shape == (4, 64, 48)


def test_region_on_another_grid(sdata: sd.SpatialData) -> None:
    sdata["shifted"] = Labels2DModel.parse(np.ones((64, 48), np.uint32), dims=("y", "x"))
    sdata["small"] = Labels2DModel.parse(np.ones((9, 9), np.uint32), dims=("y", "x"), transformations={"global": HALF})
    for key in ("shifted", "small"):
        with pytest.raises(InputError, match=r"no grid of image 'flat'.*to_polygons"):
            roi_geometry(sdata, key, read_image(sdata, "flat"))


def test_no_region(sdata: sd.SpatialData) -> None:
    box = gpd.GeoDataFrame(geometry=[shapely.box(2, 3, 5, 7)])
    sdata["roi"] = ShapesModel.parse(box, transformations={"elsewhere": Identity()})
    ref = read_image(sdata, "flat")
    with pytest.raises(MissingError, match=r"'x'.*its shapes: 'roi'; its labels: none"):
        roi_geometry(sdata, "x", ref)
    with pytest.raises(MissingError, match=r"shapes 'roi' is not in .*'global'; it is in: 'elsewhere'"):
        roi_geometry(sdata, "roi", ref)
    with pytest.raises(MissingError, match=r"image 'flat' is not in .*'elsewhere'"):
        roi_geometry(sdata, "roi", ref, "elsewhere")
