"""The report: one file that needs nothing else, whose numbers are those of the tables, and which a browser shows."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csr_matrix
from spatialdata.models import Image2DModel

from spatialdata_segment import (
    ExpandNuclei,
    SizeFilter,
    ThresholdNuclei,
    Workflow,
    match_nuclei,
    report,
    resegment,
    segment,
)
from spatialdata_segment._record import clock, read_record
from spatialdata_segment._report.art import figure_jpeg, jpeg
from spatialdata_segment._report.crops import _nth, crop_side, random_crops, worst_crops
from spatialdata_segment._report.doubts import doubts
from spatialdata_segment._report.facts import WHY
from spatialdata_segment._results import find_result
from spatialdata_segment.cli import main
from spatialdata_segment.core.matching import REASONS
from spatialdata_segment.engine.events import Event, emit, of_image
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.pl._dropped import REASON_COLORS
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")

FLOW = Workflow(
    nucleus=ThresholdNuclei(threshold="otsu", channels="DAPI"),
    cell=ExpandNuclei(distance=3),
    filter_masks_size=True,
    nucleus_size=SizeFilter(min_size=80),
)
SECTIONS = ["summary", "overview", "crops", "dropped", "distributions", "matching", "shards", "parameters", "run"]
VOID = {"meta", "img", "input", "br", "image", "path", "rect", "use"}
SMALLEST = "smallest cell off the image's edge"
CHROMIUM = next((c for c in ("chromium", "chromium-browser", "google-chrome") if shutil.which(c)), None)


class Page(HTMLParser):
    """What a page is made of, and whether its tags close."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.addresses, self.tables, self.text = Counter(), [], [], [], []
        self.unnamed, self.open, self.row = [], [], None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        self.tags[tag] += 1
        self.ids += [of["id"]] if "id" in of else []
        self.addresses += [of[name] for name in ("src", "href", "xlink:href", "action", "srcset") if name in of]
        if tag == "img" and not of.get("alt"):
            self.unnamed.append(tag)
        if tag == "svg" and not (of.get("aria-label") and of.get("role") == "img"):
            self.unnamed.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th") and self.tables:
            self.tables[-1][-1][-1] += data

    def table(self, first):
        """Return the table whose head begins so, as rows by their first cell."""
        (found,) = [t for t in self.tables if t[0][: len(first)] == first]
        return {row[0]: row[1:] for row in found[1:]}


def number(text):
    return float(text.replace(",", ""))


def pictures(path):
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", path.read_text(encoding="utf-8"))
    return [np.asarray(Image.open(BytesIO(base64.b64decode(f)))) for f in found]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "a.zarr"
    Tissue((180, 200), seed=4, cell_diameter=20, debris=0.3).to_spatialdata().write(path)
    segment(sd.read_zarr(path), "image", FLOW, pixel_size=0.5, shard_size=90 * 70, progress=False, n_jobs=1)
    return path


@pytest.fixture(scope="module")
def sdata(store):
    return sd.read_zarr(store)


@pytest.fixture(scope="module")
def path(sdata, tmp_path_factory):
    return report(sdata, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def page(path):
    return Page(path)


def test_it_has_all_sections_and_needs_nothing_else(path, page):
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    assert not page.unnamed
    assert all(a.startswith(("data:", "#")) for a in page.addresses)
    assert [a[1:] for a in page.addresses if a.startswith("#") and "-" not in a] == SECTIONS
    text = path.read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.findall(r"(?:fetch|XMLHttpRequest|import)\s*\(", text[text.rindex("<script>") :])
    assert not re.findall(r"https?://", text)
    assert page.tags["script"] == page.tags["style"] == 1
    assert len(page.ids) == len(set(page.ids))
    assert path.stat().st_size < 3e6


def test_references_inside_lead_somewhere(path, page):
    used = {a[1:] for a in page.addresses if a.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", path.read_text(encoding="utf-8")))
    assert used <= set(page.ids)


def test_its_numbers_are_those_of_the_tables(sdata, page):
    rows = sdata["segmentation_candidates"].obs
    by = {m: rows[rows["kind"] == m] for m in ("nucleus", "cell")}
    candidates = next({row[0]: row[1:] for row in t} for t in page.tables if t[1][0] == "found")
    assert [number(v) for v in candidates["found"]] == [len(of) for of in by.values()]
    assert [number(v) for v in candidates["kept"]] == [of["is_kept"].sum() for of in by.values()]
    reasons = page.table(["reason"])
    counted = {r: [int((of["drop_reason"] == r).sum()) for of in by.values()] for r in REASONS[1:]}
    assert {r: [int(number(v)) for v in row[:2]] for r, row in reasons.items()} == {
        r.replace("_", " "): n for r, n in counted.items() if any(n)
    }
    areas = page.table(["", "kept", "least"])
    for mask, name in (("nucleus", "nuclei"), ("cell", "cells")):
        kept = by[mask].loc[by[mask]["is_kept"], "area"] * 0.25
        told = [number(v) for v in areas[name]]
        np.testing.assert_allclose(told, [len(kept), *np.quantile(kept, [0, 0.05, 0.5, 0.95, 1])], rtol=1e-3)
    intensities = page.table(["channel"])
    for channel, values in sdata["segmentation_table"].to_df().items():
        expected = np.quantile(values, [0.01, 0.25, 0.5, 0.75, 0.99])
        np.testing.assert_allclose([number(v) for v in intensities[channel]], expected, rtol=1e-3)
    matching = page.table(["", "value"])
    table = sdata["segmentation_table"].obs
    assert number(matching["cells with one nucleus"][0]) == (table["n_nuclei"] == 1).sum()
    least = by["nucleus"].loc[by["nucleus"]["is_kept"], "overlap_fraction"].min()
    assert number(matching["least share of a kept nucleus in its cell"][0]) == pytest.approx(least, rel=1e-3)


def test_its_run_is_the_record(sdata, store, page):
    record = json.loads((store / ".spatialdata_segment" / "segmentation.run.json").read_text())
    plan = page.table(["", "shards"])
    assert [int(plan[n][0]) for n in ("nuclei", "cells")] == [
        np.prod(record["plan"][m]["grid"]) for m in ("nucleus", "cell")
    ]
    seams = next(t for t in page.tables if t[0] == ["", "nuclei", "cells"] and t[1][0] == "shards")
    found = {row[0]: [int(number(v)) for v in row[1:]] for row in seams[1:]}
    again = found["looked again, farther, for an object that the halo did not show in full"]
    assert again == [record["evidence"][m]["again"] for m in ("nucleus", "cell")]
    stages = page.table(["stage"])
    assert list(stages) == [s["stage"] for s in record["stages"]]
    assert [int(row[0]) for row in stages.values()] == [s["tasks"] for s in record["stages"]]
    assert "nucleus shards" in stages
    assert record["memory_bytes"] > 1e7
    assert sum(s["seconds"] for s in record["stages"]) <= record["seconds"] + 0.01 * len(record["stages"])
    versions = page.table(["package"])
    assert versions["spatialdata"] == [sd.__version__]
    assert versions["python"] == [".".join(map(str, sys.version_info[:3]))]
    parameters = next(t for t in page.tables if t[0] == ["name", "value"])
    assert ["workflow.nucleus_size.min_size", "80"] in parameters
    whole = "".join(page.text)
    assert '"filtering_threshold_mask_matching": 0.95' in whole


def test_crops_show_pixels_outlines_and_what_was_dropped(sdata, path):
    text = path.read_text(encoding="utf-8")
    crops = re.findall(r'<svg class="crop" viewBox="(\d+) (\d+) (\d+) (\d+)".*?</svg>', text, re.DOTALL)
    bodies = re.findall(r'<svg class="crop".*?</svg>', text, re.DOTALL)
    assert len(crops) >= 8
    rows = sdata["segmentation_candidates"].obs
    dropped = rows[~rows["is_kept"]]
    for (x, y, width, height), body in zip((tuple(map(int, c)) for c in crops), bodies, strict=True):
        labels = np.asarray(sdata["segmentation_cell_labels"])[y : y + height, x : x + width]
        named = set(map(int, re.findall(r"<title>cell (\d+)</title>", body)))
        assert named >= set(np.unique(labels[labels > 0]).tolist())
        met = (dropped["bbox_x_min"] < x + width) & (dropped["bbox_x_max"] > x)
        met &= (dropped["bbox_y_min"] < y + height) & (dropped["bbox_y_max"] > y)
        assert body.count("<rect") == met.sum() + 1  # the scale bar
        (pixels,) = re.findall(r"base64,([A-Za-z0-9+/=]+)", body)
        picture = np.asarray(Image.open(BytesIO(base64.b64decode(pixels))), float)[..., 0]
        truth = np.asarray(sdata["image"].sel(c="DAPI"), float)[y : y + height, x : x + width]
        assert picture.shape == truth.shape
        assert np.corrcoef(picture.ravel(), truth.ravel())[0, 1] > 0.95


def test_the_overview_shows_both_outlines(path):
    overview = next(p for p in pictures(path) if max(p.shape) == 1400)
    r, g, b = (overview[..., i].astype(int) for i in range(3))
    assert ((r > 150) & (g > 120) & (b < 90)).mean() > 0.005  # nuclei
    assert ((r > 150) & (g < 130) & (b > 120)).mean() > 0.005  # cells


def test_the_worst_are_the_worst(sdata):
    result = find_result(sdata, "segmentation")
    side = crop_side(result)
    crops = worst_crops(result, 1, side)
    of = {c.why: c for c in crops}
    cells = sdata["segmentation_table"].obs
    assert of["largest cell"].target == ("cell", cells.loc[cells["area"].idxmax(), "cell_id"])
    inside = cells[
        (cells.filter(like="_min") > 0).all(axis=1) & (cells["bbox_x_max"] < 200) & (cells["bbox_y_max"] < 180)
    ]
    assert 0 < len(inside) < len(cells)
    assert of[SMALLEST].target == ("cell", inside.loc[inside["area"].idxmin(), "cell_id"])
    rows = result.candidates
    dropped = rows[~rows["is_kept"] & (rows["area"] > 0)]
    tiles = Counter(zip(dropped["centroid_y"] // side, dropped["centroid_x"] // side, strict=True))
    assert int(of["most dropped nearby"].what.split()[0]) >= max(tiles.values()) - 1  # of a tile of that size
    for crop in crops:
        assert crop.box.shape == (side, side)
        assert all(0 <= a < b <= n for a, b, n in zip(crop.box.start, crop.box.stop, result.shape, strict=True))
    chosen = random_crops(result, 4, 60, np.random.default_rng(0))
    for i, one in enumerate(chosen):
        for other in chosen[:i]:
            assert one.box.intersect(other.box).size * 2 < one.box.size


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("side", [40, 96, 170])
def test_ranks_and_places_of_crops_are_those_of_the_table(sdata, n, side):
    result = find_result(sdata, "segmentation")
    crops = worst_crops(result, n, side)
    obs = result.table.obs
    off = (obs["bbox_x_min"] > 0) & (obs["bbox_y_min"] > 0) & (obs["bbox_x_max"] < 200) & (obs["bbox_y_max"] < 180)
    for word, of, ascending in (("largest cell", obs, False), (SMALLEST, obs[off], True)):
        ranked = of.sort_values("area", ascending=ascending, kind="stable")["cell_id"].tolist()
        found = [c for c in crops if word in c.why]
        assert 1 <= len(found) <= n
        for crop in found:
            (rank,) = re.search(rf"(?:^|, )(?:(\d+)(?:st|nd|rd|th) )?{word}", crop.why).groups()
            assert crop.target == ("cell", ranked[int(rank or 1) - 1])
        assert found[0].target == ("cell", ranked[0])  # the first one is always shown
    rows = result.candidates[result.candidates["is_kept"]].set_index(["kind", "cell_id"])
    for crop in crops:
        (top, left), (bottom, right) = crop.box.start, crop.box.stop
        assert left <= crop.at[0] < right
        assert top <= crop.at[1] < bottom
        if crop.target is not None:
            assert crop.at == (int(rows.loc[crop.target, "centroid_x"]), int(rows.loc[crop.target, "centroid_y"]))
            assert f"{crop.target[0]} {crop.target[1]}: " in crop.text
            assert f"At x {crop.at[0]}, y {crop.at[1]}." in crop.text
    shown = [c.target for c in crops if c.target is not None]
    assert len(shown) == len(set(shown))


def test_ranks_are_english():
    told = {
        1: "",
        2: "2nd",
        3: "3rd",
        4: "4th",
        11: "11th",
        12: "12th",
        13: "13th",
        21: "21st",
        102: "102nd",
        111: "111th",
    }
    assert {k: _nth(k).strip() for k in told} == told


def test_what_a_crop_says_was_dropped_is_what_it_shows(path):
    text = path.read_text(encoding="utf-8")
    said = re.findall(r'aria-label="(?:Most|2nd most) dropped nearby: (\d+) dropped[^"]*">(.*?)</svg>', text, re.DOTALL)
    assert said
    assert all(int(n) == body.count(" dropped: ") for n, body in said)
    assert re.search(r"(?:L|l)argest cell: cell \d+: [\d.,]+ µm²", text)  # as the tiles and tables
    assert not re.search(r"(?:L|l)argest cell: cell \d+: [\d.,]+ px", text)


def test_least_overlap_is_a_criterion_where_nuclei_reach_out(tmp_path):
    nuclei, cells = np.zeros((2, 60, 60), np.uint32)
    nuclei[5:15, 5:15], cells[5:15, 5:15] = 1, 1
    nuclei[30:40, 30:40], cells[30:40, 31:50] = 2, 2
    from spatialdata.models import Labels2DModel

    labels = {n: Labels2DModel.parse(v, dims=("y", "x")) for n, v in (("n", nuclei), ("c", cells))}
    sdata = match_nuclei(sd.SpatialData(labels=labels), "n", "c", filtering_threshold_mask_matching=0.8, progress=False)
    crops = {c.why: c for c in worst_crops(find_result(sdata, "segmentation"), 1, 20)}
    assert crops["least overlap"].target == ("nucleus", 2)
    assert "90.0%" in crops["least overlap"].what
    page = Page(report(sdata, tmp_path / "matched.html"))  # no image, no record, other parameters
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    assert "The record of the run is not known" in "".join(page.text)


def test_names_from_outside_are_escaped(sdata, tmp_path):
    evil = "<script>alert(1)</script>"
    image = sdata["image"].assign_coords(c=[evil, '"><img src=x onerror=1>'])
    strange = segment(sd.SpatialData(images={"image": image}), "image", "dapi", progress=False, n_jobs=1)
    text = report(strange, tmp_path / "a.html", title=f"a & b {evil}", n_crops=1).read_text(encoding="utf-8")
    page = Page(tmp_path / "a.html")
    assert page.tags["script"] == 1
    assert "onerror=1>" not in text.replace("onerror=1&gt;", "")
    assert evil in "".join(page.text)
    assert all(a.startswith(("data:", "#")) for a in page.addresses)


def test_a_result_without_cells(tmp_path):
    empty = Tissue((80, 90), seed=1).to_spatialdata()
    segment(empty, "image", ThresholdNuclei(threshold=65_000), progress=False, n_jobs=1)
    page = Page(report(empty, tmp_path / "empty.html"))
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    text = "".join(page.text)
    assert "No object was kept" in text
    assert "Nothing was found, so there is nothing to match." in text
    for word in ("alone", "Yellow", "Magenta", "Dotted", "Density", "Click to enlarge", "which would hide it"):
        assert word not in text
    assert not page.tags["input"]


def test_a_mask_that_was_written_as_both(tmp_path):
    both = Tissue((80, 90), seed=1).to_spatialdata()
    flow = Workflow(nucleus=ThresholdNuclei(threshold="otsu", channels="DAPI"), duplicate_mask=True)
    segment(both, "image", flow, shard_size=50 * 50, progress=False, n_jobs=1)
    assert len(both.labels) == 2
    page = Page(report(both, tmp_path / "both.html", n_crops=1))
    assert "Mean intensities of the nuclei" in "".join(page.text)
    assert "The result has nuclei alone" in "".join(page.text)
    assert "Drawn at random: around nucleus" in "".join(page.text)


def test_a_volume_shows_planes(tmp_path):
    volume = Tissue((60, 40, 44), seed=1, cell_diameter=16).to_spatialdata()
    flow = Workflow(nucleus=ThresholdNuclei(threshold="otsu", channels="DAPI"), cell=ExpandNuclei(distance=2))
    segment(volume, "image", flow, shard_size=30 * 40 * 44, pixel_size=(2, 1, 1), progress=False, n_jobs=1)
    page = Page(report(volume, tmp_path / "volume.html", n_crops=1))
    text = "".join(page.text)
    assert "Plane 30 of 60" in text
    assert re.search(r"Seams along z: \d+\.\d+% there and \d+\.\d+% beside", text)
    assert "Seams along y and x" not in text
    assert re.search(r"At x \d+, y \d+, z \d+", text)
    assert "µm³" in text


def test_the_record_must_be_of_the_result(sdata, store):
    metadata = find_result(sdata, "segmentation").metadata
    assert read_record(sdata, "segmentation", metadata) is not None
    assert read_record(sdata, "segmentation", metadata | {"scale": "scale1"}) is None
    assert read_record(sdata, "other", metadata) is None


def test_the_record_lies_in_the_store_and_beside_a_scratch(tmp_path):
    Tissue((60, 70), seed=1).to_spatialdata().write(tmp_path / "a.zarr")
    backed = sd.read_zarr(tmp_path / "a.zarr")
    segment(backed, "image", ThresholdNuclei(threshold="otsu"), scratch=tmp_path / "s", progress=False, n_jobs=1)
    inside = (tmp_path / "a.zarr" / ".spatialdata_segment" / "segmentation.run.json").read_bytes()
    assert inside == (tmp_path / "s.run.json").read_bytes()
    again = sd.read_zarr(tmp_path / "a.zarr")
    assert find_result(again, "segmentation").record == find_result(backed, "segmentation").record == json.loads(inside)


@pytest.mark.parametrize("is_backed", [False, True], ids=["memory", "store"])
def test_the_record_is_written_with_the_object(tmp_path, is_backed):
    """Into another store; never into the elements, nor, of an object in a store, into any file beside the record."""
    sdata = Tissue((60, 70), seed=1).to_spatialdata()
    sdata.attrs["note"] = "mine"
    if is_backed:
        sdata.write(tmp_path / "a.zarr")
        sdata = sd.read_zarr(tmp_path / "a.zarr")
    shared = sdata.subset(["image"], filter_tables=False)
    root = {p: p.read_bytes() for p in (tmp_path / "a.zarr").glob("*") if p.name in (".zattrs", "zarr.json")}
    segment(sdata, "image", ThresholdNuclei(threshold="otsu"), shard_size=1300, progress=False, n_jobs=1)
    assert shared.attrs == {"note": "mine"}
    assert all(json.loads(p.read_bytes())["attributes"] == json.loads(b)["attributes"] for p, b in root.items())
    first = find_result(sdata, "segmentation").record
    sdata.write(tmp_path / "b.zarr")
    found = sd.read_zarr(tmp_path / "b.zarr")
    assert found.attrs["note"] == "mine"
    assert find_result(found, "segmentation").record == first
    assert not (tmp_path / "b.zarr" / ".spatialdata_segment").exists()
    assert np.prod(first["plan"]["cell"]["grid"]) > 1
    part = sd.bounding_box_query(found, ["x", "y"], [0, 0], [60, 50], target_coordinate_system="global")
    assert "segmentation" in part.attrs["spatialdata_segment"]
    assert find_result(part, "segmentation").record is None  # that of the whole is none of a part
    options = {"shard_size": 5000, "overwrite": True, "progress": False, "n_jobs": 1}
    segment(found, "image", ThresholdNuclei(threshold="otsu"), **options)
    again = sd.read_zarr(tmp_path / "b.zarr")  # its attrs still have the first run
    assert find_result(again, "segmentation").record["plan"]["cell"]["grid"] == [1, 1]


def test_of_several_images_each_has_its_own_stages():
    with of_image("a"), clock() as timed:
        emit(Event("shards", 0, 4))
        emit(Event("shards", 4, 4))
        with of_image("b"):
            emit(Event("shards", 1, 9))
            emit(Event("writing", 1, 1))
    assert [(s["stage"], s["tasks"]) for s in timed.seconds()] == [("shards", 4)]
    assert timed.peak() > 1e7


def test_pictures_full_of_detail_are_written():
    noise = np.random.default_rng(0).random((1400, 1400, 3), np.float32)
    for text in (jpeg(noise), figure_jpeg(lambda ax: ax.imshow(noise, aspect="auto"), "noise", (1400, 1400), 1400)):
        found = re.search(r"base64,([A-Za-z0-9+/=]+)", text).group(1)
        assert Image.open(BytesIO(base64.b64decode(found))).size == (1400, 1400)


def test_every_reason_has_a_meaning_and_a_colour():
    assert set(WHY) == set(REASON_COLORS) == set(REASONS) - {""}


def test_of_nuclei_alone_nothing_is_said_of_cells(tmp_path):
    alone = Tissue((90, 100), seed=1, cell_diameter=18).to_spatialdata()
    segment(alone, "image", ThresholdNuclei(threshold="otsu"), progress=False, n_jobs=1)  # a method makes cells
    flow = Workflow(nucleus=ThresholdNuclei(threshold="otsu"))
    segment(alone, "image", flow, key_added="n", progress=False, n_jobs=1)
    cells, nuclei = ("".join(Page(report(alone, tmp_path / f"{k}.html", key=k)).text) for k in ("segmentation", "n"))
    for text, mine, others in ((cells, "Magenta: cells.", "Yellow"), (nuclei, "Yellow: nuclei.", "Magenta")):
        assert text.count(mine) == 2
        assert others not in text
        assert "Dotted" not in text
    assert "Mean intensities of the nuclei" in nuclei
    assert "Density of the kept nuclei" in nuclei
    assert "of the cells" not in nuclei


def test_the_bounds_of_a_filter_are_named_where_it_acted(page):
    assert "Dotted: bounds of the size filter." in "".join(page.text)


def test_what_a_later_run_replaced_is_no_failure(tmp_path):
    fine = Tissue((150, 160), seed=4, cell_diameter=20).to_spatialdata()
    first, second = (
        Workflow(nucleus=ThresholdNuclei(threshold="otsu", sigma=k), cell=ExpandNuclei(distance=2)) for k in (1, 2)
    )
    segment(fine, "image", first, progress=False, n_jobs=1)
    for flow, box in ((second, (0, 0, 90, 90)), (first, (60, 60, 150, 150))):
        resegment(fine, "image", flow, bounding_box=box, progress=False, n_jobs=1)
    rows = fine["segmentation_candidates"].obs
    gone = rows["drop_reason"] == "replaced"
    assert gone.sum() > 20
    path = report(fine, tmp_path / "again.html", n_crops=2)
    page, text = Page(path), path.read_text(encoding="utf-8")
    candidates = next({row[0]: row[1:] for row in t} for t in page.tables if t[1][0] == "found")
    now = rows[~gone]
    assert [int(n) for n in candidates["found"]] == [(now["kind"] == m).sum() for m in ("nucleus", "cell")]
    assert "replaced" not in "".join(page.tables[1][0])
    assert "dropped: replaced" not in text
    assert ">replaced<" not in text
    said = "".join(page.text)
    assert "as replaced" not in said
    updates = json.loads(fine["segmentation_table"].uns["segmentation"])["updates"]
    went, came = (sum(u["counts"]["cell"][n] for u in updates) for n in ("replaced", "kept"))
    assert f"Segmented again: 2 regions, in which {went} cells went and {came} came." in said
    assert "and 2 regions of it again later" in said
    changes = next(t for t in page.tables if t[0] == ["run", "name", "here", "first run"])
    assert changes[1:] == [["1", "workflow.nucleus.sigma", "2", "1"]]
    assert not [row for t in page.tables for row in t if any("{" in cell for cell in row)]  # no repr


def test_a_cell_of_empty_ground_is_named(tmp_path):
    """As a watershed from debris fills it: the largest cell of all, and dark."""
    truth, rng = np.zeros((160, 200), np.uint32), np.random.default_rng(0)
    for k in range(20):
        y, x = 30 * (k // 5), 24 * (k % 5)
        truth[y + 4 : y + 24, x + 4 : x + 22] = k + 1
    truth[20:90, 130:190] = 21
    nuclei = np.zeros_like(truth)
    for k in range(20):
        y, x = 30 * (k // 5), 24 * (k % 5)
        nuclei[y + 8 : y + 20, x + 8 : x + 18] = k + 1
    nuclei[50:53, 150:153] = 21
    image = rng.poisson(4.0, (2, *truth.shape)) + np.stack([nuclei > 0, (truth > 0) & (truth < 21)]) * 60
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=["DAPI", "WGA"])})
    segment(sdata, "image", _drawn, channels=["WGA"], key_added="cells", progress=False, n_jobs=1)
    assert find_result(sdata, "cells").metadata["channels"] == {"cell": ["WGA"]}
    text = "".join(Page(report(sdata, tmp_path / "cells.html", key="cells", n_crops=1)).text)
    named = re.search(r"1 cell of (\d+) \(id (\d+)\) is as dark in WGA as the ground", text)
    largest = sdata["cells_table"].obs.sort_values("area").iloc[-1]
    assert [int(g) for g in named.groups()] == [21, largest["cell_id"]]
    assert f"Stain of the ground, largest cell: cell {largest['cell_id']}: mean WGA" in text
    assert "around a speck" not in text


def _drawn(image):
    """Two regions of 160 x 200: cells where WGA is, and a box of nothing."""
    from scipy.ndimage import label, uniform_filter

    labels, n = label(uniform_filter(image[0].astype(float), 3) > 30)
    labels[20:90, 130:190] = n + 1
    return labels.astype(np.uint32)


def _table(n, area, nucleus, means, extra=()):
    obs = pd.DataFrame({"cell_id": np.arange(1, n + 1), "area": area, "nucleus_area": nucleus, "n_nuclei": 1})
    table = AnnData(np.asarray(means, np.float32), obs=obs.set_index(obs["cell_id"].astype(str)))
    table.var_names = ["WGA"]
    table.uns.update({name: {} for name in extra})
    return SimpleNamespace(table=table, main="cell", metadata={"channels": {"cell": ["WGA"]}})


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(10, 40),
    ground=st.floats(0, 50),
    gain=st.floats(20, 500),
    faint=st.sets(st.integers(0, 39), max_size=3),
    specks=st.sets(st.integers(0, 39), max_size=3),
    sparse=st.booleans(),
)
def test_the_rules_find_those_cells_alone(n, ground, gain, faint, specks, sparse):
    faint, specks = {i for i in faint if i < n}, {i for i in specks if i < n}
    area = np.arange(400, 400 + n)
    means = np.array([ground + gain * (0.05 if i in faint else 1 + 0.01 * i) for i in range(n)])[:, None]
    result = _table(n, area, [9 if i in specks else 150 for i in range(n)], means)
    if sparse:
        result.table.X = csr_matrix(result.table.X)
    found = {d.why: d for d in doubts(result, {"WGA": ground})}
    expected = {"stain of the ground": faint, "nucleus a speck": specks}
    assert {w: set(d.ids) for w, d in found.items()} == {w: {i + 1 for i in v} for w, v in expected.items() if v}
    for doubt in found.values():
        assert list(doubt.ids) == sorted(doubt.ids, reverse=True)  # the largest first
        assert len(doubt.what) == len(doubt.ids)
        assert f"{len(doubt.ids)} cell{'s' if len(doubt.ids) > 1 else ''} of {n}" in doubt.remark


def test_the_rules_are_silent_where_they_say_nothing():
    faint = np.r_[[3.0] * 2, [50.0] * 18][:, None]
    assert len(doubts(_table(20, 500, 150, faint), {"WGA": 2.0})) == 1
    assert not doubts(_table(20, 500, 150, faint), {})  # the channel is not shown
    assert not doubts(_table(20, 500, 150, faint), {"WGA": 90.0})  # the stain is not of the cells
    assert not doubts(_table(20, 500, 150, faint, ["log1p"]), {"WGA": 2.0})  # X was changed
    assert not doubts(_table(9, 500, 150, faint[:9]), {"WGA": 2.0})  # too few for a median
    assert not doubts(_table(20, [100] * 2 + [500] * 18, [9] * 2 + [45] * 18, faint + 20), {"WGA": 2.0})


def test_a_report_is_no_folder_and_leaves_none_behind(sdata, store, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    with pytest.raises(
        InputError, match=r"the report .*there is a folder: expected the name of a file, such as .*html"
    ):
        report(sdata, tmp_path / "there")
    assert main(["run", str(store), "--overwrite", "--report", str(tmp_path / "there")]) == 2
    assert "--report" in (said := capsys.readouterr().err)
    assert "is a folder" in said

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        report(sdata, tmp_path / "a.html", n_crops=1)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "no"}, MissingError, "no segmentation 'no'"),
        ({"image_key": "no"}, MissingError, "no image 'no'"),
        ({"channels": ["CD3"]}, MissingError, "no channel 'CD3'"),
        ({"n_crops": 0}, InputError, "n_crops=0, expected a whole number from 1 to 24"),
        ({"crop_size": 5}, InputError, "crop_size=5, expected a whole number of px"),
        ({"path": "nowhere/report.html"}, InputError, "the folder nowhere of the report is not there"),
    ],
)
def test_wrong_input_is_told(sdata, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        report(sdata, **{"path": tmp_path / "a.html"} | options)
    assert not list(tmp_path.iterdir())


def test_a_result_without_tables(tmp_path):
    bare = Tissue((80, 90), seed=1).to_spatialdata()
    segment(bare, "image", ThresholdNuclei(threshold="otsu"), table=False, progress=False, n_jobs=1)
    with pytest.raises(MissingError, match="no table segmentation_candidates"):
        report(bare, tmp_path / "a.html")


def test_the_command(store, path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(store), "--output", "r.html"]) == 0
    assert capsys.readouterr().out == "r.html\n"
    assert (tmp_path / "r.html").read_bytes() == path.read_bytes()
    options = [
        "--image",
        "image",
        "--key",
        "segmentation",
        "--channels",
        "WGA,DAPI",
        "--n-crops",
        "1",
        "--crop-size",
        "64",
    ]
    assert main(["report", str(store), *options, "--title", "mine", "--seed", "3"]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>mine</h1>" in text
    assert "channels shown: WGA, DAPI" in text
    first = re.findall(r'class="crop" viewBox="([^"]*)"', text)[0]
    assert first.endswith(" 64 64")
    assert first.split()[:2] != re.findall(r'class="crop" viewBox="([^"]*)"', path.read_text("utf-8"))[0].split()[:2]
    assert main(["report", str(store), "--key", "no"]) == 2
    assert "no segmentation 'no'" in capsys.readouterr().err


def test_run_offers_a_report_and_writes_one(store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Tissue((80, 90), seed=1).to_spatialdata().write("b.zarr")
    run = ["run", "b.zarr", "--n-jobs", "1", "--quiet"]
    assert main([*run, "--key-added", "mine"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "to look at it: spatialdata-segment report b.zarr --key mine"
    assert main([*run, "--report", "r.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "r.html"
    assert [i for i in Page(tmp_path / "r.html").ids if i in SECTIONS] == SECTIONS
    for more, message in (
        (["--report", "no/r.html"], "the folder no of --report is not there"),
        (["--report", "r.html", "--no-table"], "a report is made of the tables"),
        (["--report", "r.html", "--image", "image", "--image", "other"], "--report r.html of several images"),
    ):
        assert main([*run, "--overwrite", *more]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def shown(path, tmp_path_factory):
    """The page as a browser has it after a click, and pictures of it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH")
    folder = tmp_path_factory.mktemp("browser")
    text = path.read_text(encoding="utf-8")
    script = """
      const said = {};
      window.onerror = (e) => { said.error = String(e); };
      const first = document.querySelector("button.zoom");
      said.wide = document.documentElement.scrollWidth <= window.innerWidth;
      said.images = [...document.images].every((i) => i.complete && i.naturalWidth > 0);
      said.charts = [...document.querySelectorAll("svg.chart")].every((s) => s.getBoundingClientRect().height > 50);
      const cell = document.querySelector(".o-cell");
      const box = document.querySelector("input[value=cell]");
      said.before = getComputedStyle(cell).display;
      box.click();
      said.after = getComputedStyle(cell).display;
      first.click();
      const stage = document.getElementById("stage");
      said.open = document.getElementById("view").open;
      stage.dispatchEvent(new WheelEvent("wheel", {deltaY: -300, clientX: 300, clientY: 300, cancelable: true}));
      said.zoomed = stage.firstElementChild.style.transform;
      document.getElementById("whole").click();
      said.whole = stage.firstElementChild.style.transform;
      document.getElementById("close").click();
      said.closed = !document.getElementById("view").open;
      document.body.setAttribute("data-said", JSON.stringify(said));
    """
    (folder / "page.html").write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    shutil.copy(path, folder / "plain.html")
    common = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/p",
    ]

    def run(*arguments):
        done = subprocess.run([*common, *arguments], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    dom = run("--window-size=420,900", "--dump-dom", (folder / "page.html").as_uri())
    run("--window-size=1000,700", f"--screenshot={folder}/a.png", (folder / "plain.html").as_uri())
    dark = "--blink-settings=preferredColorScheme=0"
    run("--window-size=1000,700", dark, f"--screenshot={folder}/b.png", (folder / "plain.html").as_uri())
    said = json.loads(re.search(r'data-said="([^"]*)"', dom).group(1).replace("&quot;", '"'))
    return said, *(np.asarray(Image.open(folder / f"{n}.png").convert("RGB")) for n in "ab")


def test_a_browser_shows_it(shown):
    said, light, dark = shown
    assert "error" not in said
    assert said["wide"]  # nothing sticks out of a narrow window
    assert said["images"]
    assert said["charts"]
    assert said["before"] != "none"
    assert said["after"] == "none"
    assert said["open"]
    assert said["closed"]
    assert re.search(r"scale\(2\.7", said["zoomed"])  # e
    assert said["whole"] == "translate(0px, 0px) scale(1)"
    assert light[5, 5].tolist() == [255, 255, 255]
    assert dark[5, 5].tolist() == [0x14, 0x17, 0x1B]
