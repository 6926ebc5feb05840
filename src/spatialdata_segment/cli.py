"""The command line: parses, prints what went wrong, and leaves the work to others."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
    args.argv = list(sys.argv[1:] if argv is None else argv)
    from spatialdata_segment.errors import SegmentationError, SegmentationWarning

    with warnings.catch_warnings():
        if not args.debug:
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", SegmentationWarning)
            warnings.showwarning = _show
            logging.getLogger("ome_zarr").setLevel(logging.ERROR)
        try:
            args.run(args)
        except (SegmentationError, OSError) as error:
            if args.debug:
                raise
            print(f"spatialdata-segment: error: {error}", file=sys.stderr)
            return 2
    return 0


def _show(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning in one line."""
    print(f"spatialdata-segment: warning: {message}", file=sys.stderr)


_VERBS = {
    "run": "segment an image of a store, and write labels, outlines and tables into it",
    "predict": "first phase of a run: write the dense maps of an image into a folder (the part that wants a GPU)",
    "decode": "second phase of a run: turn dense maps into labels, outlines and tables, elsewhere if need be",
    "plan": "print what a run would take: shards, memory, disk, time",
}


class _Command(argparse.ArgumentParser):
    """A command; those of `_VERBS` learn their options when they are called, from functions slow to import."""

    lazy = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, with all options there."""
        if self.lazy:
            from spatialdata_segment import _commands

            getattr(_commands, f"fill_{self.lazy}")(self)
            self.lazy = ""
        return super().parse_known_args(args, namespace)


def _run_verb(name: str, args: argparse.Namespace) -> None:
    from spatialdata_segment import _commands

    getattr(_commands, f"do_{name}")(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatialdata-segment", description="Segment the cells of images of any size, without seams."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Command)
    for name, text in _VERBS.items():
        verb = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        verb.lazy = name
        _finish(verb, partial(_run_verb, name))
    _add_cluster(commands)
    _add_demo(commands)
    _add_models(commands)
    return parser


def _add_cluster(commands: argparse._SubParsersAction[_Command]) -> None:
    cluster = commands.add_parser("cluster", help="print a cluster configuration to fill in")
    actions = cluster.add_subparsers(dest="action", required=True)
    template = actions.add_parser("template", help="YAML for --cluster-config, with a comment on every field")
    _finish(template, partial(_run_verb, "cluster_template"))


def _add_demo(commands: argparse._SubParsersAction[_Command]) -> None:
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
    demo.add_argument(
        "--workflow",
        metavar="NAME",
        help="a workflow that needs a nuclear stain alone, such as nuclei-small; without it, the demo's own",
    )
    demo.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="folder to write")
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    demo.add_argument("--shard-size", type=int, metavar="N", help="pixels of a shard (default: 2048 x 2048)")
    demo.add_argument("--n-jobs", type=int, metavar="N", help="shards in flight (default: one a core)")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    _finish(demo, _demo)


def _add_models(commands: argparse._SubParsersAction[_Command]) -> None:
    models = commands.add_parser("models", help="list and fetch the models of Cellpose and StarDist")
    actions = models.add_subparsers(dest="action", required=True)
    _finish(actions.add_parser("list", help="models known by name, and whether they are there"), _list_models)
    fetch = actions.add_parser(
        "fetch",
        help="download models",
        description="Download models: Cellpose's into CELLPOSE_LOCAL_MODELS_PATH, or ~/.cellpose/models, StarDist's "
        "into KERAS_HOME, or ~/.keras. What is there stays.",
    )
    fetch.add_argument("names", nargs="+", metavar="NAME", help="as `models list` prints it")
    fetch.add_argument("--quiet", action="store_true", help="no progress bars")
    _finish(fetch, _fetch_models)


def _finish(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    command.add_argument("--debug", action="store_true", help="show warnings, and the traceback of an error")
    command.set_defaults(run=run)


def _demo(args: argparse.Namespace) -> None:
    from spatialdata_segment._demo import demo

    result = demo(
        args.output,
        size=args.size,
        image=args.image,
        channel=args.channel,
        workflow=args.workflow,
        shard_size=args.shard_size,
        n_jobs=args.n_jobs,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    print(result)


def _list_models(args: argparse.Namespace) -> None:
    from spatialdata_segment.methods.cellpose import models as cellpose
    from spatialdata_segment.methods.stardist import models as stardist

    print(f"Cellpose\n\n{cellpose.overview()}\n\nStarDist\n\n{stardist.overview()}")


def _fetch_models(args: argparse.Namespace) -> None:
    from spatialdata_segment.methods.cellpose.models import check_name, fetch_model, terms
    from spatialdata_segment.methods.stardist import models as stardist

    for name in args.names:
        if name not in stardist.PRETRAINED:
            check_name(name)
    for name in args.names:
        if name in stardist.PRETRAINED:
            print(f"{name}: {stardist.fetch_model(name, progress=not args.quiet)}")
            continue
        files = fetch_model(name, progress=not args.quiet)
        for path in (files.weights, files.size):
            if path is not None:
                print(f"{name}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
        print(f"{name}: {terms(name)}")
