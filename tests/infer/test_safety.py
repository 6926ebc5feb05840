"""`infer` replaces and removes nothing but results, and tells what it would misread; nothing is segmented here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import yaml
import zarr

from spatialdata_segment._images import read_image
from spatialdata_segment._infer import command, folder, outputs
from spatialdata_segment._infer.folder import find_images, planes, write_planes
from spatialdata_segment._infer.models import Model, find_model
from spatialdata_segment._infer.outputs import FILES, METADATA, NUCLEI, POLYGONS, Output, check_free, written_before
from spatialdata_segment._infer.run import Job
from spatialdata_segment._infer.settings import Settings, settings_of
from spatialdata_segment._journal import DOT
from spatialdata_segment.cli import main
from spatialdata_segment.config import Workflow, as_workflow
from spatialdata_segment.errors import ExistsError, InputError, SegmentationWarning
from spatialdata_segment.methods.cellpose.method import Cellpose

FORMATS = "sdata,geojson,imagej,tiff,npy"


def infer(*arguments):
    return main(["infer", *map(str, arguments), "--model-type", "dapi", "--quiet"])


@pytest.fixture
def picture(tmp_path):
    """A small TIFF of two channels."""
    pixels = np.arange(800, dtype=np.uint16).reshape(2, 20, 20)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack")
    return tmp_path / "a.tif"


def contents(path):
    return {p: p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


class TestNothingElseIsReplaced:
    @pytest.mark.parametrize("name", [POLYGONS, METADATA, "a_seg.npy", *FILES.values()])
    def test_a_file_that_is_there(self, picture, tmp_path, capsys, name):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("{}")
        before = contents(tmp_path)
        assert infer("--image-path", picture, "--output-dir", tmp_path / "out", "--format", FORMATS) == 2
        told = capsys.readouterr().err
        assert f"has {name} already: pass --overwrite" in told
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
    def test_the_image_itself(self, picture, tmp_path, capsys, overwrite):
        image = picture.rename(tmp_path / "labels.tif")
        before = contents(tmp_path)
        options = ["--image-path", image, "--output-dir", tmp_path, "--format", "tiff", *overwrite]
        assert infer(*options) == 2
        assert "labels.tif is the image, and a result would replace it" in capsys.readouterr().err
        assert contents(tmp_path) == before

    def test_the_image_of_an_earlier_result(self, picture, tmp_path):
        """What is not written again would be removed, and it is the image, or the image lies in it."""
        image = picture.rename(tmp_path / "labels.tif")
        (tmp_path / METADATA).write_text(json.dumps({"files": ["labels.tif", "sdata.zarr"]}))
        with pytest.raises(InputError, match="is the image"):
            check_free(tmp_path, {POLYGONS}, image, overwrite=True)
        (tmp_path / "sdata.zarr/images/image").mkdir(parents=True)
        with pytest.raises(InputError, match=r"sdata\.zarr is the image"):
            check_free(tmp_path, {POLYGONS}, tmp_path / "sdata.zarr/images/image", overwrite=True)
        other = tmp_path / "other.tif"
        other.touch()
        check_free(tmp_path, {POLYGONS}, other, overwrite=True)

    def test_names_are_those_of_what_is_written(self, picture):
        one = Job.of(picture, Settings(Model("dapi", as_workflow("dapi"))))
        assert one.names == {POLYGONS}
        flow = Workflow(nucleus={"method": "threshold-nuclei"}, cell={"method": "expand-nuclei"})
        every = Job.of(picture, Settings(Model("flow", flow), formats=tuple(FORMATS.split(","))))
        assert every.names == {POLYGONS, NUCLEI, "a_seg.npy", *FILES.values()}

    def test_what_a_killed_run_wrote_is_no_obstacle(self, picture, tmp_path):
        """Killed between the files and the metadata: the next run needs no --overwrite, and leaves nothing behind."""
        out = tmp_path / "out"
        out.mkdir()
        (out / "rois.zip").write_text("of an earlier result")
        first = Output(out, {"a": 1}).__enter__()
        (first.new / POLYGONS).write_text("new")
        with pytest.raises(TypeError):
            first.publish({"not": object()}, {"rois.zip"})
        first._lock.abandon()  # as the death of a process does
        assert sorted(p.name for p in out.iterdir()) == sorted([outputs.WORK, POLYGONS])
        check_free(out, {POLYGONS}, picture, overwrite=False)
        assert written_before(out) == {"rois.zip", POLYGONS}
        (out / "labels.tif").write_text("mine")
        with pytest.raises(ExistsError, match=r"has labels\.tif already"):
            check_free(out, {POLYGONS, "labels.tif"}, picture, overwrite=False)
        before = written_before(out)
        with Output(out, {"a": 1}) as second:
            (second.new / NUCLEI).write_text("newer")
            second.publish({}, before)
        assert {p.name for p in out.iterdir()} == {METADATA, NUCLEI, "labels.tif"}

    @pytest.mark.parametrize("files", [["../precious.txt", "mine.txt", "sub/rois.zip", 3, {}, "..", ""], "rois.zip", 5])
    def test_only_results_are_removed(self, tmp_path, files):
        out = tmp_path / "out"
        out.mkdir()
        for path in (tmp_path / "precious.txt", out / "mine.txt", out / "rois.zip"):
            path.write_text("mine")
        (out / METADATA).write_text(json.dumps({"files": files}))
        assert written_before(out) == set()
        (out / METADATA).write_text(json.dumps({"files": [*files, "rois.zip"] if isinstance(files, list) else []}))
        with Output(out, {}) as output:
            (output.new / POLYGONS).write_text("new")
            output.publish({}, written_before(out))
        assert (tmp_path / "precious.txt").exists()
        assert (out / "mine.txt").exists()
        assert (out / "rois.zip").exists() != isinstance(files, list)


class TestNoZarrIsAnOutput:
    @pytest.mark.parametrize("inside", ["", "x/y"])
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_a_store(self, picture, tmp_path, capsys, inside, zarr_format):
        zarr.open_group(tmp_path / "t.zarr", mode="w", zarr_format=zarr_format)
        (tmp_path / "t.zarr" / DOT).mkdir()
        before = contents(tmp_path)
        given = ["--image-path", picture], ["--image-dir", tmp_path]
        for images in given:
            assert infer(*images, "--output-dir", tmp_path / "t.zarr" / inside, "--overwrite") == 2
            assert "a Zarr, an image or a store" in capsys.readouterr().err
        assert contents(tmp_path) == before
        assert outputs.WORK != DOT

    def test_an_image_of_the_folder(self, picture, tmp_path, capsys):
        zarr.save_array(tmp_path / "a.zarr", np.ones((20, 20), np.uint8))
        before = contents(tmp_path)
        assert infer("--image-dir", tmp_path, "--output-dir", tmp_path) == 2
        assert "2 of 2 images failed" in capsys.readouterr().err
        assert contents(tmp_path) == before


class TestNames:
    @pytest.mark.parametrize(
        "files",
        [["a.png", "a.tif", "a.tif.png"], ["a.tif", "a.tif.tif", "a.tif.tif.tif", "a.ome.tif"], ["configs.yml.png"]],
    )
    def test_are_unique(self, tmp_path, files):
        for name in files:
            (tmp_path / name).write_bytes(b"")
        found = find_images(tmp_path)
        assert sorted(p.name for p in found.values()) == sorted(files)
        assert folder.CONFIGS not in found

    def test_configs_without_z_index(self, tmp_path):
        configs = tmp_path / "configs.yml"
        configs.write_text("stitch:\n- image_name: a\n- {image_name: b, z_index: 2}\n")
        assert planes(configs) == {"a": None, "b": 2}
        configs.write_text("stitch: [a]")
        with pytest.raises(InputError, match="expected a list"):
            planes(configs)

    def test_images_that_are_gone(self, tmp_path):
        """They go with their results; z_index stays of what is there, and of what the folder still has."""
        configs = tmp_path / "configs.yml"
        entries = [{"image_name": name, "z_index": k} for k, name in enumerate(["kept", "gone", "failed", "done"])]
        configs.write_text(yaml.safe_dump({"stitch": entries}))
        for name in ("kept", "done"):
            (tmp_path / name).mkdir()
        with pytest.warns(SegmentationWarning, match="lists kept, of which"):
            write_planes(configs, ["done", "new"], ["done", "new", "failed"])
        assert planes(configs) == {"done": 3, "failed": 2, "kept": 0, "new": None}


class TestChannels:
    @pytest.mark.parametrize("channels", [[0, 0], ["R", "R"], ["R", 0], [1, 0, "G"]])
    def test_named_twice(self, channels):
        for model in (find_model("cyto3"), find_model("dapi")):
            with pytest.raises(InputError, match="names a channel of x"):
                model.workflow(channels, ["R", "G", "B"], "x.tif")

    @pytest.mark.parametrize(("name", "takes"), [("nuclei-small", 1), ("nuclei", 1), ("cyto3", 2), ("cpsam", 3)])
    def test_no_more_than_a_model_takes(self, name, takes):
        model, names = find_model(name), list("abcd")
        with pytest.raises(InputError, match=f"takes {takes}: say which") as none:
            model.workflow(None, names, "x.tif")
        hint = str(none.value).rpartition("such as ")[2]
        told = hint.rpartition(" or ")[2].split(" ")[0].split(",")
        assert len(told) <= takes
        model.workflow([int(k) for k in told], names, "x.tif")
        with pytest.raises(InputError, match=f"takes {takes}: name no more"):
            model.workflow(list(range(takes + 1)), names, "x.tif")

    def test_weights_of_ones_own_may_be_of_a_later_network(self):
        mine = Model("mine", Cellpose("cyto3"), 2, at_most=3)
        mine.workflow([0, 1, 2], list("abcd"), "x.tif")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("dtype", [np.uint16, np.uint8])
    def test_a_fourth_that_is_taken_for_alpha(self, tmp_path, capsys, dtype):
        """tifffile marks four planes of one array so, unless it is told what they are."""
        tifffile.imwrite(tmp_path / "c4.tif", np.ones((4, 20, 20), dtype), photometric="rgb", planarconfig="separate")
        with pytest.warns(SegmentationWarning, match="photometric='minisblack'"):
            image, facts = read_image(tmp_path / "c4.tif")
        assert (image.shape[0], facts.has_alpha) == (3, True)
        assert infer("--image-path", tmp_path / "c4.tif", "--channels", "3", "--output-dir", tmp_path / "o") == 2
        assert "its fourth channel is alpha" in capsys.readouterr().err

    @pytest.mark.filterwarnings("ignore::spatialdata_segment.errors.SegmentationWarning")
    @pytest.mark.parametrize("planar", ["separate", "contig"])
    def test_a_fourth_that_is_not_said_to_be_alpha(self, tmp_path, planar):
        """Of 16 bits it is a stain; of 8 bits it is left out, as before."""
        pixels = np.arange(1600, dtype=np.uint16).reshape(4, 20, 20)
        for dtype, n in ((np.uint16, 4), (np.uint8, 3)):
            stored = pixels.astype(dtype)
            stored = stored if planar == "separate" else np.moveaxis(stored, 0, -1)
            options = {"photometric": "rgb", "planarconfig": planar, "extrasamples": ["unspecified"]}
            tifffile.imwrite(tmp_path / "u.tif", stored, **options)
            image, facts = read_image(tmp_path / "u.tif")
            assert np.array_equal(image.values, pixels.astype(dtype)[:n])
            assert facts.channels == (tuple("0123") if n == 4 else tuple("RGB"))


class TestOptionsOfAFile:
    @pytest.fixture
    def flow(self, tmp_path):
        def write(options):
            path = tmp_path / "flow.yaml"
            path.write_text(yaml.safe_dump({"nucleus": {"method": "threshold-nuclei"}, "options": options}))
            return path

        return write

    @pytest.mark.parametrize(
        "option",
        [
            {"key_added": "mine"}, {"table": False}, {"shapes": False}, {"scale": "scale1"}, {"measure_channels": [0]},
            {"keep_maps": True}, {"to_coordinate_system": "aligned"},
        ],
    )  # fmt: skip
    def test_that_infer_does_not_have(self, picture, flow, tmp_path, capsys, option):
        name, value = next(iter(option.items()))
        path = flow(option | {"shard_size": 5000})
        options = ["infer", "--image-path", picture, "--config-file", path, "--output-dir", tmp_path / "o", "--quiet"]
        assert main([*map(str, options)]) == 2
        assert f"infer does not have: {name}: {value!r}. Remove them" in capsys.readouterr().err
        assert not (tmp_path / "o").exists()

    def test_that_it_has(self, picture, flow, tmp_path, monkeypatch):
        """The command line goes before the file; what is not said is as usual."""
        calls = []
        monkeypatch.setattr(command, "infer", lambda job, out, **run: calls.append((job, run)) or 0)
        usual = {"overwrite": False, "resume": True, "progress": True}
        said = {"channels": [1], "overwrite": True, "resume": False, "progress": False, "shard_size": 5000}
        for options, arguments, run, size in (
            ({}, [], usual, None),
            (said, [], {"overwrite": True, "resume": False, "progress": False}, 5000),
            (said, ["--shard-size", "7000"], {"overwrite": True, "resume": False, "progress": False}, 7000),
            ({"progress": True}, ["--quiet", "--overwrite"], usual | {"progress": False, "overwrite": True}, None),
        ):
            assert main(["infer", "--image-path", str(picture), "--config-file", str(flow(options)), *arguments]) == 0
            job, found = calls.pop()
            assert found == run
            assert job.options.get("shard_size") == size
            assert job.channels == options.get("channels")

    def test_that_are_the_usual_ones(self, flow):
        path = flow({"table": True, "key_added": "segmentation", "n_jobs": 1})
        assert settings_of({"config_file": path}, {}).options == {"n_jobs": 1}


def test_the_help_ends_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["infer", "--help"])
    told = capsys.readouterr().out
    assert "spatialdata-segment infer --image-path slide.tif --channels 0,1" in told
    assert "exit codes: 0 done" in told
