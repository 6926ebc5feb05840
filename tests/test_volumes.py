"""Volumes from end to end: measures, matches, regions and outlines against slow references on synthetic tissue."""

from __future__ import annotations

import hashlib
from pathlib import Path

import dask.array as da
import geopandas as gpd
import numpy as np
import pytest
import spatialdata as sd
from geopandas.testing import assert_geodataframe_equal
from scipy import ndimage
from shapely import MultiPolygon, Polygon, box
from spatialdata.models import Labels3DModel, ShapesModel
from spatialdata.transformations import Affine, Scale, Sequence, Translation, get_transformation, set_transformation

from spatialdata_segment import (
    Cellpose,
    ExpandNuclei,
    SizeFilter,
    ThresholdNuclei,
    Workflow,
    decode,
    filter_labels,
    labels_to_polygons,
    match_nuclei,
    plan,
    polygons_to_labels,
    predict,
    preview,
    segment,
)
from spatialdata_segment._region import Region
from spatialdata_segment.cli import main
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.errors import InputError
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")
XYZ = ("x", "y", "z")
SHAPE, SPACING = (14, 60, 70), (1.5, 0.5, 0.25)
"""Voxels, and µm a voxel, (z, y, x)."""
TISSUE = Tissue(SHAPE, seed=3, cell_diameter=20, anisotropy=2.0, multinucleated=0.3, debris=0)
UM = Sequence([Scale(list(SPACING[::-1]), axes=XYZ), Translation([7.0, -3.0, 2.0], axes=XYZ)])
SHIFT = np.array([7.0, -3.0, 2.0])
NUCLEI = ThresholdNuclei(threshold="otsu", sigma=0.5, min_distance=3, debris=0)
PAIR = Workflow(nucleus=NUCLEI, cell=ExpandNuclei(distance=0.6, unit="um"))
SMALL = {"shard_size": 9_000, "overlap_px": (14, 16, 18)}


def an_object(scale_factors=None, channels=("DAPI", "WGA")) -> sd.SpatialData:
    """The tissue in memory, in chunks that fit no plan; in ``um`` it is anisotropic, and elsewhere."""
    sdata = TISSUE.to_spatialdata((5, 33, 37), scale_factors, truth=True)
    for name in list(sdata.images) + list(sdata.labels):
        set_transformation(sdata[name], UM, "um")
    return sdata


def run(sdata, workflow=PAIR, **options) -> sd.SpatialData:
    given = {"n_jobs": 2, "progress": False, "pixel_size": SPACING, "to_coordinate_system": "um", **options}
    return segment(sdata, "image", workflow, **given)


def voxels(sdata, name) -> np.ndarray:
    element = sdata.labels[name]
    return np.asarray(element["scale0"]["image"] if hasattr(element, "children") else element)


def bytes_of(element: Path) -> str:
    """A checksum of the files of an element."""
    files = sorted(path for path in element.rglob("*") if path.is_file())
    assert files
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module")
def whole() -> sd.SpatialData:
    """Nuclei and cells of the tissue; what does not match is kept, so that there is more of it."""
    return run(an_object(), PAIR.model_copy(update={"match_masks": False}))


# --- measures -----------------------------------------------------------------------------------------------


def test_table(whole):
    """Volumes, centroids, bounding boxes and means: those of scipy, cell by cell."""
    labels, table = voxels(whole, "segmentation_cell_labels"), whole.tables["segmentation_table"]
    ids = np.arange(1, labels.max() + 1)
    assert len(ids) > 20
    assert table.obs["cell_id"].tolist() == ids.tolist()
    volume = ndimage.sum_labels(np.ones(SHAPE), labels, ids)
    np.testing.assert_array_equal(table.obs["area"], volume)
    np.testing.assert_allclose(table.obs["volume_um3"], volume * np.prod(SPACING))
    assert "area_um2" not in table.obs
    centre = np.array(ndimage.center_of_mass(np.ones(SHAPE), labels, ids)) + 0.5
    np.testing.assert_allclose(table.obsm["spatial"], (centre * SPACING)[:, ::-1] + SHIFT)
    found = ndimage.find_objects(labels)
    for axis, name in enumerate("zyx"):
        assert table.obs[f"bbox_{name}_min"].tolist() == [f[axis].start for f in found]
        assert table.obs[f"bbox_{name}_max"].tolist() == [f[axis].stop for f in found]
    image = np.asarray(whole["image"])
    for c, name in enumerate(("DAPI", "WGA")):
        expected = ndimage.mean(image[c], labels, ids).astype(np.float32)
        np.testing.assert_allclose(np.asarray(table[:, name].X).ravel(), expected, rtol=1e-6)


def test_expansion_is_measured_in_um(whole):
    """A cell reaches 0.6 µm from its nucleus: no plane up, one pixel along y, two along x."""
    nuclei, cells = (voxels(whole, f"segmentation_{m}_labels") for m in ("nucleus", "cell"))
    distance = ndimage.distance_transform_edt(nuclei == 0, sampling=SPACING)
    np.testing.assert_array_equal(cells > 0, distance <= 0.6)
    assert not ((cells > 0) & ~(nuclei > 0).any((1, 2))[:, None, None]).any()


def slow_pairs(nuclei, cells, share, multinucleated):
    """Nuclei with their cells: of each nucleus the cell that holds enough of it."""
    of = {}
    for n in np.unique(nuclei[nuclei > 0]).tolist():
        inside, count = np.unique(cells[nuclei == n], return_counts=True)
        best = int(count.argmax())
        if inside[best] and count[best] >= share * count.sum():
            of[n] = int(inside[best])
    several = {c for c in of.values() if list(of.values()).count(c) > 1}
    return {(n, c) for n, c in of.items() if multinucleated == "keep" or c not in several}


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("multinucleated", ["drop", "keep"])
def test_matching(share, multinucleated):
    """Of the truth, shifted so that nuclei stick out: the pairs of a slow loop, with one id each."""
    sdata = an_object()
    nuclei = np.roll(voxels(sdata, "truth_nuclei"), 2, axis=0)
    sdata["moved"] = Labels3DModel.parse(da.from_array(nuclei, (6, 25, 70)), dims=("z", "y", "x"))
    set_transformation(sdata["moved"], UM, "um")
    cells = voxels(sdata, "truth_cells")
    match_nuclei(
        sdata, "moved", "truth_cells", filtering_threshold_mask_matching=share, multinucleated=multinucleated,
        pixel_size=SPACING, image_key="image", to_coordinate_system="um", progress=False,
    )  # fmt: skip
    expected = slow_pairs(nuclei, cells, share, multinucleated)
    found = [voxels(sdata, f"segmentation_{m}_labels") for m in ("nucleus", "cell")]
    np.testing.assert_array_equal(found[0] > 0, np.isin(nuclei, [n for n, _ in expected]))
    np.testing.assert_array_equal(found[1] > 0, np.isin(cells, [c for _, c in expected]))
    table, candidates = sdata.tables["segmentation_table"].obs, sdata.tables["segmentation_candidates"].obs
    assert 5 < len(table) < len(np.unique(cells)) - 1
    for n, c in expected:
        (i,) = np.unique(found[1][cells == c])
        assert np.unique(found[0][nuclei == n]).tolist() == [i]
        row = table[table.cell_id == i].iloc[0]
        assert row.n_nuclei == sum(other == c for _, other in expected)
        assert row.nucleus_area == (found[0] == i).sum()
        assert row.volume_um3 == pytest.approx((cells == c).sum() * np.prod(SPACING))
    assert len(candidates) == len(np.unique(nuclei)) + len(np.unique(cells)) - 2
    assert candidates["centroid_z"].between(0, SHAPE[0]).all()
    assert_geodataframe_equal(
        sdata["segmentation_cell_boundaries"], labels_to_polygons(found[1], progress=False), check_crs=False
    )


def test_size_filter_in_um3():
    """Both ways to a filter keep the same cells: those of the volumes that are asked for."""
    sdata = an_object()
    cells = voxels(sdata, "truth_cells")
    ids, count = np.unique(cells[cells > 0], return_counts=True)
    low = float(np.median(count) * np.prod(SPACING))
    size = SizeFilter(min_size=low, unit="um3")
    filter_labels(sdata, "truth_cells", size, pixel_size=SPACING, progress=False)
    kept = voxels(sdata, "segmentation_cell_labels")
    np.testing.assert_array_equal(kept > 0, np.isin(cells, ids[count * np.prod(SPACING) >= low]))
    flow = Workflow(nucleus=NUCLEI, filter_masks_size=True, nucleus_size=SizeFilter(min_size=20, unit="um3"))
    run(sdata, flow, overwrite=True)
    candidates = sdata.tables["segmentation_candidates"].obs
    small = candidates.area * np.prod(SPACING) < 20
    assert 0 < small.sum() < len(candidates)
    np.testing.assert_array_equal(candidates.is_kept, ~small)
    assert set(candidates.drop_reason[small]) == {"too_small"}
    with pytest.raises(InputError, match="nucleus_size is in um3, which needs the pixel size"):
        run(sdata, flow, pixel_size=None, overwrite=True)


def test_scales(tmp_path):
    """On a coarser scale the result has its grid, and lies in the same place."""
    sdata = an_object([2])
    coarse = np.asarray(sdata["image"]["scale1"]["image"])
    run(sdata, Workflow(nucleus=NUCLEI), scale="scale1", pixel_size=tuple(2 * s for s in SPACING))
    labels, table = voxels(sdata, "segmentation_nucleus_labels"), sdata.tables["segmentation_table"]
    assert labels.shape == coarse.shape[1:] == (7, 30, 35)
    centre = np.array(ndimage.center_of_mass(labels > 0, labels, np.arange(1, labels.max() + 1))) + 0.5
    np.testing.assert_allclose(table.obsm["spatial"], (2 * centre * SPACING)[:, ::-1] + SHIFT)
    np.testing.assert_allclose(table.obs["volume_um3"], table.obs["area"] * 8 * np.prod(SPACING))
    bounds = sd.transform(sdata["segmentation_nucleus_boundaries"], to_coordinate_system="um").total_bounds
    where = np.argwhere(labels.any(0))[:, ::-1]
    corners = np.concatenate([where.min(0), where.max(0) + 1]).reshape(2, 2) * 2 * [0.25, 0.5] + SHIFT[:2]
    np.testing.assert_allclose(bounds.reshape(2, 2), corners)


# --- outlines -----------------------------------------------------------------------------------------------


def test_outlines(whole):
    """A row an object and plane; with the planes drawn again, the labels."""
    labels, shapes = voxels(whole, "segmentation_cell_labels"), whole["segmentation_cell_boundaries"]
    ShapesModel().validate(shapes)
    assert_geodataframe_equal(shapes, labels_to_polygons(labels, progress=False), check_crs=False)
    assert shapes.columns.tolist() == ["z_index", "cell_id", "geometry"]
    assert shapes.index.is_unique
    expected = [(z, i) for z, plane in enumerate(labels) for i in np.unique(plane[plane > 0]).tolist()]
    assert list(zip(shapes.z_index, shapes.cell_id, strict=True)) == expected
    assert {type(g) for g in shapes.geometry} <= {Polygon, MultiPolygon}
    for z, rows in shapes.groupby("z_index"):
        back = polygons_to_labels(rows.set_index("cell_id"), SHAPE[1:]).compute()
        np.testing.assert_array_equal(back, labels[z])


def test_outlines_join_the_table(whole):
    shapes, table = whole["segmentation_cell_boundaries"], whole.tables["segmentation_table"].obs
    joined = shapes.merge(table[["cell_id", "area"]], on="cell_id", how="left")
    assert len(joined) == len(shapes)
    area = shapes.area.groupby(shapes.cell_id).sum()
    np.testing.assert_array_equal(area, table.set_index("cell_id")["area"].loc[area.index])


def test_outlines_lie_where_the_labels_do(whole):
    """Along x and y; z of a plane is that of its labels."""
    shapes, labels = whole["segmentation_cell_boundaries"], whole["segmentation_cell_labels"]
    assert set(get_transformation(shapes, get_all=True)) == set(get_transformation(labels, get_all=True))
    moved = sd.transform(shapes, to_coordinate_system="um").total_bounds
    corners = shapes.total_bounds.reshape(2, 2) * [0.25, 0.5] + SHIFT[:2]
    np.testing.assert_allclose(moved.reshape(2, 2), corners)


@pytest.mark.parametrize("region", [None, (9.0, 1.0, 5.0, 18.0, 21.0, 16.0)], ids=["whole", "region"])
def test_the_same_files_for_any_plan(tmp_path, region):
    """Serial, in threads, by predict and decode, on the command line: outlines equal byte for byte."""
    sdata = an_object([2])
    for name in ("truth_nuclei", "truth_cells"):
        del sdata[name]
    sdata.write(tmp_path / "a.zarr")
    flow, found = Workflow(nucleus=NUCLEI), set()
    where = {"bounding_box": region, "to_coordinate_system": "um"}
    for k, options in enumerate(({}, SMALL, {"shard_size": 30_000, "n_jobs": 1})):
        run(sd.read_zarr(tmp_path / "a.zarr"), flow, key_added=f"run{k}", table=False, **where, **options)
        found.add(bytes_of(tmp_path / "a.zarr" / "shapes" / f"run{k}_nucleus_boundaries"))
    predict(
        sd.read_zarr(tmp_path / "a.zarr"), "image", flow, tmp_path / "maps", progress=False, n_jobs=2, **where, **SMALL
    )
    decode(tmp_path / "maps", sdata=sd.read_zarr(tmp_path / "a.zarr"), key_added="two", table=False, progress=False)
    found.add(bytes_of(tmp_path / "a.zarr" / "shapes" / "two_nucleus_boundaries"))
    (tmp_path / "flow.yaml").write_text(
        "nucleus: {method: threshold-nuclei, threshold: otsu, sigma: 0.5, min_distance: 3, debris: 0}"
    )
    box_option = [] if region is None else ["--bounding-box", ",".join(map(str, region))]
    assert not main([
        "run", str(tmp_path / "a.zarr"), "--workflow", str(tmp_path / "flow.yaml"), "--no-table", "--key-added", "cli",
        "--to-coordinate-system", "um", "--overlap-px", "14,16,18", "--shard-size", "9000", *box_option,
    ])  # fmt: skip
    found.add(bytes_of(tmp_path / "a.zarr" / "shapes" / "cli_nucleus_boundaries"))
    assert len(found) == 1


def test_no_object_no_outlines():
    sdata = an_object()
    run(sdata, Workflow(nucleus=ThresholdNuclei(threshold=60_000, min_distance=3, debris=0)))
    assert "segmentation_nucleus_boundaries" not in sdata
    assert not voxels(sdata, "segmentation_nucleus_labels").any()


# --- regions ------------------------------------------------------------------------------------------------


def inside(whole, low, high) -> set[int]:
    """Nuclei whose peak lies in a box of um."""
    anchors = anchors_of(whole)
    place = (anchors[:, ::-1] + 0.5) * np.array(SPACING)[::-1] + SHIFT
    within = ((place >= low) & (place <= high)).all(1)
    return set((np.flatnonzero(within) + 1).tolist())


def anchors_of(labels) -> np.ndarray:
    """The peak of each nucleus: of the distance to what is not foreground, the first of equal ones."""
    squared = np.rint(ndimage.distance_transform_edt(labels > 0) ** 2)
    at = [np.flatnonzero(labels.ravel() == i) for i in range(1, labels.max() + 1)]
    return np.array(np.unravel_index([p[squared.ravel()[p].argmax()] for p in at], labels.shape)).T


@pytest.mark.parametrize("kind", ["box", "box of planes", "polygon", "circle", "labels"])
def test_region(whole, kind):
    """Kept is what has its peak inside; a column through all planes where no z is said; whole beyond the region."""
    sdata, every = an_object(), voxels(whole, "segmentation_nucleus_labels")
    low, high = np.array([10.0, 4.0, -np.inf]), np.array([19.0, 22.0, np.inf])
    options = {"bounding_box": (*low[:2], *high[:2])}
    expected = inside(every, low, high)
    if kind == "box of planes":
        low[2], high[2] = 5.0, 15.0
        options = {"bounding_box": (*low, *high)}
        expected = inside(every, low, high)
    elif kind == "polygon":
        frame = gpd.GeoDataFrame(geometry=[box(*low[:2], *high[:2])])
        sdata["roi"] = ShapesModel.parse(frame, transformations={"um": Scale([1, 1], axes=("x", "y"))})
        options = {"roi_key": "roi"}
    elif kind == "circle":
        centre = np.array([[40.0, 30.0]])
        sdata["roi"] = ShapesModel.parse(centre, geometry=0, radius=15.0, transformations={"um": UM})
        options = {"roi_key": "roi"}
        near = ((anchors_of(every)[:, :0:-1] + 0.5 - centre) ** 2).sum(1) <= 15**2
        expected = set((np.flatnonzero(near) + 1).tolist())
    elif kind == "labels":
        mask = np.zeros(SHAPE, np.uint8)
        mask[4:9, 10:50, 15:60] = 3
        sdata["roi"] = Labels3DModel.parse(mask, dims=("z", "y", "x"), transformations={"um": UM})
        options = {"roi_key": "roi"}
        at = anchors_of(every)
        expected = set((np.flatnonzero(mask[tuple(at.T)]) + 1).tolist())
    assert 2 < len(expected) < every.max() - 2
    for how in ({}, SMALL):
        found = voxels(
            run(sdata, Workflow(nucleus=NUCLEI), overwrite=True, **how, **options), "segmentation_nucleus_labels"
        )
        np.testing.assert_array_equal(found > 0, np.isin(every, list(expected)))
        assert found.max() == len(expected)


@pytest.mark.parametrize(("depth", "layers"), [(None, {0, 1, 2}), ((4.5, 7.0), {1}), ((3.0, 4.0), {0, 1})])
def test_shards_of_other_planes_are_left_out(depth, layers):
    cut = Plan((12, 20, 20), ((4, 4, 4), (10, 10), (10, 10)), (0, 0, 0))
    found = Region(box(1, 1, 9, 18), None, depth).shards(cut)
    assert found == sorted(4 * k + 2 * y for k in layers for y in (0, 1))


TILTED = Affine([[1, 0, 0.2, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]], input_axes=XYZ, output_axes=XYZ)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounding_box": (0, 0, 5, 5), "to_coordinate_system": "tilted"}, "planes of the image are tilted"),
        ({"roi_key": "flat", "to_coordinate_system": "tilted"}, "roi_key='flat'.*tilted"),
        ({"bounding_box": (0, 0, 9, 5, 5, 3)}, r"z_min, x_max"),
        ({"bounding_box": (0, 0, 5, 5, 5)}, r"expected \(x_min, y_min, x_max, y_max\), or \(x_min, y_min, z_min"),
        ({"bounding_box": (0, 0, 90, 5, 5, 99)}, "region of interest misses the image"),
        ({"roi_key": "planes"}, "column z_index.*go through all planes; give labels"),
        ({"roi_key": "small"}, "lie on no grid of image"),
        ({"overlap_px": (3, 30)}, r"overlap_px=\(3, 30\): expected a whole number, or one per axis"),
        ({"overlap_px": (1, 30, 30)}, "the minimum of threshold-nuclei"),
        ({"pixel_size": (0.5, 0.5)}, r"one per axis zyx"),
        ({"shard_size": 0}, "shard_size=0"),
    ],
)  # fmt: skip
def test_what_cannot_be(options, message):
    sdata = an_object()
    set_transformation(sdata["image"], TILTED, "tilted")
    frame, deep = (gpd.GeoDataFrame(geometry=[box(0, 0, 30, 30)]) for _ in range(2))
    systems = {"global": Scale([1, 1], axes=("x", "y")), "tilted": Scale([1, 1], axes=("x", "y"))}
    sdata["flat"] = ShapesModel.parse(frame, transformations=systems)
    sdata["planes"] = ShapesModel.parse(deep.assign(z_index=3), transformations=systems)
    sdata["small"] = Labels3DModel.parse(np.ones((3, 9, 9), np.uint8), dims=("z", "y", "x"))
    with pytest.raises(InputError, match=message):
        run(sdata, Workflow(nucleus=NUCLEI), **{"to_coordinate_system": "global", **options})
    assert "segmentation_nucleus_labels" not in sdata


def test_a_box_of_planes_of_a_flat_image():
    sdata = Tissue((40, 40)).to_spatialdata()
    with pytest.raises(InputError, match=r"expected \(x_min, y_min, x_max, y_max\) in"):
        segment(sdata, "image", bounding_box=(0, 0, 0, 9, 9, 9), progress=False)


def test_outlines_of_a_volume_with_a_matrix_are_found_by_a_box():
    """`spatialdata` asks shapes for matrices of x and y alone; tilted planes have none."""
    matrix = np.array([[0, 0.5, 0, 7], [0.25, 0, 0, -3], [0, 0, 1.5, 2], [0, 0, 0, 1]])
    sdata = an_object()
    for axes, name in ((matrix, "turned"), (matrix[[2, 1, 0, 3]], "tilted")):
        set_transformation(sdata["image"], Affine(axes, XYZ, XYZ), name)
    run(sdata, to_coordinate_system="turned", **SMALL)
    outlines = sdata["segmentation_cell_boundaries"]
    moved = sd.transform(outlines, to_coordinate_system="turned")
    low, high = moved.total_bounds.reshape(2, 2)
    found = sd.bounding_box_query(
        sdata, axes=("x", "y"), min_coordinate=low, max_coordinate=(low + high) / 2, target_coordinate_system="turned"
    )["segmentation_cell_boundaries"]
    assert 0 < len(found) < len(outlines)
    expected = np.einsum("ij,nj->ni", matrix[:2, :2], np.stack([outlines.centroid.x, outlines.centroid.y], axis=1))
    np.testing.assert_allclose(np.stack([moved.centroid.x, moved.centroid.y], axis=1), expected + matrix[:2, 3])
    assert get_transformation(outlines, "tilted") == Affine(matrix[[2, 1, 0, 3]], XYZ, XYZ)


def test_a_plan_knows_the_distance_of_planes_and_the_maps_on_disk():
    pytest.importorskip("torch")
    sdata = an_object()
    given = Cellpose("nuclei-small", diameter=12, do_3D=True, channels="DAPI", anisotropy=4.0)
    known = given.model_copy(update={"anisotropy": None})
    first, second = plan(sdata, "image", given), plan(sdata, "image", known, pixel_size=(4.0, 1.0, 1.0))
    assert first == second
    assert first.masks["cell"].halo[0] < first.masks["cell"].halo[1]
    assert first.disk_bytes > 8 * np.prod(SHAPE)
    with pytest.raises(InputError, match="do_3D"):
        plan(Tissue((64, 64)).to_spatialdata(), "image", known)


def test_a_preview_of_a_volume_is_a_cube():
    sdata = an_object()
    crop = preview(sdata, "image", PAIR, size=12, center=(20, 30, 4), pixel_size=SPACING)
    assert crop["image"].shape[1:] == (10, 12, 12)
    assert crop["segmentation_cell_labels"].shape == (10, 12, 12)
    assert preview(sdata, "image", PAIR, size=24, pixel_size=SPACING)["image"].shape[1:] == (14, 24, 24)
    for wrong in ({"size": (8, 16, 16)}, {"size": 0}, {"center": (1, 2, 3, 4)}, {"center": (1,)}, {"center": "ab"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            preview(sdata, "image", PAIR, **wrong)


def test_outlines_of_an_element_of_several_scales():
    sdata = an_object(scale_factors=[2])
    several = run(sdata, **SMALL)["segmentation_cell_labels"]
    finest = several["scale0"]["image"]
    assert_geodataframe_equal(labels_to_polygons(several, progress=False), labels_to_polygons(finest, progress=False))
