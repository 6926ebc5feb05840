"""The commands ``run``, ``predict``, ``decode``, ``plan``, ``report`` and ``cluster``: from arguments to calls."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from spatialdata_segment import _elements
from spatialdata_segment._command_parts import (
    add_cluster,
    add_report,
    add_workflow,
    check_report,
    cluster_config,
    offer_report,
    only_target,
    tell,
    workers,
    wrote_script,
)
from spatialdata_segment._dry_run import dry_decode, dry_predict, dry_run
from spatialdata_segment._infer.command import do_infer as do_infer
from spatialdata_segment._infer.command import fill_infer as fill_infer
from spatialdata_segment._maps import read_manifest
from spatialdata_segment._options import add_dry_run, add_options, given
from spatialdata_segment._phases import decode, predict
from spatialdata_segment._preview import PLANNED, plan
from spatialdata_segment._report.make import report
from spatialdata_segment._resegment_command import do_resegment as do_resegment
from spatialdata_segment._resegment_command import fill_resegment as fill_resegment
from spatialdata_segment._segment import DOT, segment
from spatialdata_segment._stores import open_or_make_store, open_store
from spatialdata_segment._targets import Target, each, find_targets, raise_failed, read_workflow
from spatialdata_segment.cluster import template
from spatialdata_segment.errors import InputError
from spatialdata_segment.formats._commands import do_import as do_import
from spatialdata_segment.formats._commands import do_poly2mask as do_poly2mask
from spatialdata_segment.formats._commands import do_stitch as do_stitch
from spatialdata_segment.formats._commands import fill_import as fill_import
from spatialdata_segment.formats._commands import fill_poly2mask as fill_poly2mask
from spatialdata_segment.formats._commands import fill_stitch as fill_stitch

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from spatialdata_segment.cluster import ClusterConfig
    from spatialdata_segment.cluster.config import Phase
    from spatialdata_segment.errors import SegmentationError


def fill_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``run``."""
    _add_stores(parser)
    add_dry_run(parser)
    add_options(parser, segment, segment)
    add_report(parser)
    add_cluster(parser)


def fill_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    parser.add_argument("store", metavar="STORE", help="SpatialData store with a result, such as tissue.zarr")
    parser.add_argument("--image", metavar="KEY", help="image to draw (default: the one that was segmented)")
    parser.add_argument("--output", metavar="FILE", type=Path, default=Path("report.html"), help="default: %(default)s")
    add_options(parser, report, report, only=("key", "channels", "n_crops", "crop_size", "title"))
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which crops are drawn (default: %(default)s)")


def fill_predict(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    parser.add_argument("store", metavar="STORE", help="SpatialData store, such as tissue.zarr")
    parser.add_argument("--image", metavar="KEY", help="name of the image in it (default: the only one)")
    add_workflow(parser)
    parser.add_argument("--maps", required=True, metavar="DIR", help="folder to write: new, or of an earlier call")
    add_dry_run(parser)
    add_options(parser, predict, segment)
    add_cluster(parser)


def fill_decode(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``decode``."""
    parser.add_argument("maps", metavar="MAPS", help="folder that predict wrote")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--store", help="write into this store, such as the image's own: then intensities are measured")
    where.add_argument("--output", metavar="STORE", help="the same; where it is not there, an empty one is made")
    parser.add_argument("--workflow", metavar="NAME|FILE", help="with other thresholds (default: that of predict)")
    add_dry_run(parser)
    add_options(parser, decode, segment)
    add_cluster(parser)


def fill_plan(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``plan``."""
    _add_stores(parser)
    add_options(parser, segment, segment, only={*PLANNED, "n_jobs"})


def _add_stores(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stores", nargs="+", metavar="STORE", help="SpatialData stores, such as tissue.zarr, or folders of them"
    )
    parser.add_argument(
        "--image",
        action="append",
        metavar="KEY[=WORKFLOW]",
        help="an image in them (default: the only one), and its workflow if not that of all; again for each of several",
    )
    add_workflow(parser)


def do_run(args: argparse.Namespace) -> None:
    """Segment images of stores; with phases in the cluster configuration, in two."""
    config = cluster_config(args)
    if wrote_script(args, config):
        return
    targets, unread = find_targets(args)
    check_report(args, targets, unread)
    if args.dry_run:
        failed = dry_run(args, targets, two_phases=config is not None and config.two_phases)
        _raise_failed(args, unread | failed, len(targets) + len(unread))
        return
    if config is not None and config.two_phases:
        failed = _run_in_two(args, targets, config)
    else:
        with workers(args, config, None) as client:
            failed = each(targets, lambda target: _run_one(args, target), client)
    done = [target for target in targets if target.store not in failed]
    for target in done:
        tell(args, target.store, target.sdata)
    offer_report(args, done)
    _raise_failed(args, unread | failed, len(targets) + len(unread))


def _run_one(args: argparse.Namespace, target: Target) -> None:
    if len(target.flows) > 1:
        segment(target.sdata, target.flows, **given(segment, args))
        return
    ((key, flow),) = target.flows.items()
    segment(target.sdata, key, flow, **given(segment, args))


def _run_in_two(
    args: argparse.Namespace, targets: Sequence[Target], config: ClusterConfig
) -> dict[str, SegmentationError | OSError]:
    """Predict on the workers of one phase, decode on those of the other; return the errors by store."""
    options = given(segment, args)

    def prefix(target: Target, key: str) -> str:
        return target.prefix(key, options.get("key_added", "segmentation"))

    def maps(target: Target, key: str) -> Path:
        return Path(target.store) / DOT / f"{prefix(target, key)}.maps"

    def check(target: Target) -> None:
        if "://" in target.store:
            raise InputError(
                f"{target.store} is no folder, and a run in two phases keeps its maps in the store: take predict and "
                "decode with --maps, or a configuration without phases"
            )
        planned = {k: v for k, v in options.items() if k in PLANNED} | {"devices": "cpu", "n_jobs": 1}
        for key, flow in target.flows.items():  # warnings come with the run
            with warnings.catch_warnings(action="ignore"):
                outputs = plan(target.sdata, key, flow, **planned | {"key_added": prefix(target, key)}).outputs
            _elements.check_outputs(target.sdata, outputs, options.get("overwrite", False))

    def first(target: Target) -> None:
        for key, flow in target.flows.items():
            predict(target.sdata, key, flow, maps(target, key), **given(predict, args) | {"overwrite": True})

    def second(target: Target) -> None:
        for key in target.flows:
            how = given(decode, args) | {"key_added": prefix(target, key)}
            if "scratch" in how and len(target.flows) > 1:
                how["scratch"] = Path(how["scratch"]) / key
            decode(maps(target, key), sdata=target.sdata, **how)
            if not options.get("keep_maps"):
                shutil.rmtree(maps(target, key))

    failed = each(targets, check)
    phases: dict[Phase, Callable[[Target], None]] = {"predict": first, "decode": second}
    for phase, work in phases.items():
        left = [target for target in targets if target.store not in failed]
        if left:
            with workers(args, config, phase) as client:
                failed |= each(left, work, client)
    return failed


def do_report(args: argparse.Namespace) -> None:
    """Write a report of a result."""
    written = report(open_store(args.store), args.output, image_key=args.image, rng=args.seed, **given(report, args))
    args.summary["output"] = str(written)
    print(written)


def do_predict(args: argparse.Namespace) -> None:
    """Write the maps of an image."""
    config = cluster_config(args)
    if wrote_script(args, config):
        return
    target, key, flow = only_target(args)
    if args.dry_run:
        dry_predict(args, target, key, flow)
        return
    with workers(args, config, "predict"):
        print(predict(target.sdata, key, flow, args.maps, **given(predict, args)))
    args.summary |= {"store": target.store, "image": key, "maps": args.maps}


def do_decode(args: argparse.Namespace) -> None:
    """Turn maps into a result."""
    config = cluster_config(args)
    if wrote_script(args, config):
        return
    workflow = None if args.workflow is None else read_workflow(args.workflow, args)
    if args.dry_run:
        dry_decode(args, workflow)
        return
    read_manifest(Path(args.maps))  # nothing is made where there are no maps
    sdata = open_or_make_store(args.output) if args.store is None else open_store(args.store)
    with workers(args, config, "decode"):
        decode(args.maps, sdata=sdata, workflow=workflow, **given(decode, args))
    tell(args, args.store or args.output, sdata)


def do_plan(args: argparse.Namespace) -> None:
    """Print what a run would take."""
    targets, failed = find_targets(args)
    options = {k: v for k, v in given(segment, args).items() if k in (*PLANNED, "n_jobs")}
    for target in targets:
        for key, flow in target.flows.items():
            prefix = target.prefix(key, options.get("key_added", "segmentation"))
            found = plan(target.sdata, key, flow, **options | {"key_added": prefix})
            args.summary.setdefault("plans", []).append({"of": f"{target.store} {key}", **asdict(found)})
            print(f"{target.store} {key}: {found}")
    _raise_failed(args, failed, len(targets) + len(failed))


def do_cluster_template(args: argparse.Namespace) -> None:
    """Print a cluster configuration."""
    args.summary["yaml"] = template()
    print(args.summary["yaml"], end="")


def _raise_failed(args: argparse.Namespace, failed: dict[str, SegmentationError | OSError], total: int) -> None:
    """Raise where some stores failed, and list them in the summary."""
    args.summary["failed"] = {store: str(error) for store, error in failed.items()}
    raise_failed(failed, total)
