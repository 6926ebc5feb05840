"""YAML with a comment on every parameter, made from the models and their docstrings."""

from __future__ import annotations

from inspect import getdoc, isabstract
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import yaml

from spatialdata_segment._dialects import OPTIONS, Configuration, options_model
from spatialdata_segment._options import descriptions
from spatialdata_segment._problems import models_in
from spatialdata_segment.config import Workflow
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.base import Method
from spatialdata_segment.methods.registry import get_method, get_workflow, known_methods, known_workflows
from spatialdata_segment.methods.threshold import ThresholdNuclei

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel

_WIDTH = 112
_STEP = "  "


def named_workflow(name: str) -> Workflow:
    """Return a workflow by name, or one of a method by name: of nuclei, or, for a seeded one, of cells as well.

    Raises
    ------
    MissingError, InputError
        If nothing has the name, or the method cannot be written into a file.
    """
    if name in known_workflows():
        return get_workflow(name)
    if name not in known_methods():
        get_workflow(name)  # raises, and names the nearest workflow
    kind = get_method(name)
    if hidden := _hidden(kind):
        raise InputError(
            f"the method {name!r} takes what no file holds ({', '.join(hidden)}): use it from Python; `config --list` "
            "names the others"
        )
    method = kind(**kind.example)
    return Workflow(nucleus=ThresholdNuclei(), cell=method) if method.seeded else Workflow(nucleus=method)


def overview() -> dict[str, dict[str, str]]:
    """Return the workflows and the methods that have a template, each with a line that says what it is."""
    flows = {}
    for name in known_workflows():
        masks = get_workflow(name).methods().items()
        flows[name] = ", ".join(f"{mask}: {_named(method)}" for mask, method in masks)
    kinds = {name: get_method(name) for name in known_methods()}
    methods = {n: _first(k) for n, k in kinds.items() if not _hidden(k)}
    return {"workflows": flows, "methods": methods}


def _named(method: Method) -> str:
    model = getattr(method, "model", None)
    return f"{method.name} {model}" if isinstance(model, str) else method.name


def _hidden(model: type[BaseModel]) -> list[str]:
    """Return the fields of a model that no file holds: functions."""
    return [name for name, field in model.model_fields.items() if field.exclude]


def _first(model: type) -> str:
    return (getdoc(model) or "").partition("\n")[0]


def template(name: str) -> str:
    """Return a workflow, or a method, in YAML with a comment on every parameter.

    What it prints means what the name does; see `named_workflow`.
    """
    head = [
        f"Configuration made from {name!r}: change what you like, then",
        f"{_STEP}spatialdata-segment run STORE --workflow FILE",
        "Every parameter stands here with its value; what is left out has its default.",
    ]
    return written(Configuration(named_workflow(name)), head)


def written(configuration: Configuration, head: list[str]) -> str:
    """Return a configuration in YAML with a comment on every parameter; `read_configuration` returns it again.

    Options that it does not have are listed as comments. ``head``: lines of a comment that comes first.

    Raises
    ------
    InputError
        If it holds a function, which no file does.
    """
    flow = configuration.workflow
    for part in (*flow.methods().values(), *flow.preprocess):
        if _hidden(type(part)):
            raise InputError(
                f"{part.name!r} holds a function of Python, which no file does: register a Method in its place"
            )
    lines = [f"# {line}" for line in head]
    lines += _model(configuration.workflow, "")
    lines += ["", "# Options of a run, as on the command line, which goes before them."]
    given = {name: value for name, value in configuration.options.items() if value is not None}
    lines.append(f"{OPTIONS}:" if given else f"# {OPTIONS}:")
    said, before = _options_said(), ""
    for name in options_model().model_fields:
        text = said[name]
        lines += ["", *_comment(text, _STEP)] if text != before else []
        lines.append(f"{_STEP}{name}: {_plain(given[name])}" if name in given else f"# {_STEP}{name}:")
        before = text
    return "\n".join(lines) + "\n"


def _options_said() -> dict[str, str]:
    from spatialdata_segment._segment import segment

    return descriptions(segment)


def _model(model: BaseModel, indent: str) -> Iterator[str]:
    """Yield the lines of every parameter of a model."""
    said = _said(type(model))
    values, before = model.model_dump(mode="json"), ""
    for name, field in type(model).model_fields.items():
        if not field.repr:
            continue
        value, text = getattr(model, name), said.get(name, "")
        if not text or text != before:  # one comment for several
            yield ""
            yield from _comment(text, indent)
        before = text
        if isinstance(value, Method):
            yield f"{indent}{name}:"
            yield from _comment(_first(type(value)), indent + _STEP)
            yield f"{indent}{_STEP}method: {value.name}"
            yield from _model(value, indent + _STEP)
        elif models_in(type(value)):
            yield f"{indent}{name}:"
            lines = _model(value, indent + _STEP)
            next(lines)  # no blank line comes first
            yield from lines
        else:
            yield f"{indent}{name}: {_plain(values[name])}"
            yield from _examples(field.annotation, indent)


def _examples(annotation: Any, indent: str) -> Iterator[str]:
    """Yield, as comments, what models a value may be in place of the one it has."""
    for model in models_in(annotation):
        if issubclass(model, Method) or isabstract(model) or _hidden(model):
            continue
        yield f"{indent}# As a value: {_first(model)}"
        said, before = descriptions(model), ""
        for name, field in model.model_fields.items():
            text = said.get(name, "")
            yield f"{indent}#{_STEP}{name}: {'' if field.is_required() else _plain(field.default)}".rstrip()
            yield from _comment(text if text != before else "", indent, f"{_STEP}{_STEP}")
            before = text


def _said(model: type) -> dict[str, str]:
    """Return what the docstrings of a model and of its bases say of each parameter."""
    said: Mapping[str, str] = {}
    for kind in reversed(model.__mro__):
        said = {**said, **(descriptions(kind) if "__doc__" in vars(kind) and kind.__doc__ else {})}
    return dict(said)


def _comment(text: str, indent: str, hanging: str = "") -> list[str]:
    """Return a text in lines of a comment; what Python calls None is null there."""
    plain = text.replace("``", "").replace("`", "").replace("None", "null")
    return wrap(plain, _WIDTH, initial_indent=f"{indent}# {hanging}", subsequent_indent=f"{indent}# {hanging}")


def _plain(value: Any) -> str:
    """Return a value in YAML, in one line."""
    text = yaml.safe_dump(_jsonable(value), default_flow_style=True, width=10**6, allow_unicode=True)
    return str(text).removesuffix("...\n").strip()


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
