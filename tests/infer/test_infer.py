"""`infer`: formats, folders that are gone on with, settings, and mistakes that leave nothing behind."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pytest
import spatialdata as sd
import tifffile
from PIL import Image

from spatialdata_segment import polygons_to_labels
from spatialdata_segment._infer import folder as folders
from spatialdata_segment._infer import he, models, run
from spatialdata_segment.cli import main
from spatialdata_segment.errors import MissingError
from spatialdata_segment.methods.cellpose.method import Cellpose
from spatialdata_segment.methods.threshold import ThresholdNuclei

pytestmark = pytest.mark.filterwarnings("ignore")

DAPI = "--model-type", "dapi", "--n-jobs", "1", "--quiet"


def infer(*arguments):
    return main(["infer", *map(str, arguments)])


def metadata_of(folder):
    return json.loads((folder / "metadata.json").read_text())


def labels_in(folder):
    frame = gpd.read_parquet(folder / "polygons.parquet")
    return np.asarray(polygons_to_labels(frame, metadata_of(folder)["image-shape"]))


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_every_format_holds_the_same_cells(image, tissue, tmp_path):
    from spatialdata_segment.formats import read_polygons

    out = tmp_path / "out"
    options = ["--channels", "1", "--pixel-size", "0.5", "--format", "sdata,geojson,imagej,tiff,npy"]
    assert infer("--image-path", image, "--output-dir", out, *DAPI, *options) == 0
    labels = labels_in(out)
    assert labels.max() > 5
    written = ["labels.tif", "polygons.geojson", "polygons.parquet", "rois.zip", "sdata.zarr", "slide_seg.npy"]
    assert names_in(out) == ["labels.tif", "metadata.json", *written[1:]]
    assert metadata_of(out)["files"] == written
    sdata = sd.read_zarr(out / "sdata.zarr")
    assert np.array_equal(sdata["image"], tissue[::-1])
    assert np.array_equal(sdata["segmentation_nucleus_labels"], labels)
    assert len(sdata["segmentation_table"]) == labels.max()
    assert np.allclose(sdata["segmentation_table"].obs["area_um2"], sdata["segmentation_table"].obs["area"] / 4)
    assert np.array_equal(tifffile.imread(out / "labels.tif"), labels)
    assert tifffile.imread(out / "labels.tif").dtype == np.uint32
    assert np.array_equal(np.load(out / "slide_seg.npy", allow_pickle=True).item()["masks"], labels)
    for name in ("polygons.geojson", "rois.zip"):
        assert np.array_equal(polygons_to_labels(read_polygons(out / name), labels.shape), labels)
    areas = [
        f["properties"]["measurements"]["area"] for f in json.loads((out / "polygons.geojson").read_text())["features"]
    ]
    assert areas == np.bincount(labels.ravel())[1:].tolist()
    # again, with less: what is of the earlier result goes
    assert infer("--image-path", image, "--output-dir", out, *DAPI, "--channels", "1", "--overwrite") == 0
    assert names_in(out) == ["metadata.json", "polygons.parquet"]


def test_without_the_image(image, tmp_path):
    out = tmp_path / "out"
    options = ["--channels", "1", "--format", "sdata", "--no-image"]
    assert infer("--image-path", image, "--output-dir", out, *DAPI, *options) == 0
    sdata = sd.read_zarr(out / "sdata.zarr")
    assert not sdata.images
    assert sdata["segmentation_nucleus_labels"].shape == (90, 110)


def test_what_is_read_by_rows_gives_the_same(image, tissue, tmp_path, monkeypatch):
    """Strips are written as chunks first; the cells are the same, and nothing of it is left."""
    from spatialdata_segment._images import series

    tifffile.imwrite(
        tmp_path / "strips.tif", tissue[::-1], rowsperstrip=8, photometric="minisblack", compression="zlib"
    )
    monkeypatch.setattr(series, "SMALL", 0)
    options = ["--channels", "1", "--format", "sdata", "--no-image"]
    assert infer("--image-path", tmp_path / "strips.tif", "--output-dir", tmp_path / "a", *DAPI, *options) == 0
    assert infer("--image-path", image, "--output-dir", tmp_path / "b", *DAPI, *options) == 0
    assert np.array_equal(labels_in(tmp_path / "a"), labels_in(tmp_path / "b"))
    assert not sd.read_zarr(tmp_path / "a/sdata.zarr").images


def test_a_run_is_repeated_from_its_metadata(image, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    options = ["--channels", "1", "--bounding-box", "20,10,80,70", "--pixel-size", "0.5"]
    assert infer("--image-path", image, "--output-dir", a, *DAPI, *options) == 0
    assert infer("--image-path", image, "--output-dir", b, "--config-file", a / "metadata.json", "--quiet") == 0
    assert (a / "polygons.parquet").read_bytes() == (b / "polygons.parquet").read_bytes()
    assert metadata_of(a) == metadata_of(b)
    inside = labels_in(a)
    assert inside.any()
    assert metadata_of(a)["configuration"]["bounding_box"] == [20, 10, 80, 70]
    assert infer("--image-path", image, "--config-file", a / "metadata.json", *DAPI) == 2


def test_a_workflow_file_of_two_masks(image, tmp_path):
    flow = "nucleus: {method: threshold-nuclei, channels: [1]}\ncell: {method: expand-nuclei, distance: 3}\n"
    (tmp_path / "flow.yaml").write_text(flow)
    out = tmp_path / "out"
    assert infer("--image-path", image, "--output-dir", out, "--config-file", tmp_path / "flow.yaml", "--quiet") == 0
    assert names_in(out) == ["metadata.json", "nucleus_polygons.parquet", "polygons.parquet"]
    cells = labels_in(out)
    frame = gpd.read_parquet(out / "nucleus_polygons.parquet")
    nuclei = np.asarray(polygons_to_labels(frame, cells.shape))
    assert np.array_equal(cells[nuclei > 0], nuclei[nuclei > 0])
    assert (cells > 0).sum() > (nuclei > 0).sum()


def test_pages_and_planes(tissue, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "s.tif", np.stack([tissue[0], tissue[0][::-1]]), imagej=True, metadata={"axes": "ZYX"})
    assert infer("--image-path", tmp_path / "s.tif", *DAPI) == 2
    assert "2 planes (Z 2, Y 90, X 110): pick one with" in capsys.readouterr().err
    out = tmp_path / "out"
    assert infer("--image-path", tmp_path / "s.tif", "--page", "1", "--z-index", "7", "--output-dir", out, *DAPI) == 0
    assert (metadata_of(out)["page"], metadata_of(out)["z_index"]) == (1, 7)
    tifffile.imwrite(tmp_path / "p.tif", tissue[0][::-1])
    assert infer("--image-path", tmp_path / "p.tif", "--output-dir", tmp_path / "p", *DAPI) == 0
    assert np.array_equal(labels_in(out), labels_in(tmp_path / "p"))


def test_an_image_without_cells(tmp_path, capsys):
    Image.fromarray(np.full((70, 80), 9, np.uint8)).save(tmp_path / "dark.png")
    out = tmp_path / "out"
    options = ["--format", "sdata,geojson,imagej,tiff,npy"]
    assert infer("--image-path", tmp_path / "dark.png", "--output-dir", out, *DAPI, *options) == 0
    assert metadata_of(out)["n-cells"] == 0
    assert len(gpd.read_parquet(out / "polygons.parquet")) == 0
    assert not labels_in(out).any()
    assert "0 cells" in capsys.readouterr().out


class TestFolder:
    def test_planes_that_were_given_stay(self, folder, tmp_path, capsys):
        out = tmp_path / "planes_results"
        assert infer("--image-dir", folder, *DAPI) == 0
        configs = out / "configs.yml"
        configs.write_text(configs.read_text().replace("null", "5", 1))
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
        Image.fromarray(np.asarray(Image.open(folder / "plane1.png"))).save(folder / "plane3.png")
        capsys.readouterr()
        assert infer("--image-dir", folder, *DAPI) == 0
        said = capsys.readouterr().out
        assert said.count("done before") == 3
        assert "[3/4] plane3: " in said
        assert {p: p.stat().st_mtime_ns for p in before} == before
        assert folders.planes(configs) == {"plane1": 5, "plane2": None, "plane3": None, "plane10": None}

    def test_a_changed_image_or_setting_is_no_result_of_before(self, folder, tmp_path, capsys):
        (folder / "plane10.png").unlink()
        assert infer("--image-dir", folder, *DAPI) == 0
        capsys.readouterr()
        assert infer("--image-dir", folder, *DAPI, "--pixel-size", "0.5") == 2
        assert capsys.readouterr().err.count("--overwrite") == 2
        assert infer("--image-dir", folder, *DAPI, "--pixel-size", "0.5", "--overwrite") == 0
        assert metadata_of(tmp_path / "planes_results/plane1")["pixel-size"] == 0.5

    def test_a_stopped_run_goes_on(self, folder, tmp_path, monkeypatch, capsys):
        calls = []

        def stopping(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return segment(*args, **kwargs)

        segment = run.segment
        monkeypatch.setattr(run, "segment", stopping)
        assert infer("--image-dir", folder, *DAPI) == 130
        out = tmp_path / "planes_results"
        assert names_in(out) == ["plane1"]
        assert infer("--image-dir", folder, *DAPI) == 0
        assert len(calls) == 4
        assert "[1/3] plane1: done before" in capsys.readouterr().out

    def test_side_by_side_is_one_after_the_other(self, folder, tmp_path):
        """Images of one shard run on a thread each; those of several have all threads, one at a time."""
        (folder / "plane10.png").unlink()
        options = ["--image-dir", folder, "--model-type", "dapi", "--quiet"]
        assert infer(*options, "--n-jobs", "2", "--output-dir", tmp_path / "a") == 0
        assert infer(*options, "--n-jobs", "2", "--shard-size", "5000", "--output-dir", tmp_path / "b") == 0
        for name in ("plane1", "plane2"):
            a, b = (tmp_path / k / name / "polygons.parquet" for k in "ab")
            assert a.read_bytes() == b.read_bytes()

    def test_images_that_fail_lose_no_other(self, folder, tmp_path, capsys):
        (folder / "plane2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
        assert infer("--image-dir", folder, *DAPI, "--json") == 2
        told = capsys.readouterr()
        found = json.loads(told.out)["result"]["images"]
        assert found["plane1"]["cells"] > 5
        assert "cannot be read as a picture" in found["plane2"]["error"]
        assert "1 of 3 images failed: plane2: InputError" in told.err
        assert "Traceback" not in told.err
        assert names_in(tmp_path / "planes_results") == ["configs.yml", "plane1", "plane10"]

    def test_names(self, folder):
        for name in ("plane1.tif", "other.ome.tif", "x.zarr", ".hidden.png"):
            (folder / name).mkdir() if name.endswith(".zarr") else (folder / name).write_bytes(b"")
        found = folders.find_images(folder)
        assert list(found) == ["other", "plane1.png", "plane1.tif", "plane2", "plane10", "x"]
        assert list(folders.find_images(folder, "tiff")) == ["other", "plane1"]


def test_what_failed_late_is_not_computed_again(image, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    segment, write_files = run.segment, run.write_files

    def failing(*args):
        write_files(*args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_files", failing)
    monkeypatch.setattr(run, "segment", lambda *a, **k: calls.append(1) or segment(*a, **k))
    options = ["--image-path", image, "--output-dir", out, *DAPI, "--channels", "1"]
    assert infer(*options) == 2
    assert names_in(out) == [".spatialdata_segment_infer"]
    monkeypatch.setattr(run, "write_files", write_files)
    assert infer(*options) == 0
    assert names_in(out) == ["metadata.json", "polygons.parquet"]
    assert len(calls) == 1


class TestHE:
    """Routes in their fixed order, each where what comes before it lacks something."""

    @pytest.fixture
    def picture(self, tissue, tmp_path):
        """Blue nuclei on pink."""
        stain = (tissue[0] / tissue[0].max())[..., None]
        colours = 255 * np.exp(-stain * [1.2, 1.4, 0.6]) * [1, 0.85, 0.95]
        Image.fromarray(colours.astype(np.uint8)).save(tmp_path / "he.png")
        return tmp_path / "he.png"

    @pytest.fixture
    def lacking(self, monkeypatch):
        def lack(*names):
            for name in ("cellpose", "stardist", "torch"):
                monkeypatch.setattr(he, f"_lacks_{name}", lambda n=name: f"{n} is gone" if n in names else None)

        return lack

    def test_order(self, lacking, monkeypatch):
        monkeypatch.setattr(he, "StarDist", lambda name: name)
        lacking()
        assert he.find_route().method == Cellpose("cpsam")
        lacking("cellpose")
        assert he.find_route().method == "2D_versatile_he"
        lacking("cellpose", "stardist")
        assert he.find_route().method == Cellpose("nuclei-small", channels=("haematoxylin",))
        lacking("cellpose", "stardist", "torch")
        route = he.find_route()
        assert route.method == ThresholdNuclei(channels=("haematoxylin",))
        assert "cpsam of Cellpose 4: cellpose is gone; 2D_versatile_he of StarDist: stardist is gone" in route.note

    def test_the_last_one_needs_no_torch(self, monkeypatch):
        def missing(*_):
            raise MissingError("torch is needed")

        monkeypatch.setattr(models, "require", missing)
        models.fetch(models.Model("he", ThresholdNuclei(channels=("haematoxylin",))), progress=False)
        with pytest.raises(MissingError, match=r"^--model-type \S+: torch .* Without it --model-type dapi segments"):
            models.fetch(models.Model("nuclei-small", Cellpose("nuclei-small")), progress=False)

    def test_is_told(self, picture, tmp_path, lacking, capsys):
        lacking("cellpose", "stardist", "torch")
        out = tmp_path / "out"
        options = ["--model-type", "he2", "--channels", "0,1,2", "--output-dir", out, "--quiet"]
        assert infer("--image-path", picture, *options) == 0
        said = capsys.readouterr().out
        assert said.startswith("he2: its weights are proprietary; segmented by ThresholdNuclei on the haematoxylin")
        metadata = metadata_of(out)
        assert (metadata["model-type"], metadata["channels"]) == ("he2", {"cell": ["haematoxylin"]})
        assert metadata["note"] in said
        assert metadata["n-cells"] > 5

    def test_needs_three_channels(self, image, lacking, capsys):
        lacking("cellpose", "stardist", "torch")
        assert infer("--image-path", image, "--model-type", "he", "--quiet") == 2
        assert "of exactly R, G and B" in capsys.readouterr().err
        lacking("cellpose", "stardist", "torch")
        assert infer("--image-path", image, "--model-type", "he", "--scale", "2", "--quiet") == 2
        assert "rescale: settings of Cellpose" in capsys.readouterr().err


MISTAKES = {
    "no image": (["--image-path", "{dir}/none.tif"], "there is no image"),
    "no folder": (["--image-dir", "{dir}/none"], "there is no folder"),
    "nothing in the folder": (["--image-dir", "{dir}/empty"], "no image in"),
    "no such model": (["--image-path", "{image}", "--model-type", "cyto9"], "no model type 'cyto9': known are he, he2"),
    "no such channel": (["--image-path", "{image}", "--channels", "7"], "no channel 7; expected 0 to 1"),
    "no such page": (["--image-path", "{image}", "--page", "9"], "--page 9 is not in"),
    "no such weights": (["--image-path", "{image}", "--model-path", "{dir}/none"], "no file"),
    "a size model alone": (["--image-path", "{image}", "--size-model-path", "x.npy"], "without --model-path"),
    "no such configuration": (["--image-path", "{image}", "--config-file", "{dir}/none.yaml"], "is not there"),
    "a plane of a folder": (["--image-dir", "{dir}/empty", "--z-index", "3"], "edit configs.yml"),
    "no image of no store": (["--image-path", "{image}", "--no-image"], "without --format sdata"),
    "a file for a folder": (["--image-path", "{image}", "--output-dir", "{image}"], "a file is in the way"),
    "another type": (["--image-path", "{image}", "--image-type", "zarr"], "cannot be read as Zarr"),
    "settings of another method": (["--image-path", "{image}", "--scale", "2"], "dapi is no model of Cellpose"),
    "negative size": (["--image-path", "{image}", "--pixel-size", "-1"], "--pixel-size -1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_leave_nothing(case, image, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments, expected = MISTAKES[case]
    arguments = [a.format(dir=tmp_path, image=image) for a in arguments]
    arguments += [] if {"--model-type", "--model-path"} & set(arguments) else ["--model-type", "dapi"]
    before = sorted(tmp_path.rglob("*"))
    assert infer(*arguments, "--quiet") == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.startswith("spatialdata-segment: error: ")
    assert "Traceback" not in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_channels_must_be_named_where_there_are_too_many(tissue, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate([tissue, tissue]), photometric="minisblack")
    assert infer("--image-path", tmp_path / "a.tif", "--model-type", "nuclei-small", "--quiet") == 2
    assert "4 channels (0: 0, 1: 1, 2: 2, 3: 3), and nuclei-small takes 1: say which" in capsys.readouterr().err


def test_a_spoilt_tile_is_told(image, tmp_path, capsys):
    with tifffile.TiffFile(image) as tif:
        offset, count = tif.pages[1].dataoffsets[5], tif.pages[1].databytecounts[5]
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)
    assert infer("--image-path", image, "--output-dir", tmp_path / "out", *DAPI, "--channels", "1") == 2
    said = capsys.readouterr().err
    assert "slide.tif" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--format", "pdf"], ["--channels", "1,,2"], ["--image-type", "gif"]])
def test_values_that_options_do_not_take(image, option, capsys):
    with pytest.raises(SystemExit) as end:
        infer("--image-path", image, *option)
    assert end.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_options_of_a_file(image, tmp_path, capsys):
    """The command line goes before the file; what says the same as the usual is no matter."""
    flow = "nucleus: {method: threshold-nuclei}\n"
    flow += "options: {channels: [1], pixel_size: 0.5, shard_size: 5000, table: true, progress: false}\n"
    (tmp_path / "flow.yaml").write_text(flow)
    options = ["--image-path", image, "--config-file", tmp_path / "flow.yaml", "--quiet"]
    assert infer(*options, "--output-dir", tmp_path / "a") == 0
    assert not capsys.readouterr().err
    assert infer("--image-path", image, "--channels", "1", *DAPI, "--output-dir", tmp_path / "b") == 0
    assert np.array_equal(labels_in(tmp_path / "a"), labels_in(tmp_path / "b"))
    assert metadata_of(tmp_path / "a")["pixel-size"] == 0.5
    assert infer(*options, "--pixel-size", "2", "--channels", "0", "--output-dir", tmp_path / "c") == 0
    assert metadata_of(tmp_path / "c")["pixel-size"] == 2
    assert metadata_of(tmp_path / "c")["channels"] == {"nucleus": ["0"]}


class TestDryRun:
    def test_an_image(self, folder, tmp_path, capsys):
        before = sorted(tmp_path.rglob("*"))
        path, output = folder / "plane1.png", tmp_path / "out"
        assert infer("--image-path", path, "--output-dir", output, "--dry-run", "--json", *DAPI) == 0
        (plan,) = json.loads(capsys.readouterr().out)["result"]["plans"]
        assert plan["of"] == str(output)
        assert plan["masks"]["nucleus"]["n_shards"] == 1
        assert sorted(tmp_path.rglob("*")) == before
        assert infer("--image-path", path, "--output-dir", output, "--dry-run", "--pixel-size", "0", *DAPI) == 2
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_folder(self, folder, tmp_path, capsys):
        (folder / "broken.png").write_bytes(b"no picture")
        before = sorted(tmp_path.rglob("*"))
        assert infer("--image-dir", folder, "--dry-run", *DAPI) == 2
        out, err = capsys.readouterr()
        assert out.count("1 shards of") == 3
        assert "broken" in err
        assert sorted(tmp_path.rglob("*")) == before
