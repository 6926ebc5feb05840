"""Configurations in YAML, this package's own and those of other programs, as a workflow and options of `segment`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from inspect import signature
from pathlib import Path
from shlex import quote
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from spatialdata_segment._problems import Problem, problems_of, unknown
from spatialdata_segment._scportrait import WORKFLOWS, read_scportrait
from spatialdata_segment._turing import PARTS, read_turing
from spatialdata_segment._yaml import Document, read_document
from spatialdata_segment.config import Workflow

OPTIONS = "options"
"""Under this name a file has options of `segment`; all others are parameters of a `Workflow`."""


@dataclass(frozen=True)
class Configuration:
    """What a file says.

    Attributes
    ----------
    workflow
        What to run.
    options
        Keyword arguments of `segment`.
    image_key
        The image that a result was made of: see `saved_configuration`.
    """

    workflow: Workflow
    options: dict[str, Any] = field(default_factory=dict)
    image_key: str | None = None

    def to_yaml(self) -> str:
        """Return it as a file, with a comment on every parameter; `read_configuration` takes it.

        Raises
        ------
        InputError
            If it holds a function, which no file does.
        """
        from spatialdata_segment._template import written

        of = "" if self.image_key is None else f" --image {quote(self.image_key)}"
        return written(self, [f"spatialdata-segment run STORE{of} --workflow FILE"])

    def options_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return those of the options that another function takes, such as `predict`."""
        taken = signature(function).parameters
        return {name: value for name, value in self.options.items() if name in taken}


def read_configuration(given: str | Path | Mapping[str, Any]) -> Configuration:
    """Read a configuration of this package, of scPortrait, or of Turing Segment.

    ``configuration = read_configuration(path)``, then
    ``segment(sdata, "image", configuration.workflow, **configuration.options)``.

    Parameters
    ----------
    given
        A YAML file, or its content: the parameters of a `Workflow`, and under ``options`` those of `segment`; a
        workflow of scPortrait under its name, also with "Sharded" before it; or ``pipeline`` and ``postprocess`` of
        Turing Segment.

    Returns
    -------
    The workflow, and the options of `segment`. ``threads`` is ``n_jobs``. ``nGPUs`` is ``devices``, at most so many.
    ``overlap_px`` is raised to the method's minimum, with a warning. ``cache`` is a folder that each run has its
    ``scratch`` in. ``n_postprocess_processes``, ``postprocess_queue_size`` and ``n_merge_tile_processes`` are the parts
    "decode", "queue" and "write" of ``n_jobs``, at most as many as there are cores (of the queue as memory holds).

    Raises
    ------
    MissingError, InputError
        If the file is not there or cannot be read, or something in it is unknown or wrong. The message lists every
        problem, with its line.
    """
    if isinstance(given, Mapping):
        document = Document(dict(given), "configuration")
    else:
        document = read_document(given, "configuration")
    content = _nulls(document.content)
    document = Document(content, document.name, document.marks)
    if any(name.removeprefix("Sharded") in WORKFLOWS for name in content):
        return Configuration(*read_scportrait(document))
    if content.keys() & set(PARTS):
        return Configuration(*read_turing(document))
    others = [name for name in content if name not in (*Workflow.model_fields, OPTIONS)]
    if misspelt := [n for n in others if get_close_matches(n.removeprefix("Sharded"), WORKFLOWS, 1, 0.8)]:
        raise document.error([Problem((name,), unknown(name, WORKFLOWS)) for name in misspelt])
    return _own(document)


def _own(document: Document) -> Configuration:
    """Read the parameters of a `Workflow`, and options of `segment`."""
    content = dict(document.content)
    found: list[Problem] = []
    options = content.pop(OPTIONS, None)
    options = {} if options is None else options
    try:
        options_model().model_validate(options)
    except ValidationError as error:
        found += [p.below(OPTIONS) for p in problems_of(error, options_model(), options)]
    try:
        workflow = Workflow(**content)
    except ValidationError as error:
        found += problems_of(error, Workflow, content)
    if found:
        hint = "`spatialdata-segment config --list` names templates that say what is expected"
        raise document.error(found, hint)
    return Configuration(workflow, {name: value for name, value in options.items() if value is not None})


@cache
def options_model() -> type[BaseModel]:
    """Return the keyword arguments of `segment` as a model."""
    from spatialdata_segment._segment import segment

    names = {"Sequence": Sequence, "Mapping": Mapping, "Callable": Callable, "SpatialData": Any, "Method": Any}
    hints = get_type_hints(segment, localns=names)
    options: dict[str, Any] = {
        p.name: (hints[p.name] | None, None) for p in signature(segment).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    return create_model("Options", __config__=ConfigDict(extra="forbid", strict=True), **options)


def _nulls(value: Any) -> Any:
    """Replace what Python calls None, which is a text in YAML; names that YAML reads as something else are texts."""
    if isinstance(value, Mapping):
        return {str(k): _nulls(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_nulls(v) for v in value]
    return None if value == "None" else value
