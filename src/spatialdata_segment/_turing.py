"""Configurations of Turing Segment: the settings of its network, of its paths, and of its processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spatialdata_segment._problems import Problem, problems_of, short, unknown
from spatialdata_segment.config import Workflow
from spatialdata_segment.engine.executor import cores
from spatialdata_segment.errors import is_whole
from spatialdata_segment.methods.cellpose.method import Cellpose

if TYPE_CHECKING:
    from spatialdata_segment._yaml import Document

_JOBS = {"n_postprocess_processes": "decode", "postprocess_queue_size": "queue", "n_merge_tile_processes": "write"}
"""Parts of ``n_jobs``."""

PARTS = {
    "pipeline": ("infer_size", "overlap_margin", *_JOBS),
    "postprocess": ("niter", "cellprob_threshold", "flow_threshold", "min_size", "resample"),
}
"""The parts of a file, and what each may hold."""


def read_turing(document: Document) -> tuple[Workflow, dict[str, Any]]:
    """Return the workflow and the options of `segment`.

    Raises
    ------
    InputError
        Lists every problem.
    """
    content, found = document.content, [Problem((k,), unknown(k, PARTS)) for k in document.content if k not in PARTS]
    settings: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    jobs: dict[str, int] = {}
    for part, known in PARTS.items():
        values = content.get(part) or {}
        if not isinstance(values, Mapping):
            found.append(Problem((part,), f"expected names and values, not {short(values)}"))
            continue
        for name, value in values.items():
            at = part, name
            if name not in known:
                found.append(Problem(at, unknown(name, known)))
            elif value is None:
                continue
            elif name not in _JOBS:
                settings[part][name] = value
                found += [Problem(at, p.text) for p in _wrong(part, name, value)]
            elif not (is_whole(value) and value >= 1):
                found.append(Problem(at, f"expected a whole number from 1, not {short(value)}"))
            else:
                jobs[_JOBS[name]] = value if _JOBS[name] == "queue" else min(value, cores())
    if not found:
        try:
            flow = Workflow(cell=Cellpose.from_turing(settings))
            return flow, {"n_jobs": jobs} if jobs else {}
        except ValueError as error:
            found = problems_of(error, Cellpose, {})
    raise document.error(found)


def _wrong(part: str, name: str, value: Any) -> list[Problem]:
    """Return what is wrong with a setting by itself."""
    try:
        Cellpose.from_turing({part: {name: value}})
    except ValueError as error:
        return problems_of(error, Cellpose, {name: value})
    return []
