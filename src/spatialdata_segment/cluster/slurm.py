"""Workers in jobs of SLURM: submitted through dask-jobqueue, waited for, replaced when they end early."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta

from spatialdata_segment.cluster.config import seconds
from spatialdata_segment.errors import ClusterError, InputError, MissingError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from distributed import Client

    from spatialdata_segment.cluster.config import Jobs

logger = logging.getLogger(__name__)

JOB_NAME = "spatialdata-segment"

_SHOWN = 800
"""Characters of a log in an error."""
_POLL_S = 5.0
"""Between two looks at the queue."""
_TRIES = 3
"""Times that all jobs may end in a row, no worker between, before the run is given up."""


@contextmanager
def slurm_client(jobs: Jobs) -> Iterator[Client]:
    """Submit jobs and yield the active client of their workers; see `cluster_client`."""
    cls = _cluster_class()
    require("cryptography", "cluster")
    with patient(), started(cls, _options(jobs)) as cluster:
        _check(cluster.job_script())
        with cluster.get_client() as client:
            cluster.scale(jobs=jobs.count)
            _first_worker(cluster, jobs)
            keeper = _Keeper(cluster, client, jobs)
            try:
                with keeper:
                    yield client
            finally:
                if keeper.error is not None:  # what else is raised, or was caught, follows from it
                    raise keeper.error


def _cluster_class() -> Callable[..., Any]:
    """Import ``SLURMCluster``, and give Ctrl-C back: at its import the package makes of it an end without an error."""
    if "dask_jobqueue" not in sys.modules and threading.current_thread() is not threading.main_thread():
        raise ClusterError("jobs of SLURM can only be started from the main thread of a program: call from there")
    before = signal.getsignal(signal.SIGINT)
    cls: Callable[..., Any] = require("dask_jobqueue", "cluster").SLURMCluster
    if signal.getsignal(signal.SIGINT) is not before:
        signal.signal(signal.SIGINT, before)
    return cls


def patient() -> AbstractContextManager[Any]:
    """Let dask wait for workers that it lost.

    A process that starts anew on a busy machine, or a job that SLURM requeues, comes back under its name.
    """
    return dask.config.set({"distributed.deploy.lost-worker-timeout": "10000 days"})


def started(cls: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return a cluster, or say why there is none."""
    try:
        return cls(**options)
    except (ValueError, RuntimeError, OSError) as error:
        raise ClusterError(f"no cluster: {error}. Check interface and gpus in the cluster configuration") from error


def _options(jobs: Jobs) -> dict[str, Any]:
    """Return the arguments of ``SLURMCluster``; what is None comes from dask's own configuration, if there is one."""
    limit = seconds(jobs.walltime)
    margin = min(300, limit // 10)  # workers hand over what they hold, and leave, before they are killed
    workers = ["--no-dashboard", "--lifetime", f"{limit - margin}s", "--lifetime-stagger", f"{margin // 2}s"]
    directives = list(jobs.extra_directives)
    if jobs.gpus:
        directives.append(f"--gres=gpu:{jobs.gpus}")
        workers += ["--resources", f"GPU={jobs.gpus}"]
    if jobs.nodes is not None:
        directives += ["--nodes=1", "--exclusive"]
    from distributed.security import Security

    logs = Path(jobs.log_directory).absolute()
    logs.mkdir(parents=True, exist_ok=True)
    given = {
        "cores": jobs.cores,
        "memory": jobs.memory,
        "processes": jobs.processes,
        "walltime": jobs.walltime,
        "queue": jobs.partition,
        "account": jobs.account,
        "interface": jobs.interface,
        "python": jobs.python,
        "local_directory": jobs.local_directory,
        "log_directory": str(logs),
        "protocol": "tls://",  # else whoever reaches the scheduler's port can run code as the user
        "security": Security.temporary(),
        "shared_temp_directory": str(logs),
        "job_name": JOB_NAME,
        "job_extra_directives": directives or None,
        "job_script_prologue": list(jobs.job_script_prologue) or None,
        "worker_extra_args": workers,
        "scheduler_options": {"dashboard": False, "dashboard_address": ":0"},
    }
    return {name: value for name, value in given.items() if value is not None}


def _check(script: str) -> None:
    """Ask SLURM whether it would take the job, before anything is submitted."""
    try:
        done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MissingError(
            "sbatch is not there: run this where jobs are submitted, or take --cluster local for this machine"
        ) from None
    if done.returncode:
        raise InputError(f"SLURM refuses the jobs: {' '.join(done.stderr.split())}. Change the cluster configuration")


def queued() -> dict[str, str] | None:
    """Return the state of each of the user's jobs in the queue; None where SLURM does not answer."""
    command = ["squeue", "--noheader", "--me", "--format=%i %T (%r)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def _first_worker(cluster: Any, jobs: Jobs) -> None:
    """Wait until a worker is there, or say why none comes."""
    end = time.monotonic() + parse_timedelta(jobs.start_timeout)
    while not _has_worker(cluster, _POLL_S):
        submitted = [str(job.job_id) for job in list(cluster.workers.values())]
        states = queued()
        waiting = {i: state for i, state in (states or {}).items() if i in submitted}
        if submitted and states is not None and not waiting:
            raise ClusterError(f"every job ended before its worker was there. {_log(jobs, submitted[0])}")
        if time.monotonic() > end:
            said = ", ".join(f"job {i} is {state}" for i, state in waiting.items()) or "squeue tells of no job"
            raise ClusterError(
                f"no worker within {jobs.start_timeout}: {said}. Wait longer (start_timeout), ask for less, or take "
                f"another partition; where a job runs, see its log in {jobs.log_directory}, and interface"
            )


def _has_worker(cluster: Any, timeout: float) -> bool:
    """Wait for a worker, for some seconds."""
    end = time.monotonic() + timeout
    while not cluster.scheduler_info["workers"] and time.monotonic() < end:
        time.sleep(0.1)
    return bool(cluster.scheduler_info["workers"])


def _log(jobs: Jobs, job_id: str) -> str:
    """Return the end of what a job wrote."""
    if job_id == "None":
        return "sbatch took none of them: its message stands above"
    for path in sorted(Path(jobs.log_directory).glob(f"{JOB_NAME}-{job_id}*.err")):
        text = path.read_text(errors="replace").strip()
        return f"{path} ends: {text[-_SHOWN:]}" if text else f"{path} is empty"
    return f"There is no log of job {job_id} in {jobs.log_directory}: is the folder shared with the nodes?"


class _Keeper:
    """Replaces jobs that are no longer in the queue, while its block runs.

    Jobs that SLURM requeues stay there, and come back by themselves. When jobs only end and no worker appears, the
    client is closed, which ends the run with `error`.
    """

    def __init__(self, cluster: Any, client: Client, jobs: Jobs) -> None:
        self.error: ClusterError | None = None
        self._cluster, self._client, self._jobs = cluster, client, jobs
        self._lost, self._numbers = 0, count()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="slurm-keeper", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            known = {name: str(job.job_id) for name, job in list(self._cluster.workers.items())}
            states = queued()
            if states is None:
                continue
            if self._cluster.scheduler_info["workers"]:
                self._lost = 0
            wanted = self._cluster.worker_spec
            gone = {name: job for name, job in known.items() if name in wanted and job not in states}
            if not gone:
                continue
            self._lost += len(gone)
            logger.warning("jobs %s ended: others take their place", ", ".join(gone.values()))
            if self._lost >= _TRIES * self._jobs.count:
                last = next(iter(gone.values()))
                self.error = ClusterError(
                    f"{self._lost} jobs ended one after the other, and no worker was there between. "
                    f"{_log(self._jobs, last)}. Finished shards are kept: the same call goes on from them"
                )
                self._client.close()
                return
            self._cluster.loop.add_callback(self._replace, list(gone))

    def _replace(self, gone: list[str]) -> None:
        """Give each a new name: the scheduler may not know yet that the old one left."""
        spec = self._cluster.worker_spec
        for name in gone:
            del spec[name]
            spec[f"{JOB_NAME}-{next(self._numbers)}"] = self._cluster.new_spec
        self._cluster.scale(jobs=self._jobs.count)
