"""Workers while a block runs: on SLURM, on this machine, or on its GPUs. What they run is the engine's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from spatialdata_segment.cluster.slurm import patient, slurm_client, started
from spatialdata_segment.errors import InputError, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

    from spatialdata_segment.cluster.config import ClusterConfig, Jobs, Phase

Kind = Literal["slurm", "local", "cuda"]
KINDS: tuple[Kind, ...] = ("slurm", "local", "cuda")


@contextmanager
def cluster_client(kind: Kind, config: ClusterConfig | None = None, phase: Phase | None = None) -> Iterator[Client]:
    """Start workers, make their client the active one, and stop them when the block ends.

    Parameters
    ----------
    kind
        "slurm": jobs of SLURM, through dask-jobqueue. "local": processes of this machine. "cuda": one process for
        each GPU of this machine, through dask-cuda.
    config
        What to ask for; None: all of this machine ("local", "cuda").
    phase
        "predict" or "decode": the jobs of that phase; None: those of a run in one.

    Yields
    ------
    The ``distributed.Client``, once a worker is there. Workers with GPUs tell them as the resource ``GPU``.

    Raises
    ------
    MissingError
        If a package is missing; names the extra to install.
    InputError
        If SLURM refuses the jobs, or there is no configuration for it.
    ClusterError
        If no worker starts in time (with SLURM's reason), or all of them end and new ones do as well.
    """
    if kind not in KINDS:
        raise InputError(f"cluster={kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "slurm" and config is None:
        raise InputError(
            "cluster='slurm' needs a configuration: `spatialdata-segment cluster template > cluster.yaml` writes one "
            "to fill in, and --cluster-config cluster.yaml hands it over"
        )
    jobs = None if config is None else config.phase(phase)
    if kind == "slurm":
        assert jobs is not None
        with slurm_client(jobs) as client:
            yield client
        return
    with patient(), _local(jobs) if kind == "local" else _cuda(jobs) as cluster, cluster.get_client() as client:
        yield client


def _local(jobs: Jobs | None) -> Any:
    cls = require("distributed", "cluster").LocalCluster
    if jobs is None:
        return started(cls, {"dashboard_address": None})
    resources = {"GPU": jobs.gpus} if jobs.gpus else None
    n = jobs.count * jobs.processes
    return started(cls, {"n_workers": n, "resources": resources, **_shared(jobs, jobs.processes)})


def _cuda(jobs: Jobs | None) -> Any:
    cls = require("dask_cuda", "gpu").LocalCUDACluster
    gpu = {"GPU": 1}
    if jobs is None:
        return started(cls, {"resources": gpu, "dashboard_address": None})
    if jobs.processes > 1:
        raise InputError(f"processes: {jobs.processes} with --cluster cuda, which starts one for each GPU: set 1")
    gpus = max(jobs.gpus, 1)
    return started(cls, {"n_workers": jobs.count * gpus, "resources": gpu, **_shared(jobs, gpus)})


def _shared(jobs: Jobs, parts: int) -> dict[str, Any]:
    """Return the options of both kinds of workers, of which so many share what a job has."""
    return {
        "threads_per_worker": max(1, jobs.cores // parts),
        "memory_limit": jobs.bytes // parts,
        "local_directory": jobs.local_directory,
        "interface": jobs.interface,
        "dashboard_address": None,
    }
