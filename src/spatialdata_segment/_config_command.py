"""The command ``config``: templates of configurations, and the configuration of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spatialdata_segment._saved import saved_configuration, saved_metadata
from spatialdata_segment._stores import open_store
from spatialdata_segment._template import overview, template
from spatialdata_segment._version import __version__
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    import argparse


def do_config(args: argparse.Namespace) -> None:
    """Print a template, the configuration of a result, or the names of templates."""
    asked = [what for what in ("name", "list", "store") if getattr(args, what)]
    if len(asked) != 1:
        raise InputError("config takes one of NAME, --list and --from STORE: `spatialdata-segment config --list`")
    if args.table is not None and args.store is None:
        raise InputError(f"--table {args.table} without --from: say of which store, as in --from tissue.zarr")
    if args.list:
        names = overview()
        args.summary |= names
        width = max(len(name) for part in names.values() for name in part)
        for part, entries in names.items():
            print(f"{part}:")
            for name, said in entries.items():
                print(f"  {name.ljust(width)}  {said}")
        return
    text = template(args.name) if args.name else _of_store(args.store, args.table)
    args.summary["yaml"] = text
    print(text, end="")


def _of_store(store: str, table: str | None) -> str:
    sdata = open_store(store)
    said = saved_metadata(sdata, table)
    by = said.get("versions", {}).get("spatialdata-segment", "?")
    head = f"# Configuration of a result in {store}, made by spatialdata-segment {by}"
    head += "" if by == __version__ else f" (this is {__version__})"
    head += f", on {said['device']}" if "device" in said else ""
    return f"{head}.\n{saved_configuration(sdata, table).to_yaml()}"
