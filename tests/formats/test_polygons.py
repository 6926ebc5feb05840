"""Polygons through every format and back, read by the formats' own readers too."""

from __future__ import annotations

import json
import uuid
import zipfile

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import roifile
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from spatialdata_segment import labels_to_polygons, polygons_to_labels
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.formats import _geojson, _parquet, read_polygons, write_geojson, write_imagej, write_parquet

WRITERS = {"a.parquet": write_parquet, "a.geojson": write_geojson, "a.zip": write_imagej}


def outlines(labels: np.ndarray) -> gpd.GeoDataFrame:
    return labels_to_polygons(labels, progress=False)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Return squares, a ring with a square in it, objects of several parts; ids beyond 32 bits."""
    image = np.kron(np.random.default_rng(0).permutation(42).reshape(6, 7), np.ones((10, 10), np.int64))
    image[20:50, 15:60] = 2**40
    image[30:40, 25:50] = np.random.default_rng(1).integers(0, 3, (10, 25)) * 50
    image.flags.writeable = False
    return image


@pytest.mark.parametrize("name", WRITERS)
@given(
    labels=npst.arrays(
        np.int64, npst.array_shapes(min_dims=2, max_dims=3, max_side=8), elements=st.sampled_from([0, 1, 2, 7])
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_labels_come_back(tmp_path, name, labels):
    frame = outlines(labels)
    WRITERS[name](tmp_path / name, frame)
    back = read_polygons(tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    if "z_index" in frame and name != "a.parquet" and not frame["z_index"].any():  # there the first plane is no plane
        frame = frame.drop(columns="z_index").set_index("cell_id")
    assert back.columns.tolist() == frame.columns.tolist()
    assert back.index.equals(frame.index)
    assert back.drop(columns="geometry").equals(frame.drop(columns="geometry"))
    if labels.ndim == 2:
        assert np.array_equal(polygons_to_labels(back, labels.shape).compute(), labels)
    assert shapely.equals(back.geometry.to_numpy(), frame.geometry.to_numpy()).all()


@pytest.mark.parametrize("name", WRITERS)
def test_equal_input_gives_equal_bytes(tmp_path, labels, name):
    (tmp_path / "again").mkdir()
    for path in (tmp_path / name, tmp_path / "again" / name):
        WRITERS[name](path, outlines(labels))
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_columns_metadata_and_groups_of_rows(tmp_path, labels, monkeypatch):
    frame = outlines(labels).assign(area=lambda f: f.area, kind=["a", None] * 16)
    write_parquet(tmp_path / "one.parquet", frame)
    monkeypatch.setattr(_parquet, "_ROWS", 5)
    write_parquet(tmp_path / "many.parquet", frame, metadata={"image-shape": [60, 70]})
    assert pq.ParquetFile(tmp_path / "many.parquet").num_row_groups == 7
    one, many = (gpd.read_parquet(tmp_path / n) for n in ("one.parquet", "many.parquet"))
    assert_geodataframe_equal(one, many)
    assert_geodataframe_equal(one, frame, check_like=True)
    assert one.crs is None
    assert read_polygons(tmp_path / "many.parquet").attrs["spatialdata_segment"] == {"image-shape": [60, 70]}
    with pytest.raises(InputError, match="JSON"):
        write_parquet(tmp_path / "many.parquet", frame, metadata={"a": {1, 2}})


def test_parquet_without_the_metadata_of_geoparquet(tmp_path, labels):
    frame = outlines(labels)
    frame.to_wkb().to_parquet(tmp_path / "a.parquet")
    assert_geodataframe_equal(read_polygons(tmp_path / "a.parquet"), frame)


def test_geojson_for_qupath(tmp_path, labels, monkeypatch):
    frame = outlines(labels).assign(area=lambda f: f.area, classification=["Tumor", None] * 16, note="x")
    frame.loc[frame.index[1], "area"] = np.nan
    monkeypatch.setattr(_geojson, "_ROWS", 5)
    write_geojson(tmp_path / "a.geojson", frame, object_type="cell")
    written = json.loads((tmp_path / "a.geojson").read_text())
    assert written["type"] == "FeatureCollection"
    assert len({uuid.UUID(f["id"]) for f in written["features"]}) == len(frame)
    first, second = (f["properties"] for f in written["features"][:2])
    assert first == {
        "objectType": "cell", "name": "1", "cell_id": 1, "classification": {"name": "Tumor"}, "note": "x",
        "measurements": {"area": 100.0},
    }  # fmt: skip
    assert second["classification"] is None
    assert "measurements" not in second
    by_gdal = pyogrio.read_dataframe(tmp_path / "a.geojson")
    assert shapely.equals_exact(by_gdal.geometry.to_numpy(), frame.geometry.to_numpy()).all()
    assert by_gdal["cell_id"].tolist() == frame.index.tolist()
    back = read_polygons(tmp_path / "a.geojson")
    assert back[["area", "classification", "note"]].equals(frame[["area", "classification", "note"]])
    write_geojson(tmp_path / "a.geojson", frame, properties={"score": np.arange(32)})
    assert read_polygons(tmp_path / "a.geojson").columns.tolist() == ["geometry", "score"]
    with pytest.raises(InputError, match="score"):
        write_geojson(tmp_path / "a.geojson", frame, properties={"score": [1]})
    with pytest.raises(InputError, match="bead"):
        write_geojson(tmp_path / "a.geojson", frame, object_type="bead")


def test_geojson_that_qupath_wrote(tmp_path):
    """As QuPath 0.5 exports: names where they were given, planes, measurements; also a bare list."""
    square = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]}
    features = [
        {
            "type": "Feature",
            "id": str(uuid.UUID(int=i)),
            "geometry": square | ({"plane": {"c": -1, "z": 3, "t": 0}} if i else {}),
            "properties": {"objectType": "annotation", "measurements": {"Area": 16.5 + i}, "isLocked": True},
        }
        for i in range(2)
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (tmp_path / "b.json").write_text(json.dumps(features))
    back = read_polygons(tmp_path / "a.geojson")
    assert_geodataframe_equal(back, read_polygons(tmp_path / "b.json"))
    assert back["z_index"].tolist() == [0, 3]
    assert back["Area"].tolist() == [16.5, 17.5]


def test_rois_for_imagej(tmp_path, labels):
    frame = outlines(labels)
    write_imagej(tmp_path / "a.zip", frame)
    rois = roifile.roiread(tmp_path / "a.zip")
    assert [roi.name for roi in rois] == [str(i) for i in frame.index]
    for roi, shape in zip(rois, frame.geometry, strict=True):
        rings = shapely.get_rings(shapely.get_parts(shape))
        assert roi.composite == (len(rings) > 1)
        assert (roi.left, roi.top, roi.right, roi.bottom) == shape.bounds
        assert len(roi.coordinates(multi=True)) == len(rings)
        assert {tuple(p) for r in roi.coordinates(multi=True) for p in r.tolist()} == {
            tuple(p) for p in shapely.get_coordinates(shape).tolist()
        }


def test_rois_far_out_and_between_pixels(tmp_path):
    shapes = [shapely.box(70000, 90001, 70003, 90002), shapely.Point(8.5, 9.25).buffer(3.3), shapely.box(-4, -3, 2, 1)]
    write_imagej(tmp_path / "a.zip", shapes)
    back = read_polygons(tmp_path / "a.zip")
    assert np.allclose(back.bounds, shapely.bounds(shapes), rtol=0, atol=1e-5)
    assert np.allclose(back.area, shapely.area(shapes), rtol=1e-5)


def test_rois_that_are_no_outlines(tmp_path):
    line = roifile.ImagejRoi.frompoints([[1, 1], [5, 5]], name="cut")
    line.roitype = roifile.ROI_TYPE.POLYLINE
    roifile.roiwrite(tmp_path / "a.zip", [roifile.ImagejRoi.frompoints([[0, 0], [5, 0], [5, 5]], name="cell"), line])
    with pytest.raises(InputError, match=r"a\.zip.*'cut'"):
        read_polygons(tmp_path / "a.zip")
    line.tofile(tmp_path / "b.roi")
    with pytest.raises(InputError, match="'cut'"):
        read_polygons(tmp_path / "b.roi")


def test_names_that_are_no_numbers_are_kept(tmp_path, labels):
    frame = outlines(labels)[:3].reset_index(drop=True).assign(cell_id=["aaaa-1", "aaab-1", "aaac-1"])
    frame.to_parquet(tmp_path / "a.parquet")
    back = read_polygons(tmp_path / "a.parquet")
    assert back.index.tolist() == [1, 2, 3]
    assert back["name"].tolist() == ["aaaa-1", "aaab-1", "aaac-1"]
    frame.assign(cell_id=["3", "5.0", "4"]).to_parquet(tmp_path / "a.parquet")
    assert read_polygons(tmp_path / "a.parquet").index.tolist() == [3, 5, 4]


SQUARE = shapely.box(0, 0, 2, 2)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([SQUARE, shapely.Point(1, 1)], "Point at position 1"),
        ([SQUARE, None], "None"),
        (gpd.GeoDataFrame({"cell_id": [3, 3], "geometry": [SQUARE, SQUARE]}), "id 3 stands 2 times"),
        (gpd.GeoDataFrame({"cell_id": [3, -3], "geometry": [SQUARE, SQUARE]}), "-3"),
        (gpd.GeoDataFrame({"cell_id": [3, 4], "z_index": [0.5, 1], "geometry": [SQUARE, SQUARE]}), "z_index"),
        ([shapely.box(0, 0, np.inf, 1)], "not finite"),
    ],
)
def test_writers_refuse_what_are_no_cells(tmp_path, name, polygons, message):
    (tmp_path / name).write_text("before")
    with pytest.raises(InputError, match=message):
        WRITERS[name](tmp_path / name, polygons)
    assert (tmp_path / name).read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_leaves_what_was(tmp_path, labels, name, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    (tmp_path / name).write_text("before")
    monkeypatch.setattr(_parquet.pq.ParquetWriter, "write_table", fail)
    monkeypatch.setattr(_geojson, "_texts", fail)
    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="disk full"):
        WRITERS[name](tmp_path / name, outlines(labels))
    assert (tmp_path / name).read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(MissingError, match="no folder"):
        WRITERS[name](tmp_path / "none" / name, outlines(labels))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.geojson", b"{", "cannot be read"),
        ("a.geojson", b"", "cannot be read"),
        ("a.json", b'[{"type": "Feature"}]', "cannot be read"),
        ("a.zip", b"no zip", "cannot be read"),
        ("a.csv", b"1,2", "'.csv' is none of them"),
        ("a.geojson", b'{"type":"FeatureCollection","features":[{"type":"Feature","properties":{},"geometry":'
         b'{"type":"Point","coordinates":[1,2]}}]}', "Point at position 0"),
        ("a.geojson", b'{"type":"FeatureCollection","features":[{"type":"Feature","properties":{},"geometry":null}]}',
         "None"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_polygons(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(MissingError, match="there is no file of polygons"):
        read_polygons(tmp_path / f"none-{name}")


def test_parquet_without_geometry(tmp_path, labels):
    outlines(labels).area.to_frame("area").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet.*'area'"):
        read_polygons(tmp_path / "a.parquet")
