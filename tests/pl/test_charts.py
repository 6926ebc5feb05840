"""Charts of a result: their numbers are those of the tables, and the shards those of the run."""

from __future__ import annotations

import json
import re
import shutil

import matplotlib as mpl
import numpy as np
import pytest
import scipy.sparse as sp
import spatialdata as sd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spatialdata_segment import (
    Cellpose,
    ExpandNuclei,
    SizeFilter,
    ThresholdNuclei,
    Workflow,
    pl,
    resegment,
    segment,
)
from spatialdata_segment._evidence import crosses, seam_profile, seam_profiles
from spatialdata_segment._results import find_image, find_result
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.pl._dropped import among
from spatialdata_segment.pl._numbers import fate_counts, intensity_quantiles, masks_of
from spatialdata_segment.pl._preview import alike, places_of
from spatialdata_segment.testing import Tissue

mpl.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore")

FLOW = Workflow(
    nucleus=ThresholdNuclei(threshold="otsu", channels="DAPI"),
    cell=ExpandNuclei(distance=3),
    filter_masks_size=True,
    nucleus_size=SizeFilter(min_size=80),
)

QUIET = {"progress": False, "n_jobs": 1}


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


def in_memory(sdata):
    """Return the object without its store, with tables that may be changed."""
    tables = {name: table.copy() for name, table in sdata.tables.items()}
    return sd.SpatialData(images=dict(sdata.images), labels=dict(sdata.labels), tables=tables)


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


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


@pytest.mark.parametrize("sparse", [sp.csr_matrix, sp.csr_array, sp.csc_matrix])
def test_intensities_of_sparse_tables(sdata, ax, sparse):
    other = in_memory(sdata)
    other["segmentation_table"].X = sparse(other["segmentation_table"].X)
    pl.intensities(other, ax=ax)
    for one, same in zip(ax.patches, pl.intensities(sdata, ax=Figure().add_subplot()).patches, strict=True):
        np.testing.assert_array_equal(one.get_path().vertices, same.get_path().vertices)


def test_intensities_that_are_not_there_are_left_out(sdata):
    """A table that others changed has NaN where cells were added."""
    other = in_memory(sdata)
    values = other["segmentation_table"].X
    values[::2, 0] = np.nan
    seen = values[1::2, 0].astype(float)
    found = intensity_quantiles(find_result(other, "segmentation"), "DAPI")
    np.testing.assert_array_equal(found, np.quantile(seen, (0.01, 0.25, 0.5, 0.75, 0.99)))


def test_channels_of_any_name_are_drawn(sdata, ax):
    """Matplotlib would read a formula between dollar signs, and fail on this one."""
    names = ["a$_{b$", "_WGA"]
    other = in_memory(sdata)
    other["segmentation_table"].var_names = names
    pl.intensities(other, ax=ax)
    FigureCanvasAgg(ax.figure).draw()
    labels = ax.get_yticklabels()
    assert [label._preprocess_math(label.get_text()) for label in labels] == [(name, False) for name in names[::-1]]


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
    """Those that were too small never came to the matching; bars of kept and dropped do not lie on each other."""
    other = in_memory(sdata)
    found = other["segmentation_candidates"].obs
    kept, lost = (found.index[(found["kind"] == "nucleus") & (found["is_kept"] == k)] for k in (True, False))
    found.loc[lost[:4], ["drop_reason", "overlap_fraction"]] = ["unmatched", 0.99]
    pl.matching(other, ax=ax)
    assert [[p.get_height() for p in c if p.get_height()] for c in ax.containers] == [[len(kept)], [4]]
    assert len(lost) > 4
    assert [t.get_text() for t in ax.get_legend().get_texts()][:2] == [f"kept ({len(kept)})", "dropped (4)"]
    (green,), (red,) = ([p for p in c if p.get_height()] for c in ax.containers)
    assert green.get_x() + green.get_width() <= red.get_x() + 1e-9
    assert green.get_y() == red.get_y() == 0
    with pytest.raises(InputError, match="needs both nuclei and cells"):
        pl.matching(segment(sd.SpatialData(images={"image": sdata["image"]}), "image", progress=False, n_jobs=1))


def test_what_a_later_run_replaced_is_no_failure():
    """Charts, counts and boxes of a region that was segmented again are of what was kept and dropped."""
    flow = Workflow(nucleus=ThresholdNuclei(threshold="otsu"), cell=ExpandNuclei(distance=3))
    again = segment(Tissue((110, 130), seed=4, cell_diameter=20).to_spatialdata(), "image", flow, shapes=False, **QUIET)
    resegment(again, "image", flow, bounding_box=(0, 0, 60, 60), **QUIET)
    found = again["segmentation_candidates"].obs
    replaced = (found["drop_reason"] == "replaced").to_numpy()
    assert replaced.sum() > 4
    for mask in ("nucleus", "cell"):
        of = found[~replaced & (found["kind"] == mask).to_numpy()]
        counts = fate_counts(found[found["kind"] == mask])
        assert counts["kept"] == of["is_kept"].sum() == len(again["segmentation_table"])
        assert sum(counts.values()) == len(of)
    for chart in (pl.fates, pl.sizes, pl.matching):
        told = texts(chart(again, ax=Figure().add_subplot()).get_legend())
        numbers = [int(n) for text in told for n in re.findall(r"dropped \((\d+)\)", text)]
        assert not [text for text in told if "replaced" in text]
        assert sum(numbers) <= (~found["is_kept"].to_numpy() & ~replaced).sum()
    boxes = among(found, (0, 130, 0, 110), None)
    assert set(boxes.index) == set(found.index[~found["is_kept"].to_numpy() & ~replaced])


def test_masks_in_which_nothing_was_found_are_there():
    """Charts of both draw them empty; a mask that was written as both is one."""
    tissue = Tissue((60, 70), seed=4, cell_diameter=20).to_spatialdata()
    nothing = ThresholdNuclei(threshold=65_000)
    segment(tissue, "image", Workflow(nucleus=nothing, cell=ExpandNuclei(distance=3)), key_added="none", **QUIET)
    segment(tissue, "image", Workflow(nucleus=ThresholdNuclei(), cell=nothing), key_added="half", **QUIET)
    segment(tissue, "image", Workflow(nucleus=nothing), key_added="alone", **QUIET)
    twice = Workflow(nucleus=ThresholdNuclei(), duplicate_mask=True)
    segment(tissue, "image", twice, key_added="twice", **QUIET)
    masks = {key: masks_of(find_result(tissue, key)) for key in ("none", "half", "alone", "twice")}
    both = ["nucleus", "cell"]
    assert masks == {"none": both, "half": both, "alone": ["nucleus"], "twice": ["nucleus"]}
    assert [find_result(tissue, key).main for key in masks] == ["cell", "cell", "nucleus", "nucleus"]
    for chart in (pl.matching, pl.sizes, pl.fates, pl.density):
        FigureCanvasAgg(chart(tissue, key="none", ax=Figure().add_subplot()).figure).draw()
    assert texts(pl.matching(tissue, key="none", ax=Figure().add_subplot()).get_legend()) == ["kept (0)"]


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
    (text,) = pl.seams(whole, ax=Figure().add_subplot()).texts  # the record of an object in memory goes with it
    assert text.get_text() == "one shard: no seams"
    small = {"image": sdata["image"][:, :30, :6]}
    (text,) = pl.seams(
        segment(sd.SpatialData(images=small), "image", shard_size=6 * 6, **QUIET), ax=Figure().gca()
    ).texts
    assert text.get_text() == "shards too small to tell seams"


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
    (legend,) = axes[0, 0].figure.legends
    drawn = {text.partition(" (")[0] for ax in axes.ravel() for text in ax.get_legend_handles_labels()[1]}
    assert set(texts(legend)) == drawn >= {"nucleus", "cell", "too small"}
    one = pl.preview(sdata, "image", "dapi", centers=1, size=60, n_jobs=1)
    assert one.shape == (1, 1)


def test_a_bare_method_beside_nuclei_finds_nuclei(sdata):
    flows = {"dapi": "dapi", "a$_{b$": ThresholdNuclei()}
    axes = pl.preview(sdata, "image", flows, centers=1, size=80, n_jobs=1)
    counts = [ax.get_title().splitlines()[1] for ax in axes[0]]
    assert counts[0] == counts[1]
    assert " nuclei; " in counts[0]
    axes[0, 0].figure.canvas.draw()
    bare = ThresholdNuclei()
    for others in ({}, {"both": FLOW}, {"cells": Workflow(cell=bare)}):
        assert list(alike({**others, "bare": bare})["bare"].methods()) == ["cell"]
    cyto = Cellpose("cyto2")
    assert cyto.roles("nucleus") != cyto.roles("cell")
    assert list(alike({"dapi": "dapi", "bare": cyto})["bare"].methods()) == ["cell"]


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
        ("dapi", {"centers": 0}, "centers=0: expected at least 1"),
        ("dapi", {"centers": [1, 2]}, "expected how many, or a list"),
        ("dapi", {"centers": "x"}, "centers='x': expected how many, or a list"),
        ("dapi", {"centers": [(1, 2), (3,)]}, "expected how many, or a list"),
        ("dapi", {"centers": [(1, np.nan)]}, "expected how many, or a list"),
        ("dapi", {"centers": 2, "axes": [None]}, "axes: 1 given, expected 2 x 1"),
        ("dapi", {"roi_key": "x"}, "preview takes no roi_key"),
    ],
)
def test_wrong_previews_are_told(sdata, workflows, options, message):
    with pytest.raises(InputError, match=message):
        pl.preview(sdata, "image", workflows, size=60, **options)
