"""The commands ``run``, ``predict``, ``decode``, ``plan`` and ``cluster``: from arguments to calls."""

from __future__ import annotations

import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spatialdata_segment import _elements
from spatialdata_segment._maps import read_manifest
from spatialdata_segment._options import add_options, given
from spatialdata_segment._phases import decode, predict
from spatialdata_segment._preview import _DEFAULTS as PLANNED
from spatialdata_segment._preview import plan
from spatialdata_segment._segment import DOT, segment
from spatialdata_segment._stores import open_or_make_store, open_store
from spatialdata_segment._yaml import read_yaml
from spatialdata_segment.cluster import batch_script, cluster_client, read_config, template
from spatialdata_segment.cluster.client import KINDS
from spatialdata_segment.config import as_workflow
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from spatialdata import SpatialData

    from spatialdata_segment.cluster import ClusterConfig
    from spatialdata_segment.cluster.config import Phase
    from spatialdata_segment.config import Workflow


def fill_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``run``."""
    _add_image(parser)
    add_options(parser, segment, segment)
    _add_cluster(parser)


def fill_predict(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    _add_image(parser)
    parser.add_argument("--maps", required=True, metavar="DIR", help="folder to write: new, or of an earlier call")
    add_options(parser, predict, segment)
    _add_cluster(parser)


def fill_decode(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``decode``."""
    parser.add_argument("maps", metavar="MAPS", help="folder that predict wrote")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--store", help="write into this store, such as the image's own: then intensities are measured")
    where.add_argument("--output", metavar="STORE", help="the same; where it is not there, an empty one is made")
    parser.add_argument("--workflow", metavar="NAME|FILE", help="with other thresholds (default: that of predict)")
    add_options(parser, decode, segment)
    _add_cluster(parser)


def fill_plan(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``plan``."""
    _add_image(parser)
    add_options(parser, segment, segment, only={*PLANNED, "n_jobs"})


def _add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="SpatialData store, such as tissue.zarr")
    parser.add_argument("--image", required=True, metavar="KEY", help="name of the image in it")
    parser.add_argument(
        "--workflow",
        default="dapi",
        metavar="NAME|FILE",
        help="a workflow by name, or a file (.yaml) with the parameters of a Workflow (default: dapi)",
    )


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workers")
    group.add_argument("--cluster", choices=KINDS, help="jobs of SLURM, processes of this machine, or its GPUs")
    group.add_argument("--cluster-config", metavar="FILE", help="what to ask for; see `cluster template`")
    group.add_argument(
        "--sbatch", type=Path, metavar="FILE", help="run nothing: write a batch script that runs this command as a job"
    )


def do_run(args: argparse.Namespace) -> None:
    """Segment an image of a store; with phases in the cluster configuration, in two."""
    config = _cluster_config(args)
    if _wrote_script(args, config):
        return
    sdata, workflow = open_store(args.store), read_workflow(args.workflow)
    if config is not None and config.two_phases:
        _run_in_two(args, sdata, workflow, config)
    else:
        with _workers(args, config, None):
            segment(sdata, args.image, workflow, **given(segment, args))
    _tell(args, sdata)


def _run_in_two(args: argparse.Namespace, sdata: SpatialData, workflow: str | Workflow, config: ClusterConfig) -> None:
    """Predict on the workers of one phase, decode on those of the other."""
    options = given(segment, args)
    planned = plan(
        sdata,
        args.image,
        workflow,
        n_jobs=1,
        **{k: options[k] for k in PLANNED.keys() & options.keys()} | {"devices": "cpu"},
    )
    _elements.check_outputs(sdata, planned.outputs, options.get("overwrite", False))
    maps = Path(args.store) / DOT / f"{options.get('key_added', 'segmentation')}.maps"
    with _workers(args, config, "predict"):
        predict(sdata, args.image, workflow, maps, **(given(predict, args) | {"overwrite": True}))
    with _workers(args, config, "decode"):
        decode(maps, sdata=sdata, **given(decode, args))
    if not options.get("keep_maps"):
        shutil.rmtree(maps)


def do_predict(args: argparse.Namespace) -> None:
    """Write the maps of an image."""
    config = _cluster_config(args)
    if _wrote_script(args, config):
        return
    sdata, workflow = open_store(args.store), read_workflow(args.workflow)
    with _workers(args, config, "predict"):
        print(predict(sdata, args.image, workflow, args.maps, **given(predict, args)))


def do_decode(args: argparse.Namespace) -> None:
    """Turn maps into a result."""
    config = _cluster_config(args)
    if _wrote_script(args, config):
        return
    workflow = None if args.workflow is None else read_workflow(args.workflow)
    read_manifest(Path(args.maps))  # nothing is made where there are no maps
    sdata = open_or_make_store(args.output) if args.store is None else open_store(args.store)
    with _workers(args, config, "decode"):
        decode(args.maps, sdata=sdata, workflow=workflow, **given(decode, args))
    args.store = args.store or args.output
    _tell(args, sdata)


def do_plan(args: argparse.Namespace) -> None:
    """Print what a run would take."""
    print(plan(open_store(args.store), args.image, read_workflow(args.workflow), **given(segment, args)))


def do_cluster_template(_: argparse.Namespace) -> None:
    """Print a cluster configuration."""
    print(template(), end="")


def read_workflow(given: str) -> str | Workflow:
    """Return the workflow of a YAML file, or the name as it is."""
    if Path(given).suffix in (".yaml", ".yml"):
        return as_workflow(read_yaml(given, "workflow"))
    return given


def _cluster_config(args: argparse.Namespace) -> ClusterConfig | None:
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


def _wrote_script(args: argparse.Namespace, config: ClusterConfig | None) -> bool:
    """Write a batch script where one is asked for."""
    if args.sbatch is None:
        return False
    if config is None:
        raise InputError("--sbatch needs --cluster-config, which says what to ask for")
    if getattr(args, "resume", True) is False:
        raise InputError("--sbatch with --no-resume: a job that is requeued would start afresh; leave one out")
    at = next(i for i, part in enumerate(args.argv) if part.partition("=")[0] == "--sbatch")
    length = 1 if "=" in args.argv[at] else 2
    arguments = [*args.argv[:at], *args.argv[at + length :]]
    args.sbatch.write_text(batch_script(config, args.cluster, arguments, Path.cwd()))
    Path(config.phase("driver").log_directory).mkdir(parents=True, exist_ok=True)
    print(f"sbatch {args.sbatch}")
    return True


@contextmanager
def _workers(args: argparse.Namespace, config: ClusterConfig | None, phase: Phase | None) -> Iterator[None]:
    """Start the workers that are asked for, and stop them however the block ends."""
    if args.cluster is None:
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SLURM says so to a job that must end
    try:
        with cluster_client(args.cluster, config, phase):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(args: argparse.Namespace, sdata: SpatialData) -> None:
    """Print what was written."""
    prefix = f"{getattr(args, 'key_added', 'segmentation')}_"
    names = sorted(name for _, name, _ in sdata.gen_elements() if name.startswith(prefix))
    print(f"{args.store}: {', '.join(names)}")
