"""Reads a YAML file that holds one mapping, and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from pydantic import ValidationError


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Return the content of a file; ``what`` names it in errors.

    Raises
    ------
    MissingError, InputError
        If it is not there, is no YAML, or holds something else than names and values.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{what} {path} is not there: check its path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{what} {path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(
            f"{what} {path} holds {type(content).__name__}, expected names and values, as in `name: value`"
        )
    return content


def problems(error: ValidationError) -> str:
    """Return what a model finds wrong, in one line."""
    lines = []
    for e in error.errors():
        at = ".".join(map(str, e["loc"]))
        given = "" if e["type"] in ("missing", "extra_forbidden", "value_error") else f", not {e['input']!r}"
        lines.append(
            f"{at}: {e['msg'].removeprefix('Value error, ')}{given}" if at else e["msg"].removeprefix("Value error, ")
        )
    return "; ".join(lines)
