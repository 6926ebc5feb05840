"""The parts of ``n_jobs``: how many shards decode, wait and are written at the same time."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import spatialdata as sd
from scipy import ndimage

from spatialdata_segment import Method, _write, segment
from spatialdata_segment.engine import devices
from spatialdata_segment.engine.executor import Executor, cores
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.base import Decoded
from spatialdata_segment.testing import Tissue

WAIT_S = 20


class Watched(Method):
    """Counts who is at work; with `together`, the first decoding waits until so many were predicted."""

    name: ClassVar[str] = "watched"
    uses_device: ClassVar[bool] = True
    lock: ClassVar[Any] = threading.Condition()
    now: ClassVar[dict[str, int]] = {}
    most: ClassVar[dict[str, int]] = {}

    together: int = 0

    @classmethod
    def begin(cls) -> None:
        cls.now.clear()
        cls.most.clear()

    def _count(self, what: str, by: int) -> None:
        with self.lock:
            self.now[what] = self.now.get(what, 0) + by
            self.most[what] = max(self.most.get(what, 0), self.now[what])
            self.lock.notify_all()

    def context(self, image: Any) -> tuple[int, ...]:
        return (0,) * image.ndim

    def predict(self, image: np.ndarray, view: Any) -> np.ndarray:
        self._count("predict", 1)
        self._count("waiting", 1)
        self._count("predicted", 1)
        with self.lock:
            self.lock.wait_for(lambda: self.now["predict"] > 2, 0.05)  # more would come, if they could
        self._count("predict", -1)
        return image[:1].astype(np.float32)

    def decode(self, maps: np.ndarray, view: Any) -> Decoded:
        self._count("decode", 1)
        with self.lock:
            assert self.lock.wait_for(lambda: self.now["predicted"] >= self.together, WAIT_S)
        labels = ndimage.label(maps[0] > 3000)[0]
        self._count("decode", -1)
        self._count("waiting", -1)
        return Decoded(labels)


@pytest.fixture
def sdata():
    Watched.begin()
    return Tissue((128, 128), seed=1, cell_diameter=20).to_spatialdata(chunks=32)


HOW = {"shard_size": 32 * 32, "overlap_px": 8, "progress": False, "shapes": False}


def test_shards_wait_for_a_decoder(sdata):
    """With a queue of 3, three are predicted while the only decoder is busy; never more."""
    segment(sdata, "image", Watched(together=4), n_jobs={"decode": 1, "queue": 3}, devices="cpu", **HOW)
    assert Watched.most["decode"] == 1
    assert Watched.most["waiting"] == 4
    assert Watched.most["predict"] == 1


def test_without_a_queue_none_waits(sdata):
    segment(sdata, "image", Watched(), n_jobs={"decode": 2}, devices="cpu", **HOW)
    assert Watched.most["waiting"] <= 2


@pytest.mark.parametrize("images", [1, 3])
def test_a_gpu_works_on_two(images, sdata, monkeypatch):
    """However many images there are."""
    monkeypatch.setattr(devices, "_found", lambda: ("cuda:0",))
    every = sd.SpatialData(images={f"i{n}": sdata["image"] for n in range(images)})
    segment(every, list(every.images), Watched(), n_jobs={"decode": 3, "queue": 5}, devices=1, **HOW)
    assert Watched.most["predict"] == 2
    assert Watched.most["decode"] <= 3
    assert Watched.most["waiting"] <= 8


def test_places_go_with_their_executor():
    before = dict(devices._turns)
    executor = Executor({"decode": 8, "queue": 4})
    assert executor.turns(3)[1:] == (6, 8)
    assert executor.turns(None)[1:] == (8, 8)
    assert executor.where == "threads"
    with devices.turn(executor.turns(3), "decode"):
        assert len(devices._turns) == len(before) + 1
    del executor
    gc.collect()
    assert devices._turns == before
    assert Executor(8).turns(3) is None


def test_the_result_is_the_same(sdata):
    for n, jobs in enumerate((1, {"decode": 2, "queue": 5, "write": 3})):
        segment(sdata, "image", Watched(), key_added=f"k{n}", n_jobs=jobs, **HOW)
    np.testing.assert_array_equal(sdata["k0_cell_labels"], sdata["k1_cell_labels"])
    assert sdata["k0_table"].n_obs > 5


@pytest.mark.parametrize(("jobs", "most"), [({"decode": 1, "write": 3}, 3), ({"decode": 3, "write": 1}, 1)])
def test_blocks_are_written_at_once(jobs, most, sdata, tmp_path, monkeypatch):
    sdata.write(tmp_path / "a.zarr")
    at_work, found, write = threading.Condition(), [0, 0], _write._write_block

    def watched(*args: Any, **options: Any) -> Any:
        with at_work:
            found[0] += 1
            found[1] = max(found)
            at_work.notify_all()
            if most > 1:
                assert at_work.wait_for(lambda: found[1] >= most, WAIT_S)
        done = write(*args, **options)
        with at_work:
            found[0] -= 1
        return done

    monkeypatch.setattr(_write, "CHUNK", {2: 64})
    monkeypatch.setattr(_write, "_write_block", watched)
    segment(sd.read_zarr(tmp_path / "a.zarr"), "image", Watched(), n_jobs=jobs, **HOW)
    assert found == [0, most]


def test_a_queue_is_as_long_as_memory_allows(sdata, monkeypatch):
    lots = 3 * 150_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=lots))
    segment(sdata, "image", Watched(), n_jobs={"decode": 1, "queue": 10_000}, devices="cpu", **HOW)
    assert 1 <= Watched.most["waiting"] < 16
    with pytest.raises(InputError, match=r"16 shards in flight need .* or fewer n_jobs"):
        segment(sdata, "image", Watched(), key_added="b", n_jobs={"decode": 200}, devices="cpu", **HOW)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0, "n_jobs=0, expected a whole number from 1, or None for all cores"),
        ({"decode": 0}, "expected a whole number from 1"),
        ({"queue": -1}, "expected a whole number from 0"),
        ({"write": 1.5}, "expected a whole number from 1"),
        ({"threads": 3}, "'threads' is none of decode, queue, write"),
        ("many", "n_jobs=many, expected a whole number"),
    ],
)
def test_what_is_no_number(given, said):
    with pytest.raises(InputError, match=said):
        Executor(given)


def test_parts_that_are_not_given():
    executor = Executor({"queue": 2})
    assert (executor.n_jobs, executor.queue, executor.writers) == (cores(), 2, cores())
    assert Executor({"decode": 5}).writers == 5
