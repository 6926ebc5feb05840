"""The command line: parses, prints what went wrong, and leaves the work to others."""

from __future__ import annotations

import argparse
import sys
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
    0; 2 where something was wrong and stderr says what; 1 for an error that nobody foresaw; 130 after Ctrl-C, 143 after
    SIGTERM. A wrong argument raises ``SystemExit(2)``.
    """
    args = _parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    from spatialdata_segment._process import run_command

    return run_command(args)


_VERBS = {
    "run": "segment an image of a store, and write labels, outlines and tables into it",
    "infer": "segment images in files, or all of a folder, and write outlines into files",
    "predict": "first phase of a run: write the dense maps of an image into a folder (the part that wants a GPU)",
    "decode": "second phase of a run: turn dense maps into labels, outlines and tables, elsewhere if need be",
    "resegment": "segment a region of a result again, with other parameters; every other cell stays as it is",
    "report": "write a report of a result: one HTML file with pictures, numbers and how they came about",
    "plan": "print what a run would take: shards, memory, disk, time",
    "poly2mask": "draw the polygons of a folder as a label image, mask.zarr",
    "import": "add labels or polygons of another program to a store, with outlines, labels and tables",
    "stitch": "join the cells of planes that lie in folders into 3D cells, 3d_polygons.parquet",
}


_USAGES = {
    "run": "STORE [STORE ...] [--image KEY] [--workflow NAME|FILE]",
    "infer": "(--image-path FILE | --image-dir DIR) [--model-type NAME] [--output-dir DIR]",
    "predict": "STORE --maps DIR [--image KEY] [--workflow NAME|FILE]",
    "decode": "MAPS (--store STORE | --output STORE) [--workflow NAME|FILE]",
    "resegment": "STORE --region KEY|X0,Y0,X1,Y1 --workflow NAME|FILE [--key PREFIX]",
    "plan": "STORE [STORE ...] [--image KEY] [--workflow NAME|FILE]",
    "report": "STORE [--key NAME] [--image KEY] [--output FILE]",
    "poly2mask": "DIR [--output-dir DIR]",
    "import": "STORE (--labels FILE | --polygons FILE) [--image KEY]",
    "stitch": "DIR [--output-dir DIR]",
}
_EXAMPLES = {
    "run": (
        "tissue.zarr",
        "tissue.zarr --image dapi --workflow wga --channels DAPI,WGA --dry-run",
        "slides/ --workflow config.yaml --n-jobs 8 --overwrite",
        "tissue.zarr --workflow cytosol_cellpose --cluster slurm --cluster-config cluster.yaml",
    ),
    "infer": (
        "--image-path slide.tif --channels 0,1",
        "--image-dir planes --model-type nuclei-small --channels 0 --output-dir cells",
        "--image-path he.svs --model-type he2 --format sdata,geojson",
        "--image-path other.tif --config-file cells/metadata.json",
    ),
    "predict": ("tissue.zarr --workflow nuclei-small --maps maps",),
    "decode": ("maps --output cells.zarr", "maps --store tissue.zarr --workflow stricter.yaml --key-added stricter"),
    "resegment": (
        "tissue.zarr --region 0,0,200,200 --workflow finer.yaml",
        "tissue.zarr --region fold --workflow finer.yaml --dry-run",
    ),
    "plan": ("tissue.zarr --workflow wga --n-jobs 8",),
    "report": ("tissue.zarr", "tissue.zarr --key segmentation --output report.html"),
    "poly2mask": ("cells_results",),
    "import": ("tissue.zarr --labels cells.tif --image dapi", "tissue.zarr --polygons cells.geojson"),
    "stitch": ("planes_results --iou-threshold 0.5 --num-process 8",),
    "config": ("wga > config.yaml", "--from tissue.zarr --table segmentation_table", "--list"),
}


def _examples(name: str) -> str:
    """Return the end of a help page."""
    lines = [f"  spatialdata-segment {name} {arguments}" for arguments in _EXAMPLES.get(name, ())]
    codes = "exit codes: 0 done, 2 something is wrong and the message says what, 1 a fault of the program"
    return "\n".join([*(["examples:", *lines, ""] if lines else []), codes])


class _Command(argparse.ArgumentParser):
    """A command; those of `_VERBS` learn their options when they are called, from functions slow to import."""

    lazy = ""
    is_bare = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, with all options there."""
        if self.lazy:
            from spatialdata_segment import _commands

            getattr(_commands, f"fill_{self.lazy}")(self)
            self.lazy = ""
        if self.is_bare:
            group = self.add_argument_group("for scripts, and when something is wrong")
            group.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
            group.add_argument("--debug", action="store_true", help="show all warnings, and the traceback of an error")
            self.is_bare = False
        found, rest = super().parse_known_args(args, namespace)
        if not hasattr(found, "spelled"):  # a command of a command has set it
            from spatialdata_segment._options import spelled

            found.spelled = spelled(self)
        return found, rest


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
        verb = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            usage=f"spatialdata-segment {name} {_USAGES[name]} [option ...]" if name in _USAGES else None,
            epilog=_examples(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.lazy = name
        _finish(verb, partial(_run_verb, name))
    _add_config(commands)
    _add_cluster(commands)
    _add_demo(commands)
    _add_models(commands)
    return parser


def _add_config(commands: argparse._SubParsersAction[_Command]) -> None:
    config = commands.add_parser(
        "config",
        help="print a configuration to change: of a workflow, a method, or a result that is there",
        description="Print a configuration in YAML with a comment on every parameter, for `run --workflow FILE`.",
        epilog=_examples("config"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config.add_argument(
        "name", nargs="?", metavar="NAME", help="a workflow, such as wga, or a method, such as cellpose"
    )
    config.add_argument("--list", action="store_true", help="names that there are")
    config.add_argument("--from", dest="store", metavar="STORE", help="the configuration that made a result in it")
    config.add_argument("--table", metavar="KEY", help="table of that result (default: the only one)")
    _finish(config, _config)


def _config(args: argparse.Namespace) -> None:
    from spatialdata_segment._config_command import do_config

    do_config(args)


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


def _finish(command: _Command, run: Callable[[argparse.Namespace], None]) -> None:
    command.is_bare = True
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
    args.summary |= {
        "counts": {mask: {"candidates": n, "kept": kept} for mask, (n, kept) in result.counts.items()},
        "dropped": result.dropped,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "f1": {mask: dict(zip(scores.thresholds, scores.f1, strict=True)) for mask, scores in result.scores.items()},
        "files": [str(path) for path in result.files],
    }
    print(result)


def _list_models(args: argparse.Namespace) -> None:
    from spatialdata_segment.methods.cellpose import models as cellpose
    from spatialdata_segment.methods.stardist import models as stardist

    families = {"cellpose": cellpose, "stardist": stardist}
    args.summary["models"] = [{"family": name, **m} for name, family in families.items() for m in family.listed()]
    print("Cellpose", cellpose.overview(), "StarDist", stardist.overview(), sep="\n\n")


def _fetch_models(args: argparse.Namespace) -> None:
    from spatialdata_segment.methods.cellpose.models import check_name, fetch_model, terms
    from spatialdata_segment.methods.stardist import models as stardist

    for name in args.names:
        if name not in stardist.PRETRAINED:
            check_name(name)
    for name in args.names:
        if name in stardist.PRETRAINED:
            folder = stardist.fetch_model(name, progress=not args.quiet)
            args.summary[name] = [str(folder)]
            print(f"{name}: {folder}")
            continue
        files = fetch_model(name, progress=not args.quiet)
        args.summary[name] = [str(path) for path in (files.weights, files.size) if path is not None]
        for path in (files.weights, files.size):
            if path is not None:
                print(f"{name}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
        print(f"{name}: {terms(name)}")
