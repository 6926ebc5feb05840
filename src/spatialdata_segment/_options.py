"""Options of the command line, made from the signatures and the docstrings of the functions that take them."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

_TURNED = {
    "progress": ("quiet", "no progress bars"),
    "resume": ("no-resume", "discard what an earlier run left"),
    "shapes": ("no-shapes", "write no outlines"),
    "table": ("no-table", "write no tables"),
}
"""Flags of parameters that are True unless said otherwise."""

_ELSEWHERE = {"sdata", "workflow"}
"""Keyword-only parameters that are no value of an option."""


def add_options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    like: Callable[..., Any],
    only: Collection[str] | None = None,
) -> None:
    """Add an option for every keyword-only parameter of a function, or for some of them.

    A parameter that the docstring of ``function`` does not explain by itself is explained as in ``like``.
    """
    said = descriptions(like) | {k: t for k, t in descriptions(function).items() if not t.startswith("As for ")}
    for name, parameter in inspect.signature(function).parameters.items():
        if (
            parameter.kind is not parameter.KEYWORD_ONLY
            or name in _ELSEWHERE
            or (only is not None and name not in only)
        ):
            continue
        text = said[name].replace("%", "%%").replace("None:", "Default:")
        if parameter.annotation == "bool":
            flag, text = _TURNED[name] if parameter.default else (name, text)
            action = "store_false" if parameter.default else "store_true"
            parser.add_argument(_dashed(flag), dest=name, default=argparse.SUPPRESS, help=text, action=action)
            continue
        if choices := re.findall(r"'(\w+)'", parameter.annotation):  # of a Literal
            parser.add_argument(_dashed(name), default=argparse.SUPPRESS, help=text, choices=choices)
            continue
        kinds = [k for k in (int, float, str) if re.search(rf"\b{k.__name__}\b", parameter.annotation)]
        several = "Sequence" in parameter.annotation
        parts = "Mapping" in parameter.annotation
        parser.add_argument(
            _dashed(name), default=argparse.SUPPRESS, help=text, type=_reader(kinds, several, parts),
            metavar=_metavar(name, kinds, several, parts),
        )  # fmt: skip


def given(function: Callable[..., Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of a function that the command line has, but for those that are no option's."""
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {name: getattr(args, name) for name in names if name not in _ELSEWHERE and hasattr(args, name)}


def descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the section "Parameters" of a numpy docstring says of each."""
    found = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", inspect.getdoc(function) or "", re.M | re.S)
    said: dict[str, str] = {}
    for names, text in re.findall(r"^(\S.*)\n((?:(?:[ ]+.*)?\n)*)", found.group(1) if found else "", re.M):
        plain = " ".join(text.replace("``", "").replace("`", "").split())
        said |= dict.fromkeys((name.strip().lstrip("*") for name in names.split(",")), plain)
    return said


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _metavar(name: str, kinds: Iterable[type], several: bool, parts: bool) -> str:
    """Return what stands for a value in the help."""
    if parts:
        return "N|PART=N,..."
    if several:
        return "A,B"
    return "N" if int in kinds else "X" if float in kinds else name.upper()


def _reader(kinds: Iterable[type], several: bool, parts: bool) -> Callable[[str], Any]:
    """Return what reads a value: the first kind that takes it, several with commas between, or parts with names."""

    def one(text: str) -> Any:
        for kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
        raise argparse.ArgumentTypeError(f"{text!r}, expected {' or '.join(_SAID[k] for k in kinds)}")

    def many(text: str) -> Any:
        values = [one(part.strip()) for part in text.split(",")]
        return values if len(values) > 1 else values[0]

    def named(text: str) -> Any:
        if "=" not in text:
            return one(text)
        pairs = [part.partition("=") for part in text.split(",")]
        return {name.strip(): one(value.strip()) for name, _, value in pairs}

    return many if several else named if parts else one


_SAID: Mapping[type, str] = {int: "a whole number", float: "a number", str: "a name"}
