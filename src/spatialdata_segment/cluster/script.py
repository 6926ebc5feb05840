"""A batch script that runs a command of the command line as a job, which submits the workers and waits for them."""

from __future__ import annotations

import shlex
import sys
from math import ceil
from typing import TYPE_CHECKING

from spatialdata_segment.cluster.slurm import JOB_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spatialdata_segment.cluster.client import Kind
    from spatialdata_segment.cluster.config import ClusterConfig

_TEMPLATE = """\
#!/usr/bin/env bash
# Runs spatialdata-segment {command}. Submit it with sbatch. Requeued, or submitted again, it goes on from what is
# finished; shortly before its time limit it requeues itself.
{directives}

{prologue}
stop() {{ kill "$run" 2>/dev/null; while kill -0 "$run" 2>/dev/null; do wait "$run"; done; }}
trap stop TERM
trap 'stop; scontrol requeue "$SLURM_JOB_ID"' USR1
{call} &
run=$!
wait "$run"
"""


def batch_script(config: ClusterConfig, kind: Kind, arguments: Sequence[str], folder: Path) -> str:
    """Return a script for ``sbatch``.

    Parameters
    ----------
    config
        What to ask for: the section ``driver`` where the workers have jobs of their own ("slurm"), else all that the
        workers need.
    kind
        Of the cluster that the command starts.
    arguments
        Of ``spatialdata-segment``.
    folder
        Where it runs.
    """
    job, n = config.phase("driver"), 1
    if kind != "slurm":
        job = config.phase(None)
        n = job.count
    directives = [
        f"--job-name={JOB_NAME}-driver",
        f"--chdir={shlex.quote(str(folder))}",
        f"--output={shlex.quote(job.log_directory)}/{JOB_NAME}-driver-%j.out",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@120",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={job.cores * n}",
        f"--time={job.walltime}",
        f"--mem={ceil(job.bytes * n / 2**20)}M",
    ]
    if job.gpus:
        directives.append(f"--gres=gpu:{job.gpus * n}")
    for name, value in (("partition", job.partition), ("account", job.account)):
        if value is not None:
            directives.append(f"--{name}={value}")
    return _TEMPLATE.format(
        command=arguments[0],
        directives="\n".join(f"#SBATCH {line}" for line in [*directives, *job.extra_directives]),
        prologue="".join(f"{line}\n" for line in job.job_script_prologue),
        call=f"{shlex.quote(job.python or sys.executable)} -m spatialdata_segment {shlex.join(arguments)}",
    )
