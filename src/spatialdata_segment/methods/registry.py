"""Methods and workflows by name: built in, registered, or found through entry points."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spatialdata_segment.config import Workflow
    from spatialdata_segment.methods.base import Method

GROUP = "spatialdata_segment.methods"

M = TypeVar("M", bound="type[Method]")

_methods: dict[str, type[Method]] = {}
_workflows: dict[str, Workflow] = {}


def register_method(method: M) -> M:
    """Make a method known by its ``name``, in configurations and on the command line.

    Usable as a class decorator. Packages declare theirs in the entry point group
    ``spatialdata_segment.methods`` instead, and need not be imported.

    Raises
    ------
    InputError
        If another class has the name already.
    """
    known = _methods.setdefault(method.name, method)
    if (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise InputError(
            f"method name {method.name!r} is taken by {known.__module__}.{known.__qualname__}: give the class "
            "another name"
        )
    _methods[method.name] = method
    return method


def register_workflow(name: str, workflow: Workflow) -> Workflow:
    """Make a workflow known by a name, as in ``segment(sdata, "image", name)``.

    Raises
    ------
    InputError
        If the name is taken by another workflow.
    """
    known = _workflows.setdefault(name, workflow)
    if known != workflow:
        raise InputError(f"workflow name {name!r} is taken: choose another")
    return workflow


def get_method(name: str) -> type[Method]:
    """Return a method by name; `MissingError` lists the known ones."""
    _load_entry_points()
    return _methods[_known(name, _methods, "method")]


def get_workflow(name: str) -> Workflow:
    """Return a workflow by name; `MissingError` lists the known ones."""
    _load_entry_points()
    if name in _methods and name not in _workflows:
        raise MissingError(
            f"{name!r} is a method, and no workflow: expected one of {', '.join(sorted(_workflows))}, or "
            f"Workflow(nucleus={name!r})"
        )
    return _workflows[_known(name, _workflows, "workflow")]


def known_methods() -> tuple[str, ...]:
    """Return the names of all methods, in alphabetical order."""
    _load_entry_points()
    return tuple(sorted(_methods))


def known_workflows() -> tuple[str, ...]:
    """Return the names of all workflows, in alphabetical order."""
    _load_entry_points()
    return tuple(sorted(_workflows))


def _known(name: str, names: Iterable[str], what: str) -> str:
    known = sorted(names)
    if name in known:
        return name
    near = get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise MissingError(f"unknown {what} {name!r}{hint}: expected one of {', '.join(known)}")


@cache
def _load_entry_points() -> None:
    for point in entry_points(group=GROUP):
        register_method(point.load())
