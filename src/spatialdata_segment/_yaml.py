"""Reads a YAML file that holds one mapping, knows the line of everything in it, and tells what is wrong there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spatialdata_segment._problems import Place, Problem, listed, short
from spatialdata_segment.errors import InputError, MissingError


@dataclass(frozen=True)
class Document:
    """Names and values, and where they stand.

    Attributes
    ----------
    content
        The names and values.
    name
        What it is called in errors.
    marks
        Line and column, from 1, of each name and each item; empty where it is no file.
    """

    content: dict[str, Any]
    name: str
    marks: Mapping[Place, tuple[int, int]] = field(default_factory=dict)

    def error(self, problems: Sequence[Problem], hint: str = "") -> InputError:
        """Return one error that lists every problem with its line.

        ``hint``: the next step, where the problems do not say it.
        """
        hint = f". {hint}" if hint else ""
        if not self.marks:
            return InputError(f"{self.name} not valid: {listed(dict.fromkeys(problems))}{hint}")
        at = sorted((p.mark or self._mark(p.path), str(p)) for p in dict.fromkeys(problems))
        shared = Counter(line for line, _ in set(self.marks.values()))
        told = [f"line {line}{f', column {column}' * (shared[line] > 1)}: {p}" for (line, column), p in at]
        if len(told) == 1:
            return InputError(f"{self.name} not valid: {told[0]}{hint}")
        return InputError("\n  ".join([f"{self.name} not valid, {len(told)} problems:", *told]) + hint)

    def _mark(self, path: Place) -> tuple[int, int]:
        """Return where a value stands; of one that is not there, what should hold it."""
        while path not in self.marks and path:
            path = path[:-1]
        return self.marks.get(path, (1, 1))


def read_document(path: str | Path, what: str) -> Document:
    """Return the content of a file with the lines; ``what`` names it in errors.

    Raises
    ------
    MissingError, InputError
        If it is not there, is no YAML, repeats a name with another value, or holds no names and values.
    """
    name = f"{what} {path}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingError(f"{name} is not there: check its path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read: {' '.join(str(error).split())}") from error
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """Return what a text in YAML says; see `read_document`."""
    try:
        walk, content = _read(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = " (indent with spaces)" if "'\\t'" in str(error.problem) else ""
        told = " ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{name} cannot be read as YAML: {at}{told}{hint}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name} cannot be read as YAML: {' '.join(str(error).split())}") from error
    marks = {(): (1, 1), **walk.marks}
    if walk.problems:
        raise Document({}, name, marks).error(walk.problems)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        there = "nothing" if content is None else type(content).__name__
        odd = "" if not isinstance(content, dict) else f" (with {next(k for k in content if not isinstance(k, str))!r})"
        raise InputError(f"{name} holds {there}{odd}, expected names and values, as in `name: value`")
    return Document(content, name, marks)


def _read(text: str) -> tuple[_Walk, Any]:
    """Return what was noted of a text on the way, and its content."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        walk = _Walk(loader)
        if node is None:
            return walk, None
        walk.visit(node, ())
        return walk, None if walk.cyclic else loader.construct_document(node)
    finally:
        loader.dispose()


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Return the content of a file; see `read_document`."""
    return read_document(path, what).content


class _Walk:
    """Notes where names and items stand, and names that come twice with different values."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.loader = loader
        self.marks: dict[Place, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self.cyclic = False
        self._above: list[int] = []
        self._seen: set[int] = set()

    def visit(self, node: yaml.Node, path: Place) -> None:
        """Look at a node and at what is in it; what several places refer to is looked at once."""
        if id(node) in self._above:
            self.problems.append(Problem(path, "refers to itself: write its value out"))
            self.cyclic = True
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        self._above.append(id(node))
        if isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self.marks[(*path, i)] = _mark(item)
                self.visit(item, (*path, i))
        self._above.pop()

    def _visit_mapping(self, node: yaml.MappingNode, path: Place) -> None:
        first: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(getattr(key, "value", "")) if isinstance(key, yaml.ScalarNode) else "?"
            place = (*path, name)
            if name in first and key.tag != "tag:yaml.org,2002:merge" and not self._equal(first[name], value):
                before = self.marks[place][0]
                now, then = (short(self._value(n)) for n in (value, first[name]))
                told = f"given twice, as {now} here and as {then} in line {before}: keep one"
                self.problems.append(Problem(place, told, _mark(key)))
                continue
            first.setdefault(name, value)
            self.marks.setdefault(place, _mark(key))
            self.visit(value, place)

    def _equal(self, a: yaml.Node, b: yaml.Node) -> bool:
        one, other = self._value(a), self._value(b)
        return type(one) is type(other) and bool(one == other)

    def _value(self, node: yaml.Node) -> Any:
        return self.loader.construct_object(node, deep=True)


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
