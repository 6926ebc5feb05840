"""Charts of a result: their numbers are those of the tables, and the shards those of the run."""

from __future__ import annotations

import json
import shutil

import matplotlib as mpl
import numpy as np
import pytest
import spatialdata as sd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spatialdata_segment import ExpandNuclei, SizeFilter, ThresholdNuclei, Workflow, pl, segment
from spatialdata_segment._evidence import crosses, seam_profile, seam_profiles
from spatialdata_segment._results import find_image, find_result
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.pl._preview import places_of
from spatialdata_segment.testing import Tissue

mpl.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore")

FLOW = Workflow(
    nucleus=ThresholdNuclei(threshold="otsu", channels="DAPI"),
    cell=ExpandNuclei(distance=3),
    filter_masks_size=True,
    nucleus_size=SizeFilter(min_size=80),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("charts") / "a.zarr"
    Tissue((180, 200), seed=4, cell_diameter=20, debris=0.3).to_spatialdata().write(path)
    segment(sd.read_zarr(path), "image", FLOW, pixel_size=0.5, shard_size=90 * 70, progress=False, n_jobs=1)
    return path


@pytest.fixture(scope="module")
def sdata(store):
    return sd.read_zarr(store)


@pytest.fixture
def ax():
    return Figure().add_subplot()


def rows(sdata, mask, kept):
    found = sdata["segmentation_candidates"].obs
    return found[(found["kind"] == mask) & (found["is_kept"] == kept)]


def test_sizes_count_every_candidate(sdata, ax):
    assert pl.sizes(sdata, ax=ax) is ax
    counts = [sum(p.get_height() for p in c) for c in ax.containers if not isinstance(c, list) and len(c) > 1]
    assert counts == [len(rows(sdata, m, kept=True)) for m in ("nucleus", "cell")]
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert f"nuclei dropped ({len(rows(sdata, 'nucleus', kept=False))})" in texts
    assert [line.get_xdata()[0] for line in ax.lines] == [80 * 0.25]
    assert ax.get_xlabel() == "area (µm²)"
    low, high = ax.get_xlim()
    areas = sdata["segmentation_candidates"].obs["area"]
    assert low < areas[areas > 0].min() * 0.25 < areas.max() * 0.25 < high


def test_intensities_are_quantiles_of_x(sdata, ax):
    pl.intensities(sdata, channels=["WGA"], ax=ax)
    values = sdata["segmentation_table"].to_df()["WGA"]
    box = ax.patches[0].get_path().get_extents()
    np.testing.assert_allclose([box.x0, box.x1], np.quantile(values, [0.25, 0.75]), rtol=1e-6)
    assert len(pl.intensities(sdata, ax=Figure().add_subplot()).patches) == 2
    with pytest.raises(MissingError, match="channel 'CD3' is not in segmentation_table"):
        pl.intensities(sdata, channels=["CD3"])


def test_fates_add_up(sdata, ax):
    pl.fates(sdata, ax=ax)
    widths = np.array([[p.get_width() for p in c] for c in ax.containers])
    np.testing.assert_allclose(widths.sum(axis=0), 100)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    kept = [len(rows(sdata, m, kept=True)) for m in ("nucleus", "cell")]
    assert texts[0] == f"kept: {kept[0]} / {kept[1]}"
    ends = [(p.get_x(), p.get_x() + p.get_width()) for c in ax.containers for p in list(c)[:1]]
    assert sorted(ends)[0][0] == 0
    assert all(a[1] == pytest.approx(b[0]) for a, b in zip(sorted(ends)[:-1], sorted(ends)[1:], strict=True))


def test_matching_counts_nuclei(sdata, ax):
    pl.matching(sdata, ax=ax)
    heights = sum(p.get_height() for c in ax.containers for p in c)
    assert heights == len(rows(sdata, "nucleus", kept=True)) + len(rows(sdata, "nucleus", kept=False))
    with pytest.raises(InputError, match="needs both nuclei and cells"):
        pl.matching(segment(sd.SpatialData(images={"image": sdata["image"]}), "image", progress=False, n_jobs=1))


def test_density_counts_cells(sdata, ax):
    pl.density(sdata, ax=ax)
    mesh = ax.collections[0]
    corners = mesh.get_coordinates()
    area = np.diff(corners[0, :, 0])[None] * np.diff(corners[:, 0, 1])[:, None] * 0.25 / 1e6
    assert (np.asarray(mesh.get_array()) * area).sum() == pytest.approx(len(rows(sdata, "cell", kept=True)))


def test_shards_are_those_of_the_run(sdata, store, ax):
    record = json.loads((store / ".spatialdata_segment" / "segmentation.run.json").read_text())
    plan = record["plan"]["cell"]
    pl.shards(sdata, ax=ax)
    segments = [s for c in ax.collections if hasattr(c, "get_segments") for s in c.get_segments()]
    drawn = sorted({round(float(s[0][1])) for s in segments if s[0][1] == s[-1][1]})
    assert drawn == np.cumsum(plan["chunks"][0])[:-1].tolist()
    kept = rows(sdata, "cell", kept=True)
    over = int(crosses(kept, plan["chunks"]).sum())
    assert over > 0
    assert f"{over} objects over a border" in [t.get_text() for t in ax.get_legend().get_texts()]
    again = {i for of in record["places"].values() for i in of["again"]}
    shaded = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_fill()]
    assert len(shaded) == len(again)
    with pytest.raises(MissingError, match="mask='no'"):
        pl.shards(sdata, mask="no")


def test_seams_of_whole_cells_do_not_stand_out(sdata, ax):
    pl.seams(sdata, ax=ax)
    offset, share = ax.lines[0].get_data()
    assert offset[0] == -offset[-1]
    beside = share[offset != 0]
    assert abs(share[offset == 0][0] - beside.mean()) < 4 * beside.std()


def test_without_a_record_shards_are_not_known(store, tmp_path, sdata):
    shutil.copytree(store, tmp_path / "b.zarr")
    shutil.rmtree(tmp_path / "b.zarr" / ".spatialdata_segment")
    with pytest.raises(MissingError, match="no record of the run that made 'segmentation'"):
        pl.shards(sd.read_zarr(tmp_path / "b.zarr"))
    whole = segment(sd.SpatialData(images={"image": sdata["image"]}), "image", progress=False, n_jobs=1)
    with pytest.raises(InputError, match="has no seams"):
        pl.seams(whole)  # the record of an object in memory goes with it


def cut_at(labels, chunks):
    """Give what lies in different cores different labels, as shards would that know nothing of each other."""
    ends = [np.searchsorted(np.cumsum(c), np.arange(n), "right") for c, n in zip(chunks, labels.shape, strict=True)]
    core = ends[0][:, None] * len(chunks[1]) + ends[1]
    return np.where(labels > 0, labels + core * (labels.max() + 1), 0)


def test_cut_objects_stand_out_at_the_seams():
    labels = Tissue((260, 300), seed=3, cell_diameter=24).block(Box.whole((260, 300))).cells.astype(np.int64)
    chunks = ((130, 130), (100, 100, 100))
    whole = seam_profile(labels, chunks, 100, np.random.default_rng(0))
    cut = seam_profile(cut_at(labels, chunks), chunks, 100, np.random.default_rng(0))
    assert abs(whole.deviation) < 4
    assert cut.deviation > 10
    assert cut.at_seam > 0.9
    assert cut.n_windows == cut.n_possible == 3
    np.testing.assert_array_equal(whole.edges[whole.offset != 0], cut.edges[cut.offset != 0])


def test_seams_between_planes_are_told_apart():
    """What is cut between planes stands out there alone, among lines of planes; what is cut in planes does not."""
    labels = Tissue((32, 90, 100), seed=3, cell_diameter=20, anisotropy=2).cells().compute().astype(np.int64)
    chunks, n = ((16, 16), (90,), (50, 50)), labels.max() + 1
    z, _, x = np.indices(labels.shape)
    for cut, name in ((z >= 16, "z"), (x >= 50, "y and x")):
        found = seam_profiles(np.where(labels > 0, labels + n * cut, 0), chunks, 100, np.random.default_rng(0))
        whole = seam_profiles(labels, chunks, 100, np.random.default_rng(0))
        assert set(found) == set(whole) == {"z", "y and x"}
        assert found["z"].offset.tolist() == list(range(-7, 8))
        assert found[name].at_seam > 0.9
        assert found[name].deviation > 5 > 4 > abs(whole[name].deviation)
        (other,) = set(found) - {name}
        np.testing.assert_array_equal(found[other].edges, whole[other].edges)
    assert set(seam_profiles(labels, ((16, 16), (90,), (100,)), 100, np.random.default_rng(0))) == {"z"}
    assert set(seam_profiles(labels, ((4,) * 8, (90,), (50, 50)), 100, np.random.default_rng(0))) == {"y and x"}


def test_a_profile_along_z_is_the_count_of_its_rows():
    """Each window is some rows of the planes near a seam."""
    rng, rows = np.random.default_rng(1), []
    labels = rng.integers(0, 3, (20, 30, 40))

    class Noted:
        def __getitem__(self, at):
            rows.extend(range(30)[at[1]])
            assert at[0] == slice(5, 15)  # half a core to either side
            assert at[2] == slice(0, 40)
            return labels[at]

    found = seam_profile(Noted(), ((10, 10), (15, 15), (40,)), 10, rng, axes=(0,))
    assert rows == sorted(set(rows))
    assert {14, 29} <= set(rows)  # to the end of the cores' rows
    for k, edges, pairs in zip(found.offset, found.edges, found.pairs, strict=True):
        a, b = labels[10 + k - 1, rows], labels[10 + k, rows]
        assert edges == (a != b).sum()
        assert pairs == ((a > 0) | (b > 0)).sum()


def test_seams_of_a_volume():
    """The chart has a line for seams in planes and one for those between them, or that of what there is."""
    volume = Tissue((60, 40, 44), seed=1, cell_diameter=14).to_spatialdata()
    flow = ThresholdNuclei(object_radius=4)
    for size, units, grid in ((30 * 40 * 22, "px; along z planes", [2, 1, 2]), (30 * 40 * 44, "planes", [2, 1, 1])):
        segment(volume, "image", flow, shard_size=size, progress=False, n_jobs=1, overwrite=True)
        assert find_result(volume, "segmentation").record["plan"]["cell"]["grid"] == grid
        legend = pl.shards(volume, ax=Figure().add_subplot()).get_legend().get_texts()
        assert "2 cores along z, cut before planes 30" in [text.get_text() for text in legend]
        ax = pl.seams(volume, ax=Figure().add_subplot())
        assert ax.get_xlabel() == f"distance from the seam ({units})"
        told = [text.get_text() for text in ax.get_legend().get_texts()]
        assert told[-3:-1] == ["z: lines beside the seams", next(t for t in told if t.startswith("z: at the seams: "))]
        assert len(told) == 3 * (2 if grid[2] > 1 else 1)


def test_seam_profile_is_the_count_over_all_lines():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (40, 60))
    found = seam_profile(labels, ((40,), (30, 30)), 10, rng)
    for k, edges, pairs in zip(found.offset, found.edges, found.pairs, strict=True):
        a, b = labels[:, 30 + k - 1], labels[:, 30 + k]
        assert edges == (a != b).sum()
        assert pairs == ((a > 0) | (b > 0)).sum()
    assert seam_profile(labels, ((40,), (60,)), 10, rng) is None
    assert seam_profile(labels, ((40,), (6,) * 10), 10, rng) is None


def test_a_bounded_number_of_windows_is_read():
    read = []

    class Noted:
        def __getitem__(self, at):
            read.append(at)
            return np.zeros((5, 40, 60), np.uint8)[at]

    found = seam_profile(Noted(), ((5,), (20, 20), (30, 30)), 1, np.random.default_rng(0))
    assert len(read) == found.n_windows == 1
    assert found.n_possible == 2


def test_crosses_against_cores_met(sdata):
    found = sdata["segmentation_candidates"].obs
    chunks = ((50, 130), (70, 70, 60))
    expected = []
    for _, row in found.iterrows():
        cores = {(int(y >= 50), int(x // 70)) for y in range(row["bbox_y_min"], row["bbox_y_max"])
                 for x in range(row["bbox_x_min"], row["bbox_x_max"])}  # fmt: skip
        expected.append(len(cores) > 1)
    assert crosses(found, chunks).tolist() == expected


def test_previews_beside_each_other(sdata):
    flows = {"usual": FLOW, "none": Workflow(nucleus=ThresholdNuclei(threshold=60_000))}
    axes = pl.preview(sdata, "image", flows, centers=[(50, 60), (150, 120)], size=80, n_jobs=1)
    assert axes.shape == (2, 2)
    titles = [[ax.get_title() for ax in row] for row in axes]
    assert [row[1] for row in titles] == ["none\n0 nuclei; 0 dropped"] * 2
    from spatialdata_segment import preview

    for row, center in zip(axes, ((50, 60), (150, 120)), strict=True):
        alone = preview(sdata, "image", FLOW, center=center, size=80, n_jobs=1)
        found = alone["segmentation_candidates"].obs
        kept = [int(((found["kind"] == m) & found["is_kept"]).sum()) for m in ("nucleus", "cell")]
        lost = int((~found["is_kept"]).sum())
        assert row[0].get_title() == f"usual\n{kept[0]} nuclei, {kept[1]} cells; {lost} dropped"
    one = pl.preview(sdata, "image", "dapi", centers=1, size=60, n_jobs=1)
    assert one.shape == (1, 1)


def test_places_go_from_bright_to_dark():
    pixels = np.zeros((1, 90, 120), np.uint8)
    pixels[0, 30:60, 90:] = 200
    pixels[0, 60:, :30] = 100
    from spatialdata.models import Image2DModel

    picture = find_image(sd.SpatialData(images={"a": Image2DModel.parse(pixels, dims=("c", "y", "x"))}), "a", None)
    assert places_of(picture, 1, 30) == [(105, 45)]
    assert places_of(picture, 12, 30)[:2] == [(105, 45), (15, 75)]


@pytest.mark.parametrize(
    ("workflows", "options", "message"),
    [
        ({}, {}, "workflows is empty"),
        ("dapi", {"centers": 0}, "centers=0, expected at least 1"),
        ("dapi", {"centers": [1, 2]}, "expected how many, or a list"),
        ("dapi", {"centers": 2, "axes": [None]}, "axes: 1 given, expected 2 x 1"),
        ("dapi", {"roi_key": "x"}, "preview takes no roi_key"),
    ],
)
def test_wrong_previews_are_told(sdata, workflows, options, message):
    with pytest.raises(InputError, match=message):
        pl.preview(sdata, "image", workflows, size=60, **options)
