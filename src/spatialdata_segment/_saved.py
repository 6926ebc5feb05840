"""The configuration of a result that is there: what has to be run to get it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment._dialects import Configuration
from spatialdata_segment._table import METADATA_KEY, read_metadata
from spatialdata_segment.config import as_workflow
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.registry import get_method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from spatialdata import SpatialData

_DOT = ".spatialdata_segment"
_RECORD = ".run.json"


def saved_configuration(source: SpatialData | AnnData, table_key: str | None = None) -> Configuration:
    """Return the configuration that made a result, complete, so that running it gives the same labels.

    ``found = saved_configuration(sdata)``, then
    ``segment(sdata, found.image_key, found.workflow, **found.options, key_added="again")``.

    Parameters
    ----------
    source
        The object with the result, or its table.
    table_key
        Name of the table, such as "segmentation_table". None: the only one. Of a result without tables in a store the
        record of its last run is taken; the name is then that which the table would have.

    Returns
    -------
    The workflow with every parameter, the image, and the options that decide the result: channels, scale, region,
    pixel size, measured channels, coordinate system. How it was cut and where it ran decides nothing, and is not in it.

    Raises
    ------
    MissingError
        If there is no such result; the message lists those that are there.
    InputError
        If a function of Python made it, which no configuration holds.
    """
    said = saved_metadata(source, table_key)
    if "workflow" not in said:
        raise InputError(
            f"this result was imported from {said.get('imported', 'elsewhere')}: no workflow made it, and there is no "
            "configuration of it; name the table of another with table_key (--table)"
        )
    flow = {**said["workflow"]}
    for mask in ("nucleus", "cell"):
        if flow.get(mask) is not None:
            flow[mask] = _method(flow[mask])
    if lost := [step["name"] for step in flow.get("preprocess") or () if "function" in step]:
        raise InputError(f"the preprocessing {lost[0]!r} is a function of Python, which no configuration holds")
    return Configuration(as_workflow(flow), dict(said.get("options", {})), said["image"])


def saved_metadata(source: SpatialData | AnnData, table_key: str | None = None) -> dict[str, Any]:
    """Return what is on record of a result; see `saved_configuration`."""
    if hasattr(source, "uns"):
        if METADATA_KEY not in source.uns:
            raise MissingError(f"the table has no uns[{METADATA_KEY!r}]: expected one that segment() wrote")
        return read_metadata(source)
    found = {name: table for name, table in source.tables.items() if METADATA_KEY in table.uns}
    records = _records(source)
    known = sorted(found.keys() | records.keys())
    if table_key is None and len(known) == 1:
        table_key = known[0]
    if table_key in found:
        return read_metadata(found[table_key])
    if table_key in records:
        try:
            content: dict[str, Any] = json.loads(records[table_key].read_text())["parameters"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{records[table_key]} cannot be read: {type(error).__name__}: {error}") from error
        return content
    there = ", ".join(known) or "none"
    if table_key is None:
        raise MissingError(f"{len(known)} results are there ({there}): name the table of one, as in {there}")
    raise MissingError(f"no result has the table {table_key!r}: expected one of {there}")


def _records(sdata: SpatialData) -> dict[str, Path]:
    """Return the records of runs in the object's store, by the name that the table of each would have."""
    if sdata.path is None or "://" in str(sdata.path):
        return {}
    records = sorted((Path(sdata.path) / _DOT).glob(f"*{_RECORD}"))
    return {f"{path.name.removesuffix(_RECORD)}_table": path for path in records}


def _method(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a method from its fingerprint, which has versions and checksums as well."""
    kind = get_method(said["method"])
    if hidden := [name for name, field in kind.model_fields.items() if field.exclude]:
        raise InputError(
            f"{said.get(hidden[0], said['method'])} made this result, a function of Python, which no configuration "
            "holds: call segment() with it"
        )
    return {"method": said["method"], **{name: said[name] for name in kind.model_fields if name in said}}
