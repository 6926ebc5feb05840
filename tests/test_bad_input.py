"""Bad input: a clear error as early as it can be known; the object and its store stay as they were."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from geopandas import GeoDataFrame
from scipy import ndimage
from shapely import box
from spatialdata.models import Image2DModel, ShapesModel

from spatialdata_segment import Function, ThresholdNuclei, segment
from spatialdata_segment.errors import (
    ExistsError,
    InputError,
    MethodError,
    MissingError,
    ScratchError,
    ShardError,
)

pytestmark = pytest.mark.filterwarnings("ignore")
DOT = ".spatialdata_segment"
SIDE, SHARD = 96, 48 * 48  # four shards


def tree(folder: Path, *, without_dot: bool = False) -> dict[str, str]:
    """Return the SHA-256 of every file of a store, and its folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not (without_dot and DOT in name.parts):
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def blobs(image: np.ndarray) -> np.ndarray:
    return ndimage.label(image[0] > 0)[0]


def pixels(dtype: str = "uint8") -> np.ndarray:
    """Squares of 6 px, one of them across the four shards."""
    image = np.zeros((2, SIDE, SIDE), dtype)
    for y, x in [(5, 5), (20, 70), (45, 45), (70, 10), (80, 80)]:
        image[:, y : y + 6, x : x + 6] = 200
    return image


def an_object(image: np.ndarray, scale_factors: list[int] | None = None) -> sd.SpatialData:
    parsed = Image2DModel.parse(
        da.from_array(image, chunks=(2, 32, 32)), dims=("c", "y", "x"), c_coords=["DAPI", "WGA"],
        scale_factors=scale_factors,
    )  # fmt: skip
    far = ShapesModel.parse(GeoDataFrame(geometry=[box(500, 500, 520, 520)]))
    return sd.SpatialData(images={"image": parsed}, shapes={"far": far})


@pytest.fixture
def sdata(tmp_path):
    an_object(pixels()).write(tmp_path / "store.zarr")
    return sd.read_zarr(tmp_path / "store.zarr")


def state(sdata: sd.SpatialData) -> set[tuple[str, str, int]]:
    return {(kind, name, id(element)) for kind, name, element in sdata.gen_elements()}


def run(sdata, workflow=blobs, **options):
    if workflow is blobs:
        workflow = Function(function=blobs, context_px=1)
    return segment(sdata, "image", workflow, **{"shard_size": SHARD, "progress": False, "n_jobs": 2, **options})


class unchanged:
    """Assert that neither the object nor its store changes in the block; the dot folder only if ``kept``."""

    def __init__(self, sdata: sd.SpatialData, *, kept: bool = False) -> None:
        self.sdata, self.kept = sdata, kept

    def __enter__(self) -> None:
        self.before = state(self.sdata), tree(Path(self.sdata.path), without_dot=self.kept)

    def __exit__(self, *_: object) -> None:
        assert state(self.sdata) == self.before[0]
        assert tree(Path(self.sdata.path), without_dot=self.kept) == self.before[1]
        sd.read_zarr(self.sdata.path)


def says(error: BaseException, *parts: str) -> None:
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize(
    ("image_key", "options", "parts"),
    [
        ("imag", {}, ("'imag'", "'image'")),
        ("image", {"channels": "GFP"}, ("'GFP'", "'DAPI'", "'WGA'")),
        ("image", {"channels": [0, 2]}, ("2", "0 to 1")),
        ("image", {"measure_channels": "GFP"}, ("'GFP'", "'DAPI'")),
        ("image", {"scale": "scale1"}, ("'scale1'", "'scale0'")),
        ("image", {"roi_key": "tumour"}, ("'tumour'", "'far'")),
        ("image", {"to_coordinate_system": "um"}, ("'um'", "global")),
        ("image", {"workflow": "dapy"}, ("'dapy'", "'dapi'")),
    ],
)
def test_missing(sdata, image_key, options, parts):
    with unchanged(sdata), pytest.raises(InputError) as caught:
        segment(sdata, image_key, options.pop("workflow", "dapi"), progress=False, **options)
    says(caught.value, *parts)
    if "to_coordinate_system" not in options:
        assert isinstance(caught.value, MissingError)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"n_jobs": 0}, ("n_jobs=0",)),
        ({"shard_size": 0}, ("shard_size=0",)),
        ({"pixel_size": -1}, ("pixel_size=-1",)),
        ({"bounding_box": (5, 5, 1, 1)}, ("(5, 5, 1, 1)", "x_min")),
        ({"key_added": "a b"}, ("a b",)),
        ({"workflow": 3}, ("int", "Workflow")),
        ({"shard_size": 10**6, "n_jobs": 1.5}, ("n_jobs=1.5",)),
        ({"overlap_px": "a"}, ("overlap_px",)),
        ({"shard_size": 2.5}, ("shard_size=2.5",)),
        ({"bounding_box": 3}, ("bounding_box=3",)),
    ],
)
def test_wrong_values(sdata, options, parts):
    workflow = options.pop("workflow", "dapi")
    with unchanged(sdata), pytest.raises(InputError) as caught:
        run(sdata, workflow, **options)
    says(caught.value, *parts)


def test_existing_name(sdata):
    run(sdata)
    with unchanged(sdata), pytest.raises(ExistsError) as caught:
        run(sdata)
    says(caught.value, "segmentation_cell_labels", "overwrite=True", "key_added")


@pytest.mark.parametrize("overlap", [0, 4, (8, 4), (8, 8, 8)])
def test_halo_below_minimum(sdata, overlap):
    with unchanged(sdata), pytest.raises(InputError) as caught:
        run(sdata, ThresholdNuclei(threshold="otsu"), overlap_px=overlap)
    says(caught.value, f"overlap_px={overlap}", "(5, 5)")


def test_halo_below_what_the_nuclei_need(tmp_path):
    """Known when their size was measured, and before any shard runs."""
    y, x = np.mgrid[:200, :200]
    large = np.stack([200 * ((y - 100) ** 2 + (x - b) ** 2 <= 40**2) for b in (100, 100)]).astype(np.uint8)
    an_object(large).write(tmp_path / "large.zarr")
    sdata = sd.read_zarr(tmp_path / "large.zarr")
    with unchanged(sdata), pytest.raises(InputError) as caught:
        run(sdata, ThresholdNuclei(), overlap_px=40)
    says(caught.value, "overlap_px=40", "minimum of threshold-nuclei")


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda image: blobs(image)[:-1], ("shape",)),
        (lambda image: blobs(image)[None], ("shape",)),
        (lambda image: blobs(image).astype(float), ("float64", "integers")),
        (lambda image: blobs(image) > 0, ("bool", "integers")),
        (lambda image: -blobs(image), ("the label -", "0 for background")),
        (lambda image: None, ("shape",)),
    ],
    ids=["shape", "ndim", "float", "bool", "negative", "none"],
)
def test_callable_breaks_contract(sdata, function, parts):
    with unchanged(sdata), pytest.raises(ShardError) as caught:
        run(sdata, Function(function=function, context_px=1))
    assert isinstance(caught.value.__cause__, MethodError)
    says(caught.value, "shard 0 of 4", "0:48", *parts)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("workflow", ["dapi", ThresholdNuclei(threshold=10), blobs], ids=["statistics", "fixed", "fn"])
def test_non_finite(tmp_path, value, workflow):
    image = pixels("float32")
    image[0, 60, 70] = value
    an_object(image).write(tmp_path / "float.zarr")
    sdata = sd.read_zarr(tmp_path / "float.zarr")
    with unchanged(sdata), pytest.raises((InputError, ShardError)) as caught:
        run(sdata, workflow)
    says(caught.value, "infinite", "finite values", "nan_to_num")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_in_measured_channel_only(tmp_path, value):
    """The second channel is not segmented; its means go into the table."""
    image = pixels("float32")
    image[1, 6, 6] = value
    an_object(image).write(tmp_path / "float.zarr")
    sdata = sd.read_zarr(tmp_path / "float.zarr")
    with unchanged(sdata, kept=True), pytest.raises((InputError, ShardError)) as caught:
        run(sdata, "dapi")
    says(caught.value, "NaN or infinite")


def test_empty_image():
    sdata = sd.SpatialData(images={"image": an_object(pixels()).images["image"].isel(y=slice(0, 0))})
    before = state(sdata)
    with pytest.raises(InputError) as caught:
        segment(sdata, "image", "dapi", progress=False)
    says(caught.value, "'image'", "no pixels")
    assert state(sdata) == before


@pytest.mark.parametrize("region", [{"roi_key": "far"}, {"bounding_box": (500, 500, 510, 510)}], ids=["key", "box"])
def test_region_misses_image(sdata, region):
    with unchanged(sdata), pytest.raises(InputError) as caught:
        run(sdata, "dapi", **region)
    says(caught.value, "misses the image", "'image'", "0:96", "coordinates")


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_unwritable_scratch(sdata, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    scratch = tmp_path / "file" if place == "file" else tmp_path / "file" / "scratch"
    with unchanged(sdata), pytest.raises(ScratchError) as caught:
        run(sdata, scratch=scratch)
    says(caught.value, str(scratch), "scratch=")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists() or os.name != "posix", reason="no /proc")
def test_unwritable_scratch_on_read_only_file_system(sdata):
    with unchanged(sdata), pytest.raises(ScratchError) as caught:
        run(sdata, scratch="/proc/scratch")
    says(caught.value, "/proc/scratch", "scratch=")


def test_scratch_folder_of_others_is_refused(sdata, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    for resume in (True, False):
        with unchanged(sdata), pytest.raises(ScratchError) as caught:
            run(sdata, scratch=tmp_path / "papers", resume=resume)
        says(caught.value, "papers", "empty or a new folder")
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path):
    """Give a file system of 3 MiB; where none may be mounted the test is left out."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    room = os.statvfs(folder)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(max(room.f_bavail * room.f_frsize - leave, 0)))
    return ballast


@pytest.mark.parametrize("leave", [0, 40_000, 150_000, 350_000])
def test_full_disk(small_disk, leave):
    """Whatever is written when the disk is full: nothing changes, and the run goes on once there is room."""
    an_object(pixels()).write(small_disk / "store.zarr")
    sdata = sd.read_zarr(small_disk / "store.zarr")
    squares = Function(function=speckle, context_px=1, version="1")
    ballast = fill(small_disk, leave)
    with unchanged(sdata, kept=True), pytest.raises(ScratchError) as caught:
        run(sdata, squares)
    says(caught.value, str(small_disk), "free", "run again" if "Nothing has" in str(caught.value) else "same call")
    ballast.unlink()
    run(sdata, squares)
    whole = ndimage.label(speckle(pixels()))[0]
    assert (np.asarray(sdata.labels["segmentation_cell_labels"]) > 0).sum() == (whole > 0).sum()


def speckle(image: np.ndarray) -> np.ndarray:
    """Bright squares, with an object number for each pixel: many small cells."""
    mask = image[0] > 0
    labels = np.zeros(mask.shape, np.int64)
    labels[mask] = np.arange(1, mask.sum() + 1)
    return labels


def test_file_size_limit(tmp_path):
    """A limit on the size of files is met like a full disk."""
    an_object(pixels()).write(tmp_path / "store.zarr")
    before = tree(tmp_path / "store.zarr", without_dot=True)
    code = f"""
        import resource, signal, sys
        import spatialdata as sd
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_bad_input as t
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sdata = sd.read_zarr({str(tmp_path / "store.zarr")!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
        try:
            t.run(sdata, t.Function(function=t.speckle, context_px=1, version="1"))
        except t.ScratchError as error:
            print("refused:", error)
    """
    done = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(limit)], capture_output=True, text=True, check=False
        )
        for limit in (2_000, 1 << 30)
    ]
    assert "refused:" in done[0].stdout, done[0].stderr
    assert done[1].returncode == 0, done[1].stderr
    assert "refused" not in done[1].stdout
    after = tree(tmp_path / "store.zarr", without_dot=True)
    assert {k: v for k, v in after.items() if k.startswith("images")} == {
        k: v for k, v in before.items() if k.startswith("images")
    }
    assert "segmentation_cell_labels" in sd.read_zarr(tmp_path / "store.zarr")


class Sometimes:
    """Fails where the window begins beyond (40, 40), until it is mended; counts its calls."""

    def __init__(self) -> None:
        self.mended, self.calls = False, []

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.calls.append(image.tobytes())
        last = image[0, -1, -1] == 7
        if last and not self.mended:
            raise RuntimeError("out of luck")
        return blobs(image * (image != 7))


def test_shard_that_raises(tmp_path, caplog):
    image = pixels()
    image[:, -1, -1] = 7
    an_object(image).write(tmp_path / "store.zarr")
    sdata = sd.read_zarr(tmp_path / "store.zarr")
    function = Sometimes()
    method = Function(function=function, context_px=1, version="1")
    with unchanged(sdata, kept=True), pytest.raises(ShardError) as caught:
        run(sdata, method, overlap_px=8)
    says(caught.value, "shard 3 of 4", "48:96", "RuntimeError", "out of luck", "the same call goes on")
    assert isinstance(caught.value.__cause__, RuntimeError)
    before = set(function.calls)
    function.mended, function.calls = True, []
    with caplog.at_level(logging.INFO, "spatialdata_segment"):
        run(sdata, method, overlap_px=8)
    assert "3 of 4 finished by an earlier run" in caplog.text
    assert len(function.calls) == 1
    assert set(function.calls) <= before
    labels = np.asarray(sdata.labels["segmentation_cell_labels"])
    np.testing.assert_array_equal(labels > 0, pixels()[0] > 0)


def test_shard_that_raises_without_version_keeps_nothing(sdata):
    """Nobody could tell whether the function is still the same: nothing is left."""

    def fails(image: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of luck")

    with unchanged(sdata), pytest.raises(ShardError):
        run(sdata, Function(function=fails))


@pytest.mark.parametrize("which", ["run.json", "*.shard", "*.ids", "*.entry", "statistics*"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damaged_scratch(tmp_path, monkeypatch, caplog, which, how):
    """Every file of the scratch, spoiled at every part of it: the result is the same."""
    an_object(pixels()).write(tmp_path / "store.zarr")
    expected = run(sd.read_zarr(tmp_path / "store.zarr"), "dapi", key_added="expected")
    sdata = sd.read_zarr(tmp_path / "store.zarr")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("spatialdata_segment._segment.write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(sdata, "dapi")
    files = list((tmp_path / "store.zarr" / DOT).rglob(which))
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        if how == "missing":
            path.unlink()
        elif how == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            digits = [i for i, b in enumerate(content) if chr(b).isdigit()]
            content[digits[-1] if digits else len(content) // 2] ^= 1
            path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "spatialdata_segment"):
        run(sdata, "dapi")
    if how != "missing" and which in {"*.shard", "statistics*"}:
        assert caplog.text.count("computed again") == len(files)
    np.testing.assert_array_equal(
        sdata.labels["segmentation_nucleus_labels"], expected.labels["expected_nucleus_labels"]
    )


@pytest.mark.parametrize("workflow", ["dapi", blobs], ids=["dapi", "callable"])
@pytest.mark.parametrize("backed", [True, False])
def test_image_without_cells(tmp_path, workflow, backed):
    sdata = an_object(np.zeros((2, SIDE, SIDE), np.uint8), scale_factors=[2])
    if backed:
        sdata.write(tmp_path / "dark.zarr")
        sdata = sd.read_zarr(tmp_path / "dark.zarr")
    with pytest.warns(UserWarning, match="'image' is empty: no object was found"):
        run(sdata, workflow)
    mask = "cell" if workflow is blobs else "nucleus"
    for found in [sdata, sd.read_zarr(tmp_path / "dark.zarr")] if backed else [sdata]:
        labels = found.labels[f"segmentation_{mask}_labels"]
        assert list(labels.children) == ["scale0", "scale1"]
        assert not np.asarray(labels["scale0"]["image"]).any()
        assert f"segmentation_{mask}_boundaries" not in found
        for name in ("segmentation_table", "segmentation_candidates"):
            assert found.tables[name].n_obs == 0
            assert "spatialdata_attrs" not in found.tables[name].uns
        assert list(found.tables["segmentation_table"].var_names) == ["DAPI", "WGA"]
