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

_GROUPS = {
    "what is segmented": (
        "channels", "scale", "roi_key", "bounding_box", "pixel_size", "to_coordinate_system",
    ),
    "what is written": ("key_added", "measure_channels", "shapes", "table", "keep_maps", "overwrite"),
    "how it runs": ("shard_size", "overlap_px", "n_jobs", "devices", "scratch", "resume", "progress"),
}  # fmt: skip
"""Headings in the help."""

_VALUES = {
    "scale": "NAME", "roi_key": "KEY", "bounding_box": "X0,Y0,X1,Y1", "pixel_size": "UM", "overlap_px": "PX",
    "to_coordinate_system": "NAME", "key_added": "PREFIX", "scratch": "DIR", "devices": "NAME,...",
}  # fmt: skip
"""What stands for a value in the help, where the type does not say it."""

_ELSEWHERE = {"sdata", "workflow"}
"""Keyword-only parameters that are no value of an option."""


def add_options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    like: Callable[..., Any],
    only: Collection[str] | None = None,
    said: Mapping[str, str] | None = None,
) -> None:
    """Add an option for every keyword-only parameter of a function, or for some of them.

    A parameter that the docstring of ``function`` does not explain by itself is explained as in ``like``; ``said``
    goes before both.
    """
    known = descriptions(like) | {k: t for k, t in descriptions(function).items() if not t.startswith("As for ")}
    known |= said or {}
    parameters = inspect.signature(function).parameters
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, parameter in parameters.items():
        if (
            parameter.kind is not parameter.KEYWORD_ONLY
            or name in _ELSEWHERE
            or (only is not None and name not in only)
        ):
            continue
        heading = next((h for h, names in _GROUPS.items() if name in names), "further")
        group = groups.get(heading) or groups.setdefault(heading, parser.add_argument_group(heading))
        text = _as_help(known[name], name, parameter.default, parameters)
        if parameter.annotation == "bool":
            flag, text = _TURNED[name] if parameter.default else (name, text)
            action = "store_false" if parameter.default else "store_true"
            group.add_argument(_dashed(flag), dest=name, default=argparse.SUPPRESS, help=text, action=action)
            continue
        if choices := re.findall(r"'(\w+)'", parameter.annotation):  # of a Literal
            parser.add_argument(_dashed(name), default=argparse.SUPPRESS, help=text, choices=choices)
            continue
        kinds = [k for k in (int, float, str) if re.search(rf"\b{k.__name__}\b", parameter.annotation)]
        several = "Sequence" in parameter.annotation
        parts = "Mapping" in parameter.annotation
        group.add_argument(
            _dashed(name), default=argparse.SUPPRESS, help=text, type=_reader(kinds, several, parts),
            metavar=_metavar(name, kinds, several, parts),
        )  # fmt: skip


def _as_help(text: str, name: str, default: object, names: Collection[str]) -> str:
    """Return a text of a docstring as help: with options for parameters, and with the default."""
    for other in names:
        if "_" in other and other != name:
            text = re.sub(rf"(?<![\w{{]){other}\b", _dashed(other), text)
    text = text.replace("%", "%%").replace("; None:", "; default:").replace("None:", "Default:").replace("=True", "")
    text = text[0].lower() + text[1:] if text[1:2].islower() else text
    return f"{text.rstrip('.')} (default: {default})" if isinstance(default, str) else text


def given(function: Callable[..., Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of a function that the command line has, but for those that are no option's."""
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {name: getattr(args, name) for name in names if name not in _ELSEWHERE and hasattr(args, name)}


def given_or_default(function: Callable[..., Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return `given`, and the defaults of what the command line does not have."""
    defaults = {k: v for k, v in (function.__kwdefaults__ or {}).items() if k not in _ELSEWHERE}
    return defaults | given(function, args)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--dry-run``."""
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, write nothing")


_ALIASES = {"image_key": "image"}
"""Parameters whose option has another name."""


def spelled(parser: argparse.ArgumentParser) -> dict[str, dict[object, str]]:
    """Return, by parameter, the option that gives each value it can give; None stands for any value."""
    found: dict[str, dict[object, str]] = {}
    for action in parser._actions:  # argparse has no other way
        if action.option_strings:
            value = action.const if action.nargs == 0 else None
            found.setdefault(action.dest, {})[value] = action.option_strings[0]
    return found | {name: found[option] for name, option in _ALIASES.items() if option in found}


def as_options(text: str, options: Mapping[str, Mapping[object, str]]) -> str:
    """Return a message that speaks of parameters (``overwrite=True``, ``scratch=``) with the options of a command."""

    def told(match: re.Match[str]) -> str:
        flags, given = options[match["name"]], match["value"]
        if given in ("True", "False"):
            return flags.get(given == "True", match[0])
        if given == "None" or (given and None not in flags):
            return match[0]
        plain = re.sub(r"['()\[\]{}]", "", given or "").replace(", ", ",").replace(": ", "=")
        return f"{next(iter(flags.values()))} {plain}".rstrip()

    names = "|".join(sorted(options, key=len, reverse=True))
    value = r"'[^']*'|\([^()]*\)|\[[^][]*\]|\{[^{}]*\}|[^\s,;:()'\"]*[^\s.,;:()'\"]"
    return re.sub(rf"(?<![\w.'\"/-])(?P<name>{names})=(?!=)(?P<value>{value})?", told, text)


def descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the section "Parameters" of a numpy docstring says of each."""
    found = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", f"{inspect.getdoc(function)}\n", re.M | re.S)
    said: dict[str, str] = {}
    for names, text in re.findall(r"^(\S.*)\n((?:(?:[ ]+.*)?\n)*)", found.group(1) if found else "", re.M):
        plain = " ".join(text.replace("``", "").replace("`", "").split())
        said |= dict.fromkeys((name.strip().lstrip("*") for name in names.split(",")), plain)
    return said


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _metavar(name: str, kinds: Iterable[type], several: bool, parts: bool) -> str:
    """Return what stands for a value in the help."""
    if name in _VALUES:
        return _VALUES[name]
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
