"""The command line: parses, prints what went wrong, and leaves the work to others."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from spatialdata_segment._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``spatialdata-segment``.

    Parameters
    ----------
    argv
        Arguments; None: those of the process.

    Returns
    -------
    0, or 2 where something was wrong and stderr says what; a wrong argument raises ``SystemExit(2)``.
    """
    args = _parser().parse_args(argv)
    from spatialdata_segment.errors import SegmentationError

    with warnings.catch_warnings():
        if not args.debug:
            warnings.simplefilter("ignore")
            logging.getLogger("ome_zarr").setLevel(logging.ERROR)
        try:
            _demo(args)
        except (SegmentationError, OSError) as error:
            if args.debug:
                raise
            print(f"spatialdata-segment: error: {error}", file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatialdata-segment", description="Segment the cells of images of any size, without seams."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="segment synthetic tissue, or an image file, and write a store and a picture",
        description="Make synthetic tissue (or read an image), segment nuclei and cells, print counts, time, peak "
        "memory and the score against the truth, and write an OME-Zarr store and a picture to look at.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--size", type=int, default=4096, metavar="PX", help="side of the synthetic image")
    demo.add_argument("--image", type=Path, metavar="FILE", help="a TIFF or PNG to segment instead")
    demo.add_argument("--channel", type=int, default=0, metavar="N", help="channel of FILE that shows the nuclei")
    demo.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="folder to write")
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    demo.add_argument("--shard-size", type=int, metavar="N", help="pixels of a shard (default: 2048 x 2048)")
    demo.add_argument("--n-jobs", type=int, metavar="N", help="shards in flight (default: one a core)")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.add_argument("--debug", action="store_true", help="show warnings, and the traceback of an error")
    return parser


def _demo(args: argparse.Namespace) -> None:
    from spatialdata_segment._demo import demo

    result = demo(
        args.output,
        size=args.size,
        image=args.image,
        channel=args.channel,
        shard_size=args.shard_size,
        n_jobs=args.n_jobs,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    print(result)
