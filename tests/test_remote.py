"""Objects of remote stores: read and written as those on disk are, and what an upload that stops leaves."""

from __future__ import annotations

import asyncio
import filecmp
import json
import logging
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import anndata as ad
import dask.array as da
import fsspec
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import zarr
from skimage.measure import label
from spatialdata._io.format import SpatialDataContainerFormatV01
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Scale, get_transformation
from upath import UPath
from zarr.storage import FsspecStore

from spatialdata_segment import Function, SizeFilter, filter_labels, read_remote, segment
from spatialdata_segment._elements import read_image, stat_fingerprint
from spatialdata_segment._fsspec import Remote, open_remote
from spatialdata_segment._staging import Staging
from spatialdata_segment._upload import CONSOLIDATE, upload
from spatialdata_segment.cli import main
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.stored import Stored
from spatialdata_segment.errors import ExistsError, InputError, MissingError, ScratchError, ShardError

pytestmark = pytest.mark.filterwarnings("ignore")
FORMATS = {"v3": None, "v2": SpatialDataContainerFormatV01()}
KINDS = [("s3", "v3", True), ("memory", "v3", False), ("memory", "v2", True), ("memory", "v2", False)]
HALF = {"global": Scale([0.5, 0.25], axes=("x", "y"))}


def picture() -> np.ndarray:
    """Discs in a row, and some that touch the cores' borders."""
    y, x = np.mgrid[:120, :160]
    image = np.zeros((2, 120, 160), np.uint16)
    for cy, cx in [(20, 20), (60, 80), (58, 30), (100, 120), (30, 82), (90, 60)]:
        image[:, (y - cy) ** 2 + (x - cx) ** 2 < 90] = 500 + cx
    return image


def threshold(pixels: np.ndarray) -> np.ndarray:
    return label(pixels[0] > 100)


METHOD = Function(function=threshold, version="1", context_px=16)
PLAN = {"shard_size": 60 * 80, "progress": False}


def an_object() -> sd.SpatialData:
    image = Image2DModel.parse(
        picture(), dims=("c", "y", "x"), c_coords=["DAPI", "WGA"], scale_factors=[2], transformations=HALF
    )
    obs = pd.DataFrame({"region": pd.Categorical(["old"] * 2), "cell_id": [1, 2]}, index=["1", "2"])
    table = ad.AnnData(np.ones((2, 3), np.float32), obs=obs)
    return sd.SpatialData(
        images={"image": image},
        labels={"old": Labels2DModel.parse(threshold(picture()).astype(np.uint32), dims=("y", "x"))},
        shapes={"region": ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 40, 30)]))},
        points={"spots": PointsModel.parse(pd.DataFrame({"x": [1.0], "y": [2.0]}))},
        tables={"counts": TableModel.parse(table, region="old", region_key="region", instance_key="cell_id")},
        attrs={"note": "kept"},
    )


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[str, dict]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "a", "secret": "b", "endpoint_url": f"http://{host}:{port}"}
    fsspec.filesystem("s3", **options).mkdir("bucket")
    yield "s3://bucket", options
    server.stop()


@pytest.fixture(params=["s3", "memory"])
def where(request: pytest.FixtureRequest) -> tuple[str, dict]:
    return request.getfixturevalue("s3") if request.param == "s3" else ("memory://bucket", {})


class Place:
    """A store on this machine and the same one elsewhere."""

    def __init__(
        self, folder: Path, where: tuple[str, dict], fmt: str = "v3", consolidated: bool = True, *, bare: bool = False
    ) -> None:
        self.local = folder / "local.zarr"
        self.url, self.options = f"{where[0]}/{uuid4().hex[:8]}.zarr", where[1]
        sdata = an_object()
        if bare:
            sdata = sdata.subset(["image", "old"])
        sdata.write(self.local, sdata_formats=FORMATS[fmt], consolidate_metadata=consolidated)
        self.mirror()

    def mirror(self) -> None:
        self.remote().upload(self.local, files(self.local))

    def read(self) -> sd.SpatialData:
        return read_remote(self.url, storage_options=self.options)

    def remote(self) -> Remote:
        return open_remote(self.url, self.options)

    def same(self) -> bool:
        """Whether both stores hold the same files, byte for byte."""
        remote, names = self.remote(), files(self.local)
        with tempfile.TemporaryDirectory() as folder:
            remote.download(names, Path(folder))
            return set(remote.find()) == set(names) and not filecmp.cmpfiles(folder, self.local, names, False)[1]


def files(store: Path) -> list[str]:
    """All files of a local store but the record of the last run."""
    return [
        p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file() and p.suffixes != [".run", ".json"]
    ]


def pixels(element: object) -> list[np.ndarray]:
    levels = [e["image"].data for e in element.children.values()] if hasattr(element, "children") else [element.data]
    return [np.asarray(level) for level in levels]


@pytest.fixture
def place(tmp_path: Path, where: tuple[str, dict]) -> Place:
    return Place(tmp_path, where)


@pytest.mark.parametrize(("where", "fmt", "consolidated"), KINDS, indirect=["where"])
def test_read(tmp_path: Path, where: tuple[str, dict], fmt: str, consolidated: bool) -> None:
    place = Place(tmp_path, where, fmt, consolidated)
    ours, theirs = place.read(), sd.read_zarr(place.local)
    assert isinstance(ours, sd.SpatialData)
    assert str(ours.remote) in repr(ours)
    assert ours.remote.url().endswith(place.url.rpartition("/")[2])
    for name in ("image", "old"):
        assert all(np.array_equal(a, b) for a, b in zip(pixels(ours[name]), pixels(theirs[name]), strict=True))
        assert get_transformation(ours[name], get_all=True) == get_transformation(theirs[name], get_all=True)
    assert list(ours["image"]["scale1"]["image"].coords["c"].values) == ["DAPI", "WGA"]
    assert ours["region"].equals(theirs["region"])
    assert np.array_equal(ours["counts"].X, theirs["counts"].X)
    assert ours["counts"].obs.equals(theirs["counts"].obs)
    assert ours.attrs == theirs.attrs
    assert list(ours.points) == []
    assert ours.path is None
    assert place.same()


def test_pixels_stay_where_they_are_until_they_are_needed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(Remote, "download", watch(taken, Remote.download))
    place.read()
    assert taken
    assert not [name for name in taken if "/c/" in name and name.startswith(("images", "labels"))]
    ref = read_image(place.read(), "image", "scale1")
    assert isinstance(ref.array.store, FsspecStore)
    stored = pickle.loads(pickle.dumps(Stored(ref.array, (1,))))
    assert np.array_equal(stored.read(Box((5, 6), (20, 30))), ref.data.values[1:, 5:20, 6:30])


def watch(taken: list[str], download: Callable) -> Callable:
    def watched(self: Remote, names: list[str], folder: Path) -> None:
        taken.extend(names)
        download(self, names, folder)

    return watched


def test_ways_to_say_where(s3: tuple[str, dict], tmp_path: Path) -> None:
    place = Place(tmp_path, s3)
    store = FsspecStore.from_url(place.url, storage_options=place.options)
    for way in (UPath(place.url, **place.options), store):
        sdata = read_remote(way, ("images", "shapes"))
        assert (list(sdata.images), list(sdata.labels), list(sdata.shapes)) == (["image"], [], ["region"])
        assert str(sdata.remote) == place.url
    with pytest.raises(InputError, match="storage_options go with a URL only"):
        read_remote(store, storage_options=place.options)


@pytest.mark.parametrize(("where", "fmt", "consolidated"), KINDS[::3], indirect=["where"])
def test_a_run_is_that_of_a_local_store(tmp_path: Path, where: tuple[str, dict], fmt: str, consolidated: bool) -> None:
    place = Place(tmp_path, where, fmt, consolidated)
    ours, theirs = place.read(), sd.read_zarr(place.local)
    for sdata in (ours, theirs):
        assert segment(sdata, "image", METHOD, **PLAN) is sdata
    assert place.same()
    labels, same = ours["segmentation_cell_labels"], theirs["segmentation_cell_labels"]
    assert all(np.array_equal(a, b) for a, b in zip(pixels(labels), pixels(same), strict=True))
    assert isinstance(stored_in(labels), FsspecStore)
    assert ours["segmentation_cell_boundaries"].equals(theirs["segmentation_cell_boundaries"])
    assert np.array_equal(ours["segmentation_table"].X, theirs["segmentation_table"].X)


@pytest.mark.parametrize("where", ["memory"], indirect=True)
def test_an_earlier_result_is_replaced_as_a_whole(place: Place) -> None:
    ours, theirs = place.read(), sd.read_zarr(place.local)
    for sdata in (ours, theirs):
        segment(sdata, "image", METHOD, **PLAN)
    assert set(place.read().tables) == {"counts", "segmentation_table", "segmentation_candidates"}
    with pytest.raises(ExistsError, match="labels/segmentation_cell_labels"):
        segment(place.read(), "image", METHOD, **PLAN)
    fewer = Function(function=lambda p: label(p[1] > 550))
    for sdata in (ours, theirs):
        segment(sdata, "image", fewer, overwrite=True, shapes=False, **PLAN)
    assert place.same()
    assert "segmentation_cell_boundaries" not in place.read().shapes


def stored_in(labels: object) -> object:
    return zarr_of(labels["scale0"]["image"].data).store


def zarr_of(data: da.Array) -> zarr.Array:
    return data.dask[f"original-{data.name}"]


@pytest.mark.parametrize("where", ["memory"], indirect=True)
def test_labels_that_are_there(place: Place) -> None:
    ours, theirs = place.read(), sd.read_zarr(place.local)
    for sdata in (ours, theirs):
        filter_labels(sdata, "old", SizeFilter(min_size=1), key_added="large", progress=False)
    assert place.same()
    ours["shifted"] = ours["large_cell_labels"] + 1
    with pytest.raises(InputError, match="labels/shifted is lazy and reads 'large_cell_labels'"):
        filter_labels(ours, "old", SizeFilter(min_size=1), key_added="large", overwrite=True, progress=False)


@pytest.mark.parametrize(("where", "backed"), [("s3", True), ("memory", False)], indirect=["where"])
def test_a_remote_image_in_an_object_of_this_machine(place: Place, tmp_path: Path, backed: bool) -> None:
    before = place.remote().find()
    far = da.from_zarr(zarr.open_array(place.remote().store, path="images/image/s0", mode="r"))
    sdata = sd.SpatialData(images={"far": Image2DModel.parse(far, dims=("c", "y", "x")), "near": place.read()["image"]})
    if backed:
        empty = tmp_path / "empty.zarr"
        sd.SpatialData().write(empty)
        sdata.path = empty
    for key in ("far", "near"):
        assert stat_fingerprint(read_image(sdata, key))["n_chunks"] == 1
        segment(sdata, key, METHOD, key_added=key, table=False, **PLAN)
    theirs = segment(sd.read_zarr(place.local), "image", METHOD, table=False, **PLAN)
    for key in ("far", "near"):
        assert np.array_equal(pixels(sdata[f"{key}_cell_labels"])[0], pixels(theirs["segmentation_cell_labels"])[0])
    assert place.remote().find() == before
    if backed:
        assert set(sd.read_zarr(empty).labels) == {"far_cell_labels", "near_cell_labels"}


@pytest.mark.parametrize("where", ["memory"], indirect=True)
def test_an_address_on_the_command_line(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", place.url]) == 0
    assert f"{place.url} image: image 120 x 160 px" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["memory"], indirect=True)
def test_written_here_it_goes_on_here(place: Place, tmp_path: Path) -> None:
    sdata = place.read()
    sdata.write(tmp_path / "copy.zarr")
    segment(sdata, "image", METHOD, table=False, **PLAN)
    assert "segmentation_cell_labels" in sd.read_zarr(tmp_path / "copy.zarr").labels
    assert "segmentation_cell_labels" not in place.read().labels


def test_fingerprint(place: Place) -> None:
    ref = read_image(place.read(), "image")
    first = stat_fingerprint(ref)
    assert first == stat_fingerprint(read_image(place.read(), "image"))
    (chunk,) = [n for n in place.remote().find() if n.startswith("images/image/s0/c/")]
    content = bytearray((place.local / chunk).read_bytes())
    content[-1] ^= 1
    place.remote().write(chunk, bytes(content))
    second = stat_fingerprint(ref)
    assert second["chunks"] != first["chunks"]
    assert second["metadata"] == first["metadata"]


def test_an_image_that_cannot_be_listed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = read_image(place.read(), "image")
    monkeypatch.setattr(ref.array.store.fs, "_find", refuse)
    assert stat_fingerprint(ref) is None


async def refuse(*_: object, **__: object) -> None:
    raise PermissionError("Access Denied")


@pytest.mark.parametrize("where", ["s3"], indirect=True)
def test_a_killed_run_goes_on_and_sees_a_changed_image(place: Place, tmp_path: Path) -> None:
    seen = []

    def failing(window: np.ndarray) -> np.ndarray:
        seen.append(window.shape)
        if len(seen) == 3:
            raise ZeroDivisionError
        return threshold(window)

    method = Function(function=failing, version="1", context_px=16)
    args = {"scratch": tmp_path / "scratch", "n_jobs": 1, "table": False, **PLAN}
    with pytest.raises(ShardError):
        segment(place.read(), "image", method, **args)
    done = len(seen) - 1
    segment(place.read(), "image", method, **args)
    assert len(seen) - done - 1 < done + 2
    seen.clear()
    with pytest.raises(ShardError):
        segment(place.read(), "image", method, key_added="again", **args)
    changed = picture() * 2
    zarr.open_array(place.remote().store, path="images/image/s0", mode="r+")[:] = changed
    with pytest.raises(ScratchError, match=r"belongs to another run; different: image.files.chunks"):
        segment(place.read(), "image", method, key_added="again", **args)


def label_picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 99, (40, 40)).astype(np.uint32)


def stage(sdata: sd.SpatialData, seed: int) -> Staging:
    """Stage labels, shapes and a table that tell the seed."""
    staging = Staging(sdata).__enter__()
    array = staging.labels(
        "seg", shape=(40, 40), dtype="uint32", transformations=HALF, pyramid=((40, 40), (20, 20)), chunks=(20, 20)
    )
    array[:] = label_picture(seed)
    staging.finish_labels("seg")
    staging.shapes("outlines", gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)] * seed), HALF)
    staging.table("table", TableModel.parse(ad.AnnData(np.full((seed, 2), float(seed), np.float32))))
    staging.remove(["old"])
    return staging


def seeds(sdata: sd.SpatialData) -> set[int]:
    """The seeds that the elements are of, each whole."""
    found = set()
    if "seg" in sdata.labels:
        (seed,) = (s for s in (3, 5) if np.array_equal(pixels(sdata["seg"])[0], label_picture(s)))
        assert np.array_equal(pixels(sdata["seg"])[1], label_picture(seed)[1::2, 1::2])
        found.add(seed)
    if "outlines" in sdata.shapes:
        found.add(len(sdata["outlines"]))
    if "table" in sdata.tables:
        assert np.array_equal(sdata["table"].X, np.full((sdata["table"].n_obs, 2), float(sdata["table"].n_obs)))
        found.add(sdata["table"].n_obs)
    return found


@contextmanager
def stopping(remote: Remote, after: int, error: BaseException) -> Iterator[list[str]]:
    """Let everything that changes the store raise once so much has been changed."""
    fs, done = remote.store.fs, []

    def counted(name: str) -> Callable:
        call = getattr(fs, name)

        async def changing(*args: object, **kwargs: object) -> object:
            done.append(name)
            if len(done) > after:
                raise error
            return await call(*args, **kwargs)

        return changing

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_put_file", "_pipe_file", "_rm_file"):
            patch.setattr(fs, name, counted(name))
        yield done


@pytest.mark.parametrize(("fmt", "consolidated", "replacing"), [("v3", True, True), ("v2", False, False)])
def test_stopped_anywhere(tmp_path: Path, fmt: str, consolidated: bool, replacing: bool) -> None:
    memory = ("memory://bucket", {})
    start, end = (Place(tmp_path / name, memory, fmt, consolidated, bare=True) for name in ("start", "end"))
    staging = stage(end.read(), 5)
    new, put, remove = staging._stage / "new.zarr", tuple(staging._put), tuple(staging._remove)
    stage(sd.read_zarr(end.local), 5).commit()
    if replacing:
        stage(sd.read_zarr(start.local), 3).commit()
    with stopping(end.remote(), 1000, OSError("the line is dead")) as steps:
        upload(end.remote(), new, put, remove)
    assert end.same()
    last = len(steps)
    for k in sorted({*range(4), *range(4, last, 40), *range(last - 5, last)}):
        start.url = f"memory://bucket/{uuid4().hex}.zarr"
        start.mirror()
        remote = start.remote()
        with stopping(remote, k, OSError("the line is dead")), pytest.raises(ScratchError):
            upload(remote, new, put, remove)
        between = seeds(start.read())
        assert len(between) <= 1, k
        assert between == ({3} if replacing else set()) or k > 1
        upload(start.remote(), new, put, remove)
        end.url = start.url
        assert end.same(), k


def test_stopped_on_s3(tmp_path: Path, s3: tuple[str, dict]) -> None:
    place = Place(tmp_path, s3, consolidated=False, bare=True)
    stage(sd.read_zarr(place.local), 3).commit()
    place.mirror()
    sdata = place.read()
    with stopping(sdata.remote, 30, PermissionError("Access Denied")), pytest.raises(ScratchError) as told:
        stage(sdata, 5).commit()
    assert "Access Denied" in str(told.value)
    assert "Run again" in str(told.value)
    assert len(seeds(place.read())) <= 1
    stage(sdata, 5).commit()
    assert seeds(sdata) == seeds(place.read()) == {5}


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals between threads")
def test_nothing_arrives_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    remote, arrived = open_remote("memory://bucket/x.zarr"), []

    async def slow(*_: object) -> None:
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        await asyncio.sleep(0.3)
        arrived.append(True)

    monkeypatch.setattr(remote.store.fs, "_pipe_file", slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell's & started the tests
    try:
        with pytest.raises(KeyboardInterrupt):
            remote.write("a", b"")
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.4)
    assert not arrived


def test_consolidated_metadata_comes_again(tmp_path: Path) -> None:
    place = Place(tmp_path, ("memory://bucket", {}))
    sdata = place.read()
    with stopping(sdata.remote, 6, OSError("the line is dead")), pytest.raises(ScratchError):
        stage(sdata, 5).commit()
    assert place.remote().read(CONSOLIDATE) == b""
    assert "consolidated_metadata" not in json.loads(place.remote().read("zarr.json"))
    segment(place.read(), "image", METHOD, table=False, **PLAN)  # another result, in another process for all it knows
    assert json.loads(place.remote().read("zarr.json"))["consolidated_metadata"] is not None
    assert place.remote().read(CONSOLIDATE) is None


def test_no_rights(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sdata = place.read()
    for forbidden in ("_pipe_file", "_rm_file"):
        with monkeypatch.context() as m:
            m.setattr(sdata.remote.store.fs, forbidden, refuse)
            with pytest.raises(ScratchError, match=r"cannot be written to \(PermissionError: Access Denied\); check"):
                segment(sdata, "image", METHOD, **PLAN)
    closed = FsspecStore.from_url(place.url, storage_options=place.options, read_only=True)
    with pytest.raises(ScratchError, match=r"is opened read-only"):
        segment(read_remote(closed), "image", METHOD, **PLAN)


def test_nothing_there(s3: tuple[str, dict]) -> None:
    for url in ("s3://bucket/nothing.zarr", "s3://no-bucket/x.zarr"):
        with pytest.raises(MissingError, match=f"no SpatialData store at {url}"):
            read_remote(url, storage_options=s3[1])
    remote = open_remote("s3://no-bucket/x.zarr", s3[1])
    with pytest.raises(ScratchError, match=r"s3://no-bucket/x.zarr cannot be written to.*Make the bucket"):
        remote.write("a", b"")


def test_addresses_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingError, match=r"gs:// needs a package that is not installed .*pip install gcsfs"):
        read_remote("gs://bucket/x.zarr")
    with pytest.raises(InputError, match=r"store='nope://x' cannot be opened"):
        read_remote("nope://x")
    for local in (str(tmp_path), f"file://{tmp_path}", tmp_path, UPath(tmp_path), 3):
        with pytest.raises(InputError, match=r"read with spatialdata.read_zarr"):
            read_remote(local)
    with pytest.raises(InputError, match=r"holds 'points', expected some of images, labels"):
        read_remote("memory://x", ("images", "points"))


def test_a_store_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, ("memory://bucket", {}))
    found = {**place.remote().find(), "images/gone/zarr.json": ""}
    monkeypatch.setattr(Remote, "find", lambda *_, **__: found)
    with pytest.raises(InputError, match=r"was changed while it was read \(.*gone.*: read it again"):
        place.read()


def test_wrong_credentials(s3: tuple[str, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, s3)
    remote = place.remote()
    monkeypatch.setattr(remote.store.fs, "_find", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(PermissionError: .*credentials"):
        place.read()
