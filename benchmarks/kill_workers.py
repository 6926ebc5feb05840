"""Runs on a `distributed.LocalCluster` whose worker processes are killed at random moments, against a serial run.

    python benchmarks/kill_workers.py --data PATH|synthetic [--rounds 3] [--workers 3] [--pause 3] [--seed 0]

A round is one run of every kind: `segment`, `segment` with ``keep_maps=True``, and `predict` followed by `decode`. All
the while a worker process is ended by SIGKILL every few seconds; its nanny starts another. The bytes of the store and
the maps must be those of a run in one thread without a cluster, and a shard or a block may be computed a second time
only if the process that computed it first was killed. Exit code 1 where anything of this fails. Linux and macOS.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from _kill_runs import LOG, act, computed, different, make_store, maps_of, tree
from distributed import Client, LocalCluster

from spatialdata_segment.engine.events import Event, listen

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = {
    "segment": ("expanded", ["segment"]),
    "keep_maps": ("pair", ["fused"]),
    "two phases": ("pair", ["predict", "decode"]),
    "network": ("network", ["predict", "decode"]),
}
"""Workflow and acts of each kind of run."""


@dataclass
class Killer:
    """Ends workers of a cluster, one after the other.

    Attributes
    ----------
    pause
        Seconds between two kills, on average.
    killed
        Process ids, and the stages that were running then.
    """

    cluster: LocalCluster
    pause: float
    rng: np.random.Generator
    killed: dict[int, str] = field(default_factory=dict)
    stage: str = "start"

    def hear(self, event: Event) -> None:
        """Know what is running."""
        self.stage = event.stage

    def kill(self) -> None:
        """End one of the workers, once all are up: of one that starts its nanny would despair."""
        up = set(self.cluster.scheduler.workers)
        found = [w.pid for w in self.cluster.workers.values() if w.worker_address in up and w.pid not in self.killed]
        if len(found) == len(self.cluster.workers) > 0:
            pid = found[int(self.rng.integers(len(found)))]
            self.killed[pid] = self.stage
            os.kill(pid, signal.SIGKILL)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Kill inside the ``with`` block."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(self.pause * self.rng.uniform(0.3, 1.7)):
                self.kill()

        thread = threading.Thread(target=work, daemon=True)
        with listen(self.hear):
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()


def disturbed(kind: str, store: Path, killer: Killer, options: dict[str, Any]) -> list[str]:
    """Run on workers that die; return what was computed twice without need."""
    name, acts = RUNS[kind]
    log = Path(os.environ[LOG])
    log.unlink(missing_ok=True)
    with killer.at_work():
        for one in acts:
            act(one, store, name, **options)
    first: dict[Any, int] = {}
    twice = []
    for pid, unit in computed(log.parent):
        before = first.setdefault(unit, pid)
        if before != pid and before not in killer.killed:
            twice.append(f"{unit} by {before}, which lived, and by {pid}")
        first[unit] = pid
    return twice


def reference(kind: str, image: Path, store: Path, options: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Run in one thread, and return what comes of it."""
    shutil.copytree(image, store)
    name, acts = RUNS[kind]
    for one in acts:
        act(one, store, name, n_jobs=1, **options)
    return tree(store), maps_of(store)


def trial(
    kind: str, image: Path, folder: Path, expected: tuple[dict[str, str], ...], killer: Killer, options: dict[str, Any]
) -> list[str]:
    """Run one kind on workers that die, and return what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store = folder / "image.zarr"
    shutil.copytree(image, store)
    wrong = disturbed(kind, store, killer, options)
    wrong += [f"{name} differs" for name in different(tree(store), expected[0])[:5]]
    return wrong + [f"the maps of {mask} differ" for mask in different(maps_of(store), expected[1])]


@contextmanager
def workers(n: int, log: Path) -> Iterator[LocalCluster]:
    """Start worker processes that know the runs and log what they compute; of those that die nothing is said."""
    os.environ[LOG] = str(log)
    patient = {"distributed.deploy.lost-worker-timeout": "10 minutes"}  # for processes to start, on a busy machine
    with (
        dask.config.set(patient),
        LocalCluster(
            n_workers=n,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=None,
            preload=["_kill_runs"],
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster),
    ):
        yield cluster


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="folder that holds dsb2018/, or 'synthetic'")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=40_000)
    parser.add_argument("--side", type=int, default=1500, help="of the synthetic image")
    args = parser.parse_args()
    options = {"shard_size": args.shard_size}
    bad = total = kills = 0
    stages: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = make_store(folder / "image.zarr", args.data, args.side)
        os.environ[LOG] = str(folder / "computed")
        expected = {kind: reference(kind, image, folder / f"{kind}.zarr", options) for kind in RUNS}
        with workers(args.workers, folder / "computed") as cluster:
            killer = Killer(cluster, args.pause, np.random.default_rng(args.seed))
            for k in range(args.rounds):
                for kind in RUNS:
                    before, began = len(killer.killed), time.perf_counter()
                    wrong = trial(kind, image, folder / "trial", expected[kind], killer, options)
                    now = list(killer.killed.values())[before:]
                    stages.update(now)
                    total, bad, kills = total + 1, bad + bool(wrong), kills + len(now)
                    print(
                        f"{k + 1:3} {kind:11} {time.perf_counter() - began:6.1f} s, {len(now):2} workers killed: "
                        f"{'; '.join(wrong) or 'identical'}",
                        flush=True,
                    )
    print(f"\n{total} runs, {kills} workers killed: {total - bad} identical to a serial run, {bad} wrong")
    print("killed in: " + ", ".join(f"{stage} ({n})" for stage, n in stages.most_common()))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
