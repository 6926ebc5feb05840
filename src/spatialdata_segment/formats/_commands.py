"""The commands ``poly2mask``, ``stitch`` and ``import``: from arguments to calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spatialdata_segment._dry_run import tell_plan
from spatialdata_segment._import import add_labels, add_polygons, ready_labels, ready_polygons
from spatialdata_segment._importing import Options
from spatialdata_segment._options import add_dry_run, add_options, given, given_or_default
from spatialdata_segment._segment import segment
from spatialdata_segment._targets import target_of
from spatialdata_segment.formats._poly2mask import poly2mask, ready_mask
from spatialdata_segment.formats._stitch import ready_planes, stitch_folders

if TYPE_CHECKING:
    import argparse


def fill_poly2mask(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``poly2mask``."""
    parser.add_argument("folder", metavar="DIR", help="folder with polygons.parquet, as infer writes it")
    add_dry_run(parser)
    add_options(parser, poly2mask, poly2mask)


def fill_stitch(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stitch``."""
    parser.add_argument("folder", metavar="DIR", help="folder with a folder for each plane, as infer writes them")
    add_dry_run(parser)
    add_options(parser, stitch_folders, stitch_folders)


def fill_import(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``import``."""
    parser.add_argument("store", metavar="STORE", help="SpatialData store, such as tissue.zarr")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--labels", metavar="FILE", help="TIFF, zarr, .npy, _seg.npy or PNG; or labels of the store")
    what.add_argument("--polygons", metavar="FILE", help=".parquet, .geojson, ROIs (.zip); or shapes of the store")
    parser.add_argument("--image", metavar="KEY", help="the image on whose grid they lie (default: the only one)")
    add_dry_run(parser)
    add_options(parser, add_labels, segment)


def do_poly2mask(args: argparse.Namespace) -> None:
    """Draw the polygons of a folder."""
    if args.dry_run:
        tell_plan(args, args.folder, ready_mask(args.folder, **given_or_default(poly2mask, args)).plan())
        return
    written = poly2mask(args.folder, **given(poly2mask, args))
    args.summary["output"] = str(written)
    print(written)


def do_stitch(args: argparse.Namespace) -> None:
    """Join the planes in a folder."""
    if args.dry_run:
        tell_plan(args, args.folder, ready_planes(args.folder, **given_or_default(stitch_folders, args)).plan())
        return
    written = stitch_folders(args.folder, **given(stitch_folders, args))
    args.summary["output"] = str(written)
    print(written)


def do_import(args: argparse.Namespace) -> None:
    """Add labels or polygons to a store."""
    target = target_of(args.store, {} if args.image is None else {args.image: "none"}, "none")
    (key,) = target.flows
    if args.dry_run:
        all_options = Options(**given_or_default(add_labels, args))
        if args.labels is not None:
            ready = ready_labels(target.sdata, args.labels, key, all_options)
        else:
            ready = ready_polygons(target.sdata, args.polygons, key, all_options)
        tell_plan(args, f"{args.store} {key}", ready.plan())
        return
    options = given(add_labels, args)
    if args.labels is not None:
        add_labels(target.sdata, args.labels, key, **options)
    else:
        add_polygons(target.sdata, args.polygons, key, **options)
    prefix = f"{options.get('key_added', 'segmentation')}_"
    names = sorted(name for _, name, _ in target.sdata.gen_elements() if name.startswith(prefix))
    args.summary |= {"store": args.store, "elements": names}
    print(f"{args.store}: {', '.join(names)}")
