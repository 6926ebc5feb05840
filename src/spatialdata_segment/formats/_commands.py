"""The commands ``poly2mask`` and ``stitch``: from arguments to calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spatialdata_segment._options import add_options, given
from spatialdata_segment.formats._poly2mask import poly2mask
from spatialdata_segment.formats._stitch import stitch_folders

if TYPE_CHECKING:
    import argparse


def fill_poly2mask(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``poly2mask``."""
    parser.add_argument("folder", metavar="DIR", help="folder with polygons.parquet, as infer writes it")
    add_options(parser, poly2mask, poly2mask)


def fill_stitch(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stitch``."""
    parser.add_argument("folder", metavar="DIR", help="folder with a folder for each plane, as infer writes them")
    add_options(parser, stitch_folders, stitch_folders)


def do_poly2mask(args: argparse.Namespace) -> None:
    """Draw the polygons of a folder."""
    print(poly2mask(args.folder, **given(poly2mask, args)))


def do_stitch(args: argparse.Namespace) -> None:
    """Join the planes in a folder."""
    print(stitch_folders(args.folder, **given(stitch_folders, args)))
