"""Runs on the workers of a ``distributed.Client``: what travels to them, what they hold, what kills them."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle
import dask
import numpy as np
import pytest
import spatialdata as sd
from distributed import Client, LocalCluster
from scipy import ndimage

from spatialdata_segment import (
    ExpandNuclei,
    Function,
    Step,
    ThresholdNuclei,
    Workflow,
    _write,
    plan,
    resegment,
    segment,
)
from spatialdata_segment.engine.events import Event, listen
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.errors import ClusterError, InputError, ScratchError
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.dummies import DummyNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform == "win32", reason="takes long to start processes"),
]

HOW = {"shard_size": 60 * 60, "progress": False, "shapes": False}
LOADS = "TEST_LOADS"
"""Environment variable: the folder where a file a load is made."""


class Loaded(DummyNetwork):
    """A network on a device, whose loading and calls are counted."""

    name: ClassVar[str] = "loaded"
    uses_device: ClassVar[bool] = True
    together: ClassVar[threading.Condition] = threading.Condition()
    now: ClassVar[list[int]] = [0, 0]

    def load(self, device: str) -> object:
        if LOADS in os.environ:
            np.save(f"{os.environ[LOADS]}/{os.getpid()}-{self.threshold}-{os.urandom(4).hex()}", np.zeros(1))
        return np.ones(2_000_000)

    def predict(self, image: np.ndarray, view: Any) -> np.ndarray:
        assert view.model.shape == (2_000_000,)
        with self.together:
            self.now[0] += 1
            self.now[1] = max(self.now)
            self.together.notify_all()
            self.together.wait_for(lambda: self.now[1] > 1, 0.3)  # another may come
        maps = super().predict(image, view)
        with self.together:
            self.now[0] -= 1
        return maps


def blobs(image: np.ndarray) -> np.ndarray:
    return ndimage.label(image[0] > 3000)[0]


def tissue(side: int = 240) -> sd.SpatialData:
    return Tissue((side, side), seed=2, cell_diameter=20).to_spatialdata(chunks=100)


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Let worker processes find this module, by the path that they take over: dask waits for ever where they do not."""
    root = str(Path(__file__).parents[1])
    sys.path.insert(0, root)
    yield
    sys.path.remove(root)


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("loads")
    os.environ[LOADS] = str(folder)
    yield folder
    del os.environ[LOADS]


@pytest.fixture(scope="module")
def cluster(loads: Path) -> Iterator[LocalCluster]:
    patient = {"distributed.deploy.lost-worker-timeout": "10 minutes"}  # for processes to start, on a busy machine
    with (
        dask.config.set(patient),
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, memory_limit="2 GiB", dashboard_address=None
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


def labels(sdata: sd.SpatialData, name: str = "segmentation_cell_labels") -> np.ndarray:
    return np.asarray(sdata[name])


def test_an_image_in_memory(cluster: LocalCluster) -> None:
    serial = segment(tissue(), "image", "wga", n_jobs=1, **HOW)
    with Client(cluster):
        found = segment(tissue(), "image", "wga", **HOW)
    np.testing.assert_array_equal(labels(found), labels(serial))
    np.testing.assert_array_equal(found["segmentation_table"].X, serial["segmentation_table"].X)
    assert found["segmentation_table"].n_obs > 20


@pytest.mark.parametrize("backed", [False, True])
def test_graphs_are_small(client: Client, backed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pixels nor model travel, and what the tasks share travels once."""
    sdata = tissue(800)
    if backed:
        sdata.write(tmp_path / "a.zarr")
        sdata = sd.read_zarr(tmp_path / "a.zarr")
    sent: dict[str, tuple[int, int]] = {}
    run = Executor._distributed

    def watched(self: Executor, graph: Any, keys: Any, stage: str, *args: Any) -> Any:
        sent[stage] = len(cloudpickle.dumps(dict(graph))), len(keys)
        return run(self, graph, keys, stage, *args)

    monkeypatch.setattr(Executor, "_distributed", watched)
    segment(sdata, "image", Loaded(), key_added="b", progress=False, shapes=False, shard_size=100 * 100)
    assert {"cell shards", "cell seams", "writing"} <= set(sent)
    assert sent["cell shards"][1] == 64
    for stage, (size, n) in sent.items():
        assert size < 40_000 + 1_000 * n, stage  # the image has 4 MB, the model 16


def test_a_model_is_loaded_once_a_process(client: Client, loads: Path) -> None:
    segment(tissue(), "image", Loaded(threshold=0.3), **HOW)
    by = [name.name.split("-")[0] for name in loads.glob("*-0.3-*")]
    assert set(by) <= {str(pid) for pid in client.run(os.getpid).values()}
    assert len(by) == len(set(by)) > 0


def test_a_folder_that_workers_do_not_see(client: Client, tmp_path: Path) -> None:
    sdata = tissue()
    client.run(_blind, str(tmp_path))
    try:
        with pytest.raises(ScratchError, match=r"scratch.* is not there for the workers tcp://.*pass scratch="):
            segment(sdata, "image", "dapi", scratch=tmp_path / "scratch", **HOW)
        sdata.write(tmp_path / "a.zarr")
        client.run(_blind, str(tmp_path / "a.zarr" / "images"))
        with pytest.raises(InputError, match=r"image 'image' lies in .*a\.zarr.* which is not there for the workers"):
            segment(sd.read_zarr(tmp_path / "a.zarr"), "image", "dapi", scratch=None, **HOW)
    finally:
        client.run(_blind, None)
    assert sd.read_zarr(tmp_path / "a.zarr").labels == {}


def _blind(hidden: str | None) -> None:
    import genericpath

    seen = genericpath.__dict__.setdefault("_seen", genericpath.exists)
    genericpath.exists = seen if hidden is None else lambda path: not str(path).startswith(hidden) and seen(path)


MODULE = """
from typing import ClassVar

import numpy as np
from scipy import ndimage

from spatialdata_segment.testing.dummies import DummyNetwork


class Elsewhere(DummyNetwork):
    name: ClassVar[str] = "elsewhere"


def blobs(image):
    return ndimage.label(image[0] > 3000)[0]


def same(block):
    return block
"""


@pytest.fixture
def elsewhere(cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a module that the workers, which run already, do not find."""
    name = f"elsewhere_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    del sys.modules[name]


@pytest.mark.parametrize("what", ["method", "function", "step", "image"])
def test_what_workers_cannot_import(client: Client, elsewhere: Any, what: str) -> None:
    """An error before anything runs, and what it proposes helps."""
    sdata = tissue()
    workflow: Any = {
        "method": elsewhere.Elsewhere(),
        "function": elsewhere.blobs,
        "step": Workflow(cell=DummyNetwork(), preprocess=(Step(function=elsewhere.same),)),
        "image": DummyNetwork(),
    }[what]
    wanted = {"method": "Elsewhere", "function": "blobs", "step": "same", "image": "same"}[what]
    if what == "image":
        sdata["image"].data = sdata["image"].data.map_blocks(elsewhere.same)
    stages: list[str] = []
    with listen(lambda event: stages.append(event.stage)):
        with pytest.raises(InputError) as said:
            segment(sdata, "image", workflow, **HOW)
        assert not stages
    file = elsewhere.__file__
    for part in (f"needs {elsewhere.__name__}.{wanted}", "worker tcp://", f"client.upload_file({file!r})"):
        assert part in str(said.value)
    client.upload_file(file)
    segment(sdata, "image", workflow, **HOW)


def _of_here() -> DummyNetwork:
    """Return a method whose class is known by no name; pydantic keeps the variables around it with the class."""

    class Here(DummyNetwork):
        name: ClassVar[str] = "here"

    return Here()


def test_what_is_sent_along(cluster: LocalCluster) -> None:
    """A class of no module that could be imported, and a closure."""
    least = 3000
    for method in (_of_here(), lambda image: ndimage.label(image[0] > least)[0]):
        serial = segment(tissue(), "image", method, n_jobs=1, **HOW)
        with Client(cluster):
            found = segment(tissue(), "image", method, **HOW)
        assert labels(found).any()
        np.testing.assert_array_equal(labels(found), labels(serial))


@pytest.mark.parametrize("backed", [False, True])
def test_a_region_again(cluster: LocalCluster, backed: bool, tmp_path: Path) -> None:
    """What changes a result runs on workers as well, from memory and from a store: the same bytes."""
    flow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    finer = Workflow(nucleus=ThresholdNuclei(object_radius=5, contrast=0.55), cell=ExpandNuclei(distance=4))
    options = {"bounding_box": (40, 50, 180, 190), "shard_size": 60 * 60, "progress": False}
    before = segment(tissue(), "image", flow, n_jobs=1, progress=False)
    here = resegment(sd.deepcopy(before), "image", finer, n_jobs=1, **options)
    there = sd.deepcopy(before)
    if backed:
        there.write(tmp_path / "a.zarr")
        there = sd.read_zarr(tmp_path / "a.zarr")
    with Client(cluster):
        resegment(there, "image", finer, **options)
    for mask in ("nucleus", "cell"):
        name = f"segmentation_{mask}_labels"
        assert not np.array_equal(labels(here, name), labels(before, name))
        np.testing.assert_array_equal(labels(there, name), labels(here, name))
        assert there[f"segmentation_{mask}_boundaries"].equals(here[f"segmentation_{mask}_boundaries"])
    for name in ("segmentation_table", "segmentation_candidates"):
        assert there[name].obs.equals(here[name].obs)
    there, here = (sdata["segmentation_table"] for sdata in (there, here))
    assert there.uns["segmentation"] == here.uns["segmentation"]
    np.testing.assert_array_equal(there.X, here.X)


def test_what_cannot_be_sent(client: Client) -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match=r"the workflow cannot be sent to the workers: TypeError: cannot pickle.*lock"):
        segment(tissue(), "image", lambda image: image[0] * lock.locked(), **HOW)


def test_memory_of_a_worker() -> None:
    """A worker that cannot hold its shards is refused before the run, and what is proposed fits."""
    import dask.array as da
    from spatialdata.models import Image2DModel

    image = da.zeros((1, 20_000, 20_000), chunks=(1, 2000, 2000), dtype="uint16")
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(image, dims=("c", "y", "x"))})
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, memory_limit="1 GiB", dashboard_address=None) as cluster,
        Client(cluster),
    ):
        with pytest.raises(
            InputError, match=r"2 shards in flight need .* GB, and worker tcp://.* has 0\.\d+ GB"
        ) as said:
            segment(sdata, "image", "dapi", shard_size=100_000_000, progress=False)
        size = int(str(said.value).partition("shard_size=")[2].split(",")[0])
        assert 10_000 < size < 50_000_000
        assert plan(sdata, "image", "dapi", shard_size=size).masks["nucleus"].n_shards > 8


@pytest.mark.parametrize(("resources", "most"), [({"GPU": 1}, 1), ({"GPU": 2}, 2), (None, 2)])
def test_a_gpu_is_taken_where_workers_tell(resources: dict[str, int] | None, most: int) -> None:
    Loaded.now[:] = 0, 0
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, resources=resources, dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        segment(tissue(), "image", Loaded(), devices="cpu", **HOW)
    assert Loaded.now[1] == most


@pytest.mark.parametrize("stage", ["cell maps", "cell shards", "cell seams", "writing"])
def test_a_worker_is_killed(stage: str, cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks run elsewhere, and the result is the same."""
    tissue().write(tmp_path / "a.zarr")
    monkeypatch.setattr(_write, "CHUNK", {2: 64})
    flow = Workflow(nucleus=Function(function=blobs, version="1"), cell=ExpandNuclei(distance=4))
    if stage == "cell maps":
        flow = Workflow(cell=DummyNetwork())
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event.stage == stage and 0 < event.done < event.total and not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    sdata = sd.read_zarr(tmp_path / "a.zarr")
    segment(sdata, "image", flow, key_added="serial", n_jobs=1, **HOW)
    with Client(cluster) as client:
        client.wait_for_workers(2)
        with listen(kill):
            segment(sdata, "image", flow, keep_maps=stage == "cell maps", **HOW)
    assert killed
    np.testing.assert_array_equal(labels(sdata), labels(sdata, "serial_cell_labels"))
    np.testing.assert_array_equal(sdata["segmentation_table"].X, sdata["serial_table"].X)


def test_a_task_that_kills_its_workers() -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        pytest.raises(ClusterError, match="workers died again and again"),
    ):
        segment(tissue(), "image", deadly, **HOW)


def deadly(image: np.ndarray) -> np.ndarray:
    os.kill(os.getpid(), signal.SIGKILL)
    return image


def test_planes_are_stitched_on_workers(cluster: LocalCluster) -> None:
    """The counts of planes, the table of what is joined, seeds of planes: read by workers from the scratch."""
    flow = Workflow(nucleus=ThresholdNuclei(stitch_threshold=0.3), cell=ExpandNuclei(distance=2, stitch_threshold=0.3))
    volume = {"shape": (6, 70, 80), "seed": 4, "cell_diameter": 16, "anisotropy": 2.0}
    options = {"progress": False, "shapes": False, "shard_size": 3 * 40 * 80}
    here = segment(Tissue(**volume).to_spatialdata(), "image", flow, n_jobs=1, **options)
    with Client(cluster):
        there = segment(Tissue(**volume).to_spatialdata(), "image", flow, **options)
    assert labels(here).max() > 3
    assert np.array_equal(labels(there), labels(here))
    assert there["segmentation_candidates"].obs.equals(here["segmentation_candidates"].obs)
    assert there["segmentation_table"].uns == here["segmentation_table"].uns
