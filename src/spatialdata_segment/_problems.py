"""What is wrong with names and values that a model refuses: every problem with its place and the nearest known name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

Place = tuple[str | int, ...]
"""Names and positions that lead to a value."""

_LONGEST = 60


class Problem(NamedTuple):
    """Something that is wrong.

    Attributes
    ----------
    path
        Where; empty: of the whole.
    text
        What, and what was expected.
    mark
        Line and column, where they are not those of the path.
    """

    path: Place
    text: str
    mark: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.text}" if self.path else self.text

    def below(self, *path: str | int) -> Problem:
        """Return it as a part of something larger."""
        return self._replace(path=(*path, *self.path))


def listed(problems: Iterable[Problem]) -> str:
    """Return problems in one line."""
    return "; ".join(map(str, problems))


def unknown(name: object, known: Iterable[str]) -> str:
    """Return what to say of a name that is not known: the nearest one that is, or all of them."""
    names = list(known)
    near = get_close_matches(str(name), names, 1)
    return f"unknown (did you mean {near[0]!r}?)" if near else f"unknown, expected one of {', '.join(names)}"


def nested(problems: Sequence[Problem]) -> PydanticCustomError:
    """Return an error for a validator to raise, of which `problems_of` knows the places."""
    return PydanticCustomError("nested", "{told}", {"told": listed(problems), "problems": tuple(problems)})


def problems_of(error: ValueError, model: type[BaseModel], content: Any) -> list[Problem]:
    """Return what a model finds wrong with some content.

    Parameters
    ----------
    error
        That it raised; of one that is not pydantic's the text.
    model
        The model.
    content
        What it was given: names of alternatives, which are in pydantic's places as well, are told from names of values.
    """
    if not isinstance(error, ValidationError):
        return [Problem((), str(error))]
    found: list[Problem] = []
    expected: dict[Place, tuple[list[str], Any]] = {}
    for e in error.errors(include_url=False):
        path, kind, told = _path(e["loc"], content, missing=e["type"] == "missing"), e["type"], e["msg"]
        if kind == "nested":
            found += [p.below(*path) for p in e["ctx"]["problems"]]
        elif kind == "missing":
            found.append(Problem(path, "missing"))
        elif kind == "extra_forbidden":
            found.append(Problem(path, unknown(path[-1], _names(model, path[:-1]))))
        elif told.startswith("Input should be "):
            expected.setdefault(path, ([], e["input"]))[0].append(_wanted(told.removeprefix("Input should be ")))
        elif kind == "value_error":
            found.append(Problem(path, told.removeprefix("Value error, ")))
        else:
            found.append(Problem(path, f"{told}: {short(e['input'])}"))
    for path, (wanted, given) in expected.items():
        if not any(p.path[: len(path)] == path for p in found):  # of alternatives, the one that was meant
            found.append(Problem(path, f"expected {' or '.join(dict.fromkeys(wanted))}, not {short(given)}"))
    return found


def short(value: object) -> str:
    """Return a value as it is told."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _wanted(text: str) -> str:
    """Return pydantic's words for what it expected, without its reasons."""
    plain = text.partition(", ")[0]
    if plain.startswith(("greater", "less")):
        return f"a number {plain}"
    return "names and values" if "dictionary" in plain else plain


def _path(loc: Place, content: Any, *, missing: bool) -> Place:
    """Return those parts of a place that lead through the content."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        if _holds(content, part):
            content = content[part]
        elif not (missing and i == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _holds(content: Any, part: str | int) -> bool:
    if isinstance(content, list | tuple):
        return isinstance(part, int) and part < len(content)
    return isinstance(content, Mapping) and part in content


def _names(model: type[BaseModel], path: Place) -> list[str]:
    """Return the fields that a model has at a place."""
    models = [model]
    for part in path:
        if isinstance(part, str):
            notes = [m.model_fields[part].annotation for m in models if part in m.model_fields]
            models = [m for note in notes for m in models_in(note)]
    return [name for m in models for name in m.model_fields]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a type speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]
