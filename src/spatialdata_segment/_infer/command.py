"""The command ``infer``: from arguments to calls."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment._infer.folder import image_name, infer_folder, plan_folder
from spatialdata_segment._infer.models import DEFAULT, fetch
from spatialdata_segment._infer.run import Job, infer, planned
from spatialdata_segment._infer.settings import FORMATS, OPTIONS, RUN, settings_of
from spatialdata_segment._options import add_options, given
from spatialdata_segment._segment import segment
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from spatialdata_segment._infer.settings import Settings
    from spatialdata_segment._preview import RunPlan

_OPTIONS = {
    "bounding_box": "x_min,y_min,x_max,y_max in px: only cells in there are looked for",
    "pixel_size": "µm a pixel, a number or y,x (default: what the file says)",
    "overlap_px": "halo read on each side of a shard, a number or y,x (default: the model's)",
    "n_jobs": "shards in flight (default: one a core); PART=N tells apart decode, queue and write",
    "shard_size": "pixels of a shard, at most (default: 2048 x 2048)",
    "devices": "", "resume": "", "progress": "",
}  # fmt: skip
"""Of `segment`, and what they mean here, where that is not what they mean there."""


def fill_infer(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``infer``."""
    parser.description = (
        "Segment images in files, or all of a folder, and write polygons.parquet (outlines in px) and metadata.json\n"
        "into the output folder; of a folder into one for each image, with configs.yml, which `stitch` reads.\n"
        "A run that was killed goes on where it stopped."
    )
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--image-path", type=Path, metavar="FILE", help="an image: TIFF, Zarr, OME-Zarr, PNG, JPEG")
    images.add_argument("--image-dir", type=Path, metavar="DIR", help="a folder of images")
    _add_reading(parser.add_argument_group("the image"))
    _add_model(parser.add_argument_group("the model"))
    _add_writing(parser.add_argument_group("the result"))
    add_options(parser, segment, segment, only=set(_OPTIONS), said={k: v for k, v in _OPTIONS.items() if v})


def _add_reading(group: Any) -> None:
    absent = argparse.SUPPRESS
    group.add_argument(
        "--image-type", choices=("tiff", "zarr", "cv2", "image"), default=absent,
        help="what the files are (default: told by their content); cv2 and image: PNG, JPEG and other pictures",
    )  # fmt: skip
    group.add_argument(
        "--channels", type=_channels, default=absent, metavar="A,B",
        help="names or 0-based indices, in the model's order: membrane, nucleus (a zero channel where there is none); "
        "of H&E red, green, blue; for a workflow nucleus, membrane (default: all, if the model takes so many)",
    )  # fmt: skip
    group.add_argument(
        "--channel-last", action="store_true", default=absent, help="the channels are the last axis of the files"
    )
    group.add_argument("--page", type=int, default=absent, metavar="N", help="plane of files that have several, from 0")


def _add_model(group: Any) -> None:
    group.add_argument(
        "--model-type", metavar="NAME",
        help=f"a model of Cellpose (see `models list`), a pretrained one of StarDist, a workflow, or he or he2: H&E "
        f"(default: {DEFAULT})",
    )  # fmt: skip
    group.add_argument("--model-path", type=Path, metavar="FILE", help="weights of your own, trained with Cellpose")
    group.add_argument("--size-model-path", type=Path, metavar="FILE", help="their size model")
    group.add_argument(
        "--scale", type=float, metavar="X", help="factor by which images are resized for the network (default: by the "
        "size of the cells, which is estimated)",
    )  # fmt: skip
    group.add_argument("--diameter", type=float, metavar="PX", help="of the cells, in place of --scale")
    group.add_argument(
        "--config-file", type=Path, metavar="FILE",
        help="YAML of Turing Segment, scPortrait or a Workflow, or the metadata.json of a run to repeat",
    )  # fmt: skip


def _add_writing(group: Any) -> None:
    group.add_argument(
        "--output-dir", type=Path, metavar="DIR",
        help="default: {image_name}_{page}_{channels}_{model_type} here, or {image_dir}_results",
    )  # fmt: skip
    group.add_argument(
        "--format", type=_formats, default=(), metavar="A,B", dest="formats",
        help=f"written as well: {', '.join(FORMATS)} (a SpatialData store, GeoJSON for QuPath, ROIs of ImageJ, a "
        "label image, _seg.npy of Cellpose)",
    )  # fmt: skip
    group.add_argument("--no-image", action="store_false", dest="keep_image", help="leave the image out of the store")
    group.add_argument(
        "--z-index", type=int, default=argparse.SUPPRESS, metavar="N", help="plane of a stack that the image is"
    )
    group.add_argument("--overwrite", action="store_true", default=argparse.SUPPRESS, help="replace an earlier result")
    group.add_argument("--dry-run", action="store_true", help="check everything, print the plan, and write nothing")


def do_infer(args: argparse.Namespace) -> None:
    """Segment an image, or all of a folder."""
    options = given(segment, args)
    said = {name: options[name] for name in RUN if name in options}
    options = {name: value for name, value in options.items() if name in OPTIONS}
    if args.image_dir is not None and hasattr(args, "z_index"):
        raise InputError(f"--z-index {args.z_index} with --image-dir: it is of one image; edit configs.yml afterwards")
    if not args.keep_image and "sdata" not in args.formats:
        raise InputError("--no-image without --format sdata: there is no store to leave the image out of")
    settings = settings_of(vars(args), options)
    run = {"overwrite": False, "resume": True, "progress": True} | settings.run | said
    fetch(settings.model, progress=run["progress"])
    if settings.model.note is not None:
        print(settings.model.note)
    if args.dry_run:
        _dry(args, settings, overwrite=run["overwrite"])
        return
    if args.image_dir is not None:
        output = args.output_dir or Path(f"{args.image_dir.resolve()}_results")
        args.summary |= {"output": str(output), "images": {}}

        def tell(line: str, name: str, found: int | str) -> None:
            args.summary["images"][name] = {"cells": found} if isinstance(found, int) else {"error": found}
            print(line)

        infer_folder(args.image_dir, output, settings, tell=tell, **run)
        print(f"{output}: configs.yml")
        return
    job = Job.of(args.image_path, settings)
    output = args.output_dir or Path(_default_name(args.image_path, job))
    n_cells = infer(job, output, **run)
    args.summary |= {"output": str(output), "cells": n_cells, "note": settings.model.note}
    print(f"{output}: {n_cells:,} cells")


def _dry(args: argparse.Namespace, settings: Settings, *, overwrite: bool) -> None:
    """Print what would be done."""
    args.summary["plans"] = []

    def tell(name: str, plan: RunPlan | None) -> None:
        if plan is not None:
            args.summary["plans"].append({"of": name, **asdict(plan)})
        print(f"{name}: {'done before' if plan is None else plan}")

    if args.image_dir is not None:
        output = args.output_dir or Path(f"{args.image_dir.resolve()}_results")
        plan_folder(args.image_dir, output, settings, overwrite=overwrite, tell=tell)
    else:
        job = Job.of(args.image_path, settings)
        output = args.output_dir or Path(_default_name(args.image_path, job))
        tell(str(output), planned(job, output, overwrite=overwrite))
    print("dry run: nothing was run or written")


def _default_name(path: Path, job: Job) -> str:
    """Return ``{image_name}_{page}_{channels}_{model_type}``."""
    settings = job.settings
    methods = list(job.workflow.methods().values())
    used = job.channels or settings.channels or methods[-1].channels or range(job.image.sizes["c"])
    channels = "-".join(map(str, used))
    name = f"{image_name(path)}_{settings.page or 0}_{channels}_{settings.model.model_type}"
    return name.replace("/", "_")


def _channels(text: str) -> list[str | int]:
    """Read names and indices."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r}, expected names or 0-based indices, as in 0,1")
    return [int(part) if part.isdecimal() else part for part in parts]


def _formats(text: str) -> tuple[str, ...]:
    """Read names of formats."""
    parts = tuple(part.strip() for part in text.split(","))
    unknown = [part for part in parts if part not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}, expected some of {', '.join(FORMATS)}, with commas between")
    return parts
