"""The command ``resegment``: from arguments to the call, checked and told as ``run`` does it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from spatialdata_segment._command_parts import (
    add_cluster,
    add_report,
    check_report,
    cluster_config,
    only_target,
    tell,
    workers,
    wrote_script,
)
from spatialdata_segment._dry_run import dry_resegment
from spatialdata_segment._options import add_dry_run, add_options, given
from spatialdata_segment._report.make import report
from spatialdata_segment._resegment import resegment
from spatialdata_segment._segment import segment
from spatialdata_segment._table import read_metadata
from spatialdata_segment._table_merge import UPDATES
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from spatialdata_segment._targets import Target

_REGION = "roi_key", "bounding_box"
_OPTIONS = (
    "channels", "scale", "to_coordinate_system", "pixel_size", "shard_size", "overlap_px", "n_jobs", "devices",
    "scratch", "resume", "progress",
)  # fmt: skip


def fill_resegment(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``resegment``."""
    parser.add_argument("store", metavar="STORE", help="SpatialData store with a result, such as tissue.zarr")
    parser.add_argument(
        "--region",
        required=True,
        metavar="KEY|X0,Y0,X1,Y1",
        help="shapes or labels of the store, or a box in --to-coordinate-system, of a volume also X0,Y0,Z0,X1,Y1,Z1; "
        "where a number is negative --region=-5,0,20,20",
    )
    parser.add_argument(
        "--workflow", required=True, metavar="NAME|FILE", help="a workflow by name, or a file (.yaml), as for run"
    )
    parser.add_argument("--image", metavar="KEY", help="image of the result (default: the only one)")
    parser.add_argument(
        "--key", "--key-added", dest="key_added", default=argparse.SUPPRESS, metavar="PREFIX",
        help="prefix of the result (default: segmentation)",
    )  # fmt: skip
    add_dry_run(parser)
    add_options(parser, resegment, segment, only=_OPTIONS)
    add_report(parser)
    add_cluster(parser)


def do_resegment(args: argparse.Namespace) -> None:
    """Segment a region of a result again."""
    config = cluster_config(args)
    if wrote_script(args, config):
        return
    target, key, flow = only_target(args)
    options = {k: v for k, v in given(resegment, args).items() if k not in _REGION} | _region(args.region)
    check_report(args, [target], {})
    table = f"{getattr(args, 'key_added', 'segmentation')}_table"
    if args.report is not None and table not in target.sdata.tables:
        raise InputError(f"--report {args.report} of a result without {table}: a report is made of the tables")
    if args.dry_run:
        dry_resegment(args, target, key, flow, options)
        return
    with workers(args, config, None):
        resegment(target.sdata, key, flow, **options)
    _tell(args, target, table)


def _region(text: str) -> dict[str, Any]:
    """Return a region as the functions take it: numbers are a box, anything else is a name."""
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        return {"roi_key": text}
    return {"bounding_box": box} if len(box) > 1 else {"roi_key": text}


def _tell(args: argparse.Namespace, target: Target, table: str) -> None:
    """Print what was written, and how many cells went and came."""
    tell(args, target.store, target.sdata)
    if table in target.sdata.tables:
        counts = read_metadata(target.sdata[table])[UPDATES][-1]["counts"]
        args.summary["results"][-1]["update"] = counts
        for mask, of in counts.items():
            print(f"{mask}: {of['replaced']} went, {of['kept']} came")
    if args.report is not None:
        print(report(target.sdata, args.report, key=table.removesuffix("_table")))
