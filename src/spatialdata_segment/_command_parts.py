"""What commands share: the options of workflow, dry run and workers, their workers, and what is told at the end."""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment._report.make import check_path, report
from spatialdata_segment._table import read_metadata
from spatialdata_segment._targets import read_workflow, target_of
from spatialdata_segment.cluster import batch_script, cluster_client, read_config
from spatialdata_segment.cluster.client import KINDS
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from spatialdata import SpatialData

    from spatialdata_segment._targets import Target
    from spatialdata_segment.cluster import ClusterConfig
    from spatialdata_segment.cluster.config import Phase
    from spatialdata_segment.config import Workflow


def add_workflow(parser: argparse.ArgumentParser) -> None:
    """Add the option of a workflow that has a default."""
    parser.add_argument(
        "--workflow",
        default="dapi",
        metavar="NAME|FILE",
        help="a workflow by name, or a file (.yaml) with the parameters of a Workflow (default: dapi)",
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the option of a report of the result."""
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write a report of the result, an HTML file, as well"
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the options of workers."""
    group = parser.add_argument_group("workers")
    group.add_argument("--cluster", choices=KINDS, help="jobs of SLURM, processes of this machine, or its GPUs")
    group.add_argument("--cluster-config", metavar="FILE", help="what to ask for; see `cluster template`")
    group.add_argument(
        "--sbatch", type=Path, metavar="FILE", help="run nothing: write a batch script that runs this command as a job"
    )


def only_target(args: argparse.Namespace) -> tuple[Target, str, str | Workflow]:
    """Open the one store of a command; return it, its one image and the workflow."""
    flow = read_workflow(args.workflow, args)
    target = target_of(args.store, {} if args.image is None else {args.image: flow}, flow)
    ((key, flow),) = target.flows.items()
    return target, key, flow


def cluster_config(args: argparse.Namespace) -> ClusterConfig | None:
    """Read the cluster configuration; raise where the options do not go together."""
    if args.cluster is None:
        for name in ("cluster_config", "sbatch"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} without --cluster: say which, as in --cluster slurm")
        return None
    if hasattr(args, "n_jobs"):
        raise InputError(
            f"--n-jobs {args.n_jobs} with --cluster: its workers run as many shards as they have cores; set jobs, "
            "cores and processes in the cluster configuration"
        )
    return None if args.cluster_config is None else read_config(args.cluster_config)


def wrote_script(args: argparse.Namespace, config: ClusterConfig | None) -> bool:
    """Write a batch script where one is asked for."""
    if args.sbatch is None:
        return False
    if args.dry_run:
        raise InputError(f"--sbatch {args.sbatch} with --dry-run: leave one out")
    if config is None:
        raise InputError("--sbatch needs --cluster-config, which says what to ask for")
    if getattr(args, "resume", True) is False:
        raise InputError("--sbatch with --no-resume: a job that is requeued would start afresh; leave one out")
    at = next(i for i, part in enumerate(args.argv) if part.partition("=")[0] == "--sbatch")
    length = 1 if "=" in args.argv[at] else 2
    arguments = [*args.argv[:at], *args.argv[at + length :]]
    args.sbatch.write_text(batch_script(config, args.cluster, arguments, Path.cwd()))
    Path(config.phase("driver").log_directory).mkdir(parents=True, exist_ok=True)
    args.summary["script"] = str(args.sbatch)
    print(f"sbatch {args.sbatch}")
    return True


@contextmanager
def workers(args: argparse.Namespace, config: ClusterConfig | None, phase: Phase | None) -> Iterator[Any]:
    """Start the workers that are asked for, and stop them however the block ends; yield their client, or None."""
    if args.cluster is None:
        yield None
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SLURM says so to a job that must end
    try:
        with cluster_client(args.cluster, config, phase) as client:
            yield client
    finally:
        signal.signal(signal.SIGTERM, before)


def tell(args: argparse.Namespace, store: str, sdata: SpatialData) -> None:
    """Print what was written."""
    key_added = f"{getattr(args, 'key_added', 'segmentation')}_"
    every = sorted(name for _, name, _ in sdata.gen_elements())
    names = [n for n in every if n.startswith(key_added) or f"_{key_added}" in n]
    counts = {n: read_metadata(sdata[n])["counts"] for n in names if n.endswith(f"{key_added}table")}
    args.summary.setdefault("results", []).append({"store": store, "elements": names, "counts": counts})
    print(f"{store}: {', '.join(names)}")


def check_report(args: argparse.Namespace, targets: Sequence[Target], unread: Mapping[str, Exception]) -> None:
    """Raise where the report that is asked for cannot be written, before anything runs."""
    if args.report is None:
        return
    several = len(targets) + len(unread) > 1 or any(len(target.flows) > 1 for target in targets)
    if several:
        raise InputError(f"--report {args.report} of several images: leave it out, and call `report` for each of them")
    if getattr(args, "table", True) is False:
        raise InputError(f"--report {args.report} with --no-table: a report is made of the tables, leave one out")
    check_path(args.report, "--report")


def offer_report(args: argparse.Namespace, done: Sequence[Target]) -> None:
    """Write the report that is asked for, or say how to get one, of several images that of the first."""
    if not done or getattr(args, "table", True) is False:
        return
    target, key_added = done[0], getattr(args, "key_added", "segmentation")
    key = target.prefix(next(iter(target.flows)), key_added)
    if args.report is not None:
        print(report(target.sdata, args.report, key=key))
        return
    more = "" if key == "segmentation" else f" --key {shlex.quote(key)}"
    print(f"to look at it: spatialdata-segment report {shlex.quote(target.store)}{more}")
