"""`stitch_planes` on SpatialData and arrays, against the rule word by word."""

from __future__ import annotations

from fractions import Fraction

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata.models import Labels2DModel, Labels3DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, get_transformation, set_transformation

from spatialdata_segment import _stack, labels_to_polygons, stitch_planes
from spatialdata_segment._stack import stitch_label_array, stitch_polygons
from spatialdata_segment.errors import ExistsError, InputError, MissingError, SegmentationWarning

THRESHOLDS = st.sampled_from([0, 0.05, 0.2, 1 / 3, 0.5, 0.51, 1.0])
AFFINE = Affine([[0.5, 0.1, 3], [0, 0.25, 4], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def slow_stitch(volume, threshold):
    """Stitch with loops over ids: pairs from the highest IoU down, ids by plane, then by old id."""
    out, n, before = np.zeros(volume.shape, np.int64), 0, np.zeros(volume.shape[1:], volume.dtype)
    for z, plane in enumerate(volume):
        pairs = []
        for a in np.unique(before[before > 0]).tolist():
            for b in np.unique(plane[(before == a) & (plane > 0)]).tolist():
                shared, either = np.sum((before == a) & (plane == b)), np.sum((before == a) | (plane == b))
                if threshold > 0 and shared / either >= threshold:
                    pairs.append((-Fraction(int(shared), int(either)), a, b))
        partner = {}
        for _, a, b in sorted(pairs):
            if a not in partner.values():
                partner.setdefault(b, a)
        for b in np.unique(plane[plane > 0]).tolist():
            if b in partner:
                out[z][plane == b] = out[z - 1][before == partner[b]][0]
            else:
                n += 1
                out[z][plane == b] = n
        before = plane
    return out, n


def draw_volume(shape, seed, max_id=60):
    """Return planes that resemble each other, with ids of their own; some are empty."""
    rng = np.random.default_rng(seed)
    z, y, x = shape
    side = int(rng.integers(1, 5))
    coarse = rng.integers(0, 8, (-(-(y + 4) // side), -(-(x + 4) // side)))
    base = np.kron(coarse, np.ones((side, side), np.int64))
    planes = []
    for _ in range(z):
        dy, dx = rng.integers(0, 3, 2)
        plane = base[dy : dy + y, dx : dx + x]
        plane = np.where(rng.random((y, x)) < rng.choice([0, 0.1, 0.4]), rng.integers(0, 8, (y, x)), plane)
        ids = rng.choice(max_id, 8, replace=False) + 1
        ids[0] = 0
        planes.append(ids[plane] * (rng.random() < 0.9))
    volume = np.stack(planes).astype(np.uint16 if max_id < 2**16 else np.uint64)
    volume.flags.writeable = False
    return volume


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 14), st.integers(1, 14))


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(0, 2**16), THRESHOLDS, st.data())
def test_any_chunks_give_what_the_slow_rule_gives(shape, seed, threshold, data):
    volume = draw_volume(shape, seed, data.draw(st.sampled_from([60, 2**40])))
    expected, n = slow_stitch(volume, threshold)
    chunks = [data.draw(st.integers(1, n)) for n in shape]
    for given_labels in (volume, da.from_array(volume, chunks=chunks)):
        stitched = stitch_label_array(given_labels, threshold)
        assert stitched.n_objects == n
        assert stitched.labels.dtype == np.uint32
        np.testing.assert_array_equal(stitched.labels, expected)


@settings(deadline=None, max_examples=25)
@given(SHAPES, st.integers(0, 2**16), THRESHOLDS)
def test_polygons_of_the_labels_are_grouped_like_the_labels(shape, seed, threshold):
    volume = draw_volume(shape, seed)
    frames = [labels_to_polygons(plane, progress=False) for plane in volume]
    shuffled = [f.sample(frac=1, random_state=seed) for f in frames]
    planes = [(f.geometry.to_numpy(), f.index.to_numpy()) for f in shuffled]
    stitched, _ = slow_stitch(volume, threshold)
    for z, ids in enumerate(stitch_polygons(planes, threshold)):
        expected = [stitched[z][volume[z] == i][0] for i in planes[z][1]]
        assert ids.tolist() == expected


def test_batches_of_planes_are_joined(monkeypatch):
    volume = draw_volume((11, 9, 8), 5)
    expected, _ = slow_stitch(volume, 0.3)
    for planes, depth in [(1, 1), (2, 1), (3, 2), (4, 3), (100, 11)]:
        monkeypatch.setattr(_stack, "_PLANES", planes)
        found = stitch_label_array(da.from_array(volume, chunks=(depth, 4, 5)), 0.3)
        np.testing.assert_array_equal(found.labels, expected)
    monkeypatch.setattr(_stack, "_POLYGONS", 2)
    frames = [labels_to_polygons(plane, progress=False) for plane in volume]
    ids = stitch_polygons([(f.geometry.to_numpy(), f.index.to_numpy()) for f in frames], 0.3)
    for z, found in enumerate(ids):
        assert set(found) == set(np.unique(expected[z])) - {0}


def test_a_block_is_read_once_to_count():
    read = []
    volume = da.from_array(draw_volume((6, 8, 8), 1), chunks=(2, 4, 8))

    def note(block, block_id=None):
        read.append(block_id)
        return block

    noted = volume.map_blocks(note, dtype=volume.dtype, meta=np.zeros((0, 0, 0), volume.dtype))
    stitch_label_array(noted, 0.5)
    assert sorted(read) == sorted(set(read))
    assert len(read) == 6


def test_the_input_stays_as_it_is_and_ids_of_the_first_plane_too():
    volume = draw_volume((3, 30, 40), 3)
    before = volume.copy()
    stitched = stitch_label_array(volume, 0.5).labels.compute()
    np.testing.assert_array_equal(volume, before)
    again = stitch_label_array(stitched, 0.5).labels.compute()
    np.testing.assert_array_equal(again, stitched)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.zeros((4, 5), np.uint8), r"2 axes: expected integers with axes \(z, y, x\)"),
        (np.zeros((2, 4, 5)), "type float64"),
        (np.zeros((0, 4, 5), np.uint8), "no pixels"),
        (np.full((2, 4, 5), -3), r"label -3 .*expected 0 for background"),
        (np.full((2, 4, 5), 2**63, np.uint64), r"ids below 2\*\*63"),
    ],
)
def test_labels_that_cannot_be_stitched(labels, match):
    with pytest.raises(InputError, match=match):
        stitch_label_array(labels, 0.5)
    unknown = da.from_array(np.arange(8).reshape(2, 2, 2))
    with pytest.raises(InputError, match="compute_chunk_sizes"):
        stitch_label_array(unknown[:, :, unknown[0, 0] > 5], 0.5)


# --- the verb ---------------------------------------------------------------------------------------------

VOLUME = draw_volume((4, 90, 110), 8)
STITCHED, N = slow_stitch(VOLUME, 0.4)


def pixels_of(element):
    return np.asarray(element if isinstance(element, xr.DataArray) else element["scale0"]["image"])


def planes_of(volume, **options):
    """Return an object with the planes z0, z1, ... and names of them."""
    names = [f"z{z}" for z in range(len(volume))]
    labels = {
        name: Labels2DModel.parse(np.array(p), dims=("y", "x"), chunks=(40, 30), **options)
        for name, p in zip(names, volume, strict=True)
    }
    return sd.SpatialData(labels=labels), names


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("scales", [None, [2, 2]], ids=["single", "multi"])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_labels_of_planes(tmp_path, backed, scales, n_jobs):
    transformations = {"um": Scale([0.5, 0.25], axes=("x", "y")), "skewed": Sequence([AFFINE, Identity()])}
    sdata, names = planes_of(VOLUME, transformations=transformations, scale_factors=scales)
    if backed:
        sdata.write(tmp_path / "a.zarr")
        sdata = sd.read_zarr(tmp_path / "a.zarr")
    assert stitch_planes(sdata, names, threshold=0.4, n_jobs=n_jobs) is sdata
    places = [sdata] + ([sd.read_zarr(tmp_path / "a.zarr")] if backed else [])
    for place in places:
        element = place.labels["segmentation_cell_labels"]
        Labels3DModel().validate(element)
        np.testing.assert_array_equal(pixels_of(element), STITCHED)
        assert pixels_of(element).dtype == np.uint32
        if scales:
            assert [tuple(element[s]["image"].shape) for s in element] == [(4, 90, 110), (4, 45, 55), (4, 22, 27)]
        axes = ("x", "y", "z")
        for name, plane in get_transformation(place.labels["z0"], get_all=True).items():
            matrix = np.eye(4)
            matrix[np.ix_([0, 1, 3], [0, 1, 3])] = plane.to_affine_matrix(("x", "y"), ("x", "y"))
            found = get_transformation(element, name).to_affine_matrix(axes, axes)
            np.testing.assert_allclose(found, matrix)


def test_one_labels_element_in_place_and_under_another_name(tmp_path):
    labels = Labels3DModel.parse(VOLUME.astype(np.int64), dims=("z", "y", "x"), chunks=(2, 50, 60))
    sdata = sd.SpatialData(labels={"segmentation_cell_labels": labels})
    sdata.write(tmp_path / "a.zarr")
    with pytest.raises(ExistsError, match="key_added"):
        stitch_planes(sdata, "segmentation_cell_labels", threshold=0.4)
    stitch_planes(sdata, "segmentation_cell_labels", threshold=0, kind="nucleus", key_added="planes")
    distinct, _ = slow_stitch(VOLUME, 0)
    np.testing.assert_array_equal(pixels_of(sdata["planes_nucleus_labels"]), distinct)
    stitch_planes(sdata, "segmentation_cell_labels", threshold=0.4, overwrite=True)
    np.testing.assert_array_equal(pixels_of(sdata["segmentation_cell_labels"]), STITCHED)


def test_what_an_earlier_result_left_goes_but_no_input():
    sdata, names = planes_of(VOLUME)
    outlines = ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]))
    sdata["segmentation_cell_boundaries"] = outlines
    sdata["segmentation_nucleus_labels"] = sdata[names[0]]
    stitch_planes(sdata, ["segmentation_nucleus_labels", *names[1:]], overwrite=True)
    assert "segmentation_cell_boundaries" not in sdata
    assert "segmentation_nucleus_labels" in sdata


def test_planes_of_several_types_and_empty_ones():
    sdata, names = planes_of(VOLUME)
    sdata["z1"] = Labels2DModel.parse(VOLUME[1].astype(np.int64), dims=("y", "x"))
    sdata["z2"] = Labels2DModel.parse(VOLUME[2].astype(np.uint64), dims=("y", "x"))
    stitch_planes(sdata, [names[0], None, *names[1:]], threshold=0.4)
    volume = np.insert(VOLUME, 1, 0, axis=0)
    np.testing.assert_array_equal(pixels_of(sdata["segmentation_cell_labels"]), slow_stitch(volume, 0.4)[0])
    stitch_planes(sdata, ["z3"], key_added="alone")
    np.testing.assert_array_equal(pixels_of(sdata["alone_cell_labels"]), slow_stitch(VOLUME[3:], 0.4)[0])


def test_nothing_but_empty_planes_is_a_warning():
    sdata, names = planes_of(np.zeros((3, 20, 30), np.uint8))
    with pytest.warns(SegmentationWarning, match="'segmentation_cell_labels' has no object") as caught:
        stitch_planes(sdata, names)
    assert caught[0].filename == __file__
    assert not pixels_of(sdata["segmentation_cell_labels"]).any()


def shapes_of(volume, transformations=None):
    names, shapes = [], {}
    for z, plane in enumerate(volume):
        frame = labels_to_polygons(plane, progress=False)
        names.append(f"p{z}" if len(frame) else None)
        if len(frame):
            shapes[f"p{z}"] = ShapesModel.parse(frame.sample(frac=1, random_state=z), transformations=transformations)
    return sd.SpatialData(shapes=shapes), names


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("where", ["index", "column"])
def test_shapes_of_planes(tmp_path, backed, where):
    volume = np.insert(VOLUME, 2, 0, axis=0)
    sdata, names = shapes_of(volume, {"um": AFFINE})
    if where == "column":
        for name in sdata.shapes:
            sdata.shapes[name] = sdata[name].reset_index()
    if backed:
        sdata.write(tmp_path / "a.zarr")
        sdata = sd.read_zarr(tmp_path / "a.zarr")
    stitch_planes(sdata, names, threshold=0.4, n_jobs=1)
    if backed:
        sdata = sd.read_zarr(tmp_path / "a.zarr")
    frame = sdata["segmentation_cell_boundaries"]
    assert set(frame.columns) == {"geometry", "z_index", "cell_id"}
    expected, _ = slow_stitch(volume, 0.4)
    assert frame.z_index.is_monotonic_increasing
    for z, name in enumerate(names):
        rows = frame[frame.z_index == z]
        given_rows = sdata[name] if name is not None else sdata["p0"][:0]
        assert rows.geometry.geom_equals(given_rows.geometry, align=False).all()
        ids = given_rows["cell_id"] if where == "column" else given_rows.index
        assert rows.cell_id.tolist() == [expected[z][volume[z] == i][0] for i in ids]
    assert set(get_transformation(frame, get_all=True)) == {"um"}


def test_polygons_without_ids_are_counted():
    shapes = [gpd.GeoDataFrame(geometry=[shapely.box(5, 0, 9, 3), shapely.box(0, 0, 4, 4)], index=["b", "a"])] * 2
    sdata = sd.SpatialData(shapes={f"p{z}": ShapesModel.parse(s.copy()) for z, s in enumerate(shapes)})
    stitch_planes(sdata, ["p0", "p1"])
    assert sdata["segmentation_cell_boundaries"].cell_id.tolist() == [1, 2, 1, 2]
    stitch_planes(sdata, ["p0", "p1"], threshold=0, overwrite=True)
    assert sdata["segmentation_cell_boundaries"].cell_id.tolist() == [1, 2, 3, 4]


def test_bad_input_says_what_to_do():
    sdata, names = planes_of(VOLUME)
    shapes, drawn = shapes_of(VOLUME)
    for name in drawn:
        sdata[name] = shapes[name]
    sdata["volume"] = Labels3DModel.parse(VOLUME, dims=("z", "y", "x"))
    sdata["small"] = Labels2DModel.parse(VOLUME[0][:5], dims=("y", "x"))
    sdata["moved"] = Labels2DModel.parse(
        VOLUME[0], dims=("y", "x"), transformations={"global": Scale([2, 2], ("x", "y"))}
    )
    sdata["scaled"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]))
    set_transformation(sdata["scaled"], Scale([2, 2], ("x", "y")))
    sdata["circles"] = ShapesModel.parse(gpd.GeoDataFrame({"radius": [1.0]}, geometry=gpd.points_from_xy([1], [2])))
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    sdata["invalid"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1), bow]))
    index = pd.Index([3, 3])
    sdata["twice"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)] * 2, index=index))
    sdata["segmentation_nucleus_labels"] = sdata["volume"]
    before = {name for _, name, _ in sdata.gen_elements()}
    wrong = [
        (["z0", "y1", "z2", "y3"], {}, MissingError, r"no labels or shapes 'y1', 'y3' in.*'z0'.*'p0'.*is None"),
        ("y", {}, MissingError, "no labels or shapes 'y'"),
        ([], {}, InputError, r"planes=\[\]: expected"),
        ([None], {}, InputError, "names of planes in z order"),
        (3, {}, InputError, "planes=3"),
        ([0, 1], {}, InputError, r"planes=\[0, 1\]"),
        (["z0", "z1", "z0"], {}, InputError, "'z0' more than once"),
        (["z0", "p1"], {}, InputError, "labels and shapes"),
        ("p0", {}, InputError, "shapes of one plane: expected a list"),
        ("z0", {}, InputError, r"'z0' have the axes \('y', 'x'\): expected \(z, y, x\), or a list"),
        (["z0", "volume"], {}, InputError, r"'volume' have the axes .*expected \(y, x\)"),
        (["z0", "small"], {}, InputError, r"'small' \(5, 110\) and 'z0' \(90, 110\) do not lie on the same grid"),
        (["z0", "moved"], {}, InputError, "same grid"),
        (["p0", "scaled"], {}, InputError, "'scaled' and 'p0' do not share their transformations"),
        (["p0", "circles"], {}, InputError, "shapes 'circles': polygons hold a Point.*buffer"),
        (["p0", "invalid"], {}, InputError, r"'invalid': the polygon at position 1 is not valid \(Self-.*buffer\(0\)"),
        (["p0", "twice"], {}, InputError, "shapes 'twice': the id 3 stands 2 times"),
        (names, {"threshold": 1.5}, InputError, "threshold=1.5: expected the IoU"),
        (names, {"threshold": "0.5"}, InputError, "threshold='0.5'"),
        (names, {"kind": "cells"}, InputError, "kind='cells': expected 'nucleus' or 'cell'"),
        (names, {"n_jobs": 0}, InputError, "n_jobs=0"),
        (names, {"kind": "nucleus"}, ExistsError, "segmentation_nucleus_labels exist"),
        (names, {"key_added": "a/b"}, InputError, "a/b_cell_labels"),
    ]
    for planes, options, error, match in wrong:
        with pytest.raises(error, match=match):
            stitch_planes(sdata, planes, **options)
    sdata["z1"] = Labels2DModel.parse(-VOLUME[1].astype(np.int64), dims=("y", "x"))
    with pytest.raises(InputError, match="expected 0 for background"):
        stitch_planes(sdata, names)
    assert {name for _, name, _ in sdata.gen_elements()} == before
