"""Dry runs: everything is checked as the command would check it, the plan is printed, and nothing is written."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment import _elements
from spatialdata_segment._maps import check_maps, maps_fingerprint, read_manifest
from spatialdata_segment._options import given
from spatialdata_segment._phases import decode, predict, ready_to_decode, request_maps
from spatialdata_segment._preview import PLANNED, plan_of
from spatialdata_segment._request import resolve
from spatialdata_segment._resegment import ready_to_resegment, resegment
from spatialdata_segment._segment import segment
from spatialdata_segment._stores import open_store
from spatialdata_segment._targets import each
from spatialdata_segment.config import as_workflow
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.scratch import Shared, check_free
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from spatialdata_segment._preview import RunPlan
    from spatialdata_segment._targets import Target
    from spatialdata_segment.config import Workflow
    from spatialdata_segment.formats._plan import OutputPlan

_NOT_CHECKED = "overwrite", "resume", "progress", "scratch", "n_jobs", "keep_maps"


def dry_run(args: argparse.Namespace, targets: Sequence[Target], *, two_phases: bool) -> dict[str, Any]:
    """Check what `run` would do with every store; return the errors by store."""
    options = given(segment, args)

    def check(target: Target) -> None:
        if two_phases and "://" in target.store:
            raise InputError(f"{target.store} is no folder, and a run in two phases keeps its maps in the store")
        for key, flow in target.flows.items():
            executor = _executor(args, options)
            workflow = as_workflow(flow)
            if two_phases or options.get("keep_maps"):
                check_maps(workflow)
            prefix = target.prefix(key, options.get("key_added", "segmentation"))
            planned = PLANNED | {k: v for k, v in options.items() if k in PLANNED} | {"key_added": prefix}
            if args.cluster is not None:
                planned["devices"] = "cpu"  # those of this machine are not those of the workers
            request = resolve(target.sdata, key, workflow, executor=executor, **planned)
            _elements.check_outputs(target.sdata, request.names(), options.get("overwrite", False))
            scratch = options.get("scratch")
            if scratch is not None and not isinstance(scratch, Shared):
                folder = Path(scratch).resolve() / ("" if len(target.flows) == 1 else key)
                check_free(folder, request.fingerprint(), resume=options.get("resume", True))
            tell_plan(args, f"{target.store} {key}", plan_of(request, executor))

    return each(targets, check)


def dry_predict(args: argparse.Namespace, target: Target, key: str, flow: str | Workflow) -> None:
    """Check what `predict` would do."""
    options = given(predict, args)
    executor, overwrite = _executor(args, options), options.get("overwrite", False)
    if args.cluster is not None:
        options["devices"] = "cpu"
    taken = {k: v for k, v in options.items() if k not in _NOT_CHECKED}
    request = request_maps(target.sdata, key, as_workflow(flow), args.maps, executor, **_defaults(predict, taken))
    folder = Path(args.maps)
    check_free(
        folder, maps_fingerprint(request), resume=not overwrite, what="folder of maps", discards="overwrite=True"
    )
    tell_plan(args, f"{target.store} {key}", replace(plan_of(request, executor), outputs={args.maps: "maps"}))


def dry_decode(args: argparse.Namespace, workflow: str | Workflow | None) -> None:
    """Check what `decode` would do."""
    read_manifest(Path(args.maps))
    store = args.store or args.output
    there = args.store is not None or "://" in store or Path(store).exists()
    target = open_store(store) if there else _elements.new_object()
    options = given(decode, args)
    executor = _executor(args, options)
    taken = {k: v for k, v in options.items() if k not in _NOT_CHECKED}
    ready = ready_to_decode(
        args.maps, target, workflow, executor, scratch=options.get("scratch"), **_defaults(decode, taken)
    )
    _elements.check_outputs(target, ready.request.names(), options.get("overwrite", False))
    tell_plan(args, f"{args.maps} to {store}", plan_of(ready.request, executor))


def dry_resegment(
    args: argparse.Namespace, target: Target, key: str, flow: str | Workflow, options: dict[str, Any]
) -> None:
    """Check what `resegment` would do."""
    executor = _executor(args, options)
    if args.cluster is not None:
        options["devices"] = "cpu"
    taken = {k: v for k, v in options.items() if k not in _NOT_CHECKED}
    ready = ready_to_resegment(target.sdata, key, as_workflow(flow), executor, **_defaults(resegment, taken))
    if (scratch := options.get("scratch")) is not None:
        check_free(Path(scratch).resolve(), ready.request.fingerprint(), resume=options.get("resume", True))
    tell_plan(args, f"{target.store} {key}", replace(plan_of(ready.request, executor), outputs=ready.names))


def _executor(args: argparse.Namespace, options: dict[str, Any]) -> Executor:
    """Return what would run, or, of a cluster, which is not started, one thread."""
    return Executor(1 if args.cluster is not None else options.get("n_jobs"))


def _defaults(function: Callable[..., Any], taken: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a function that a plan depends on, with its defaults."""
    every = (function.__kwdefaults__ or {}).items()
    return {k: v for k, v in every if k not in (*_NOT_CHECKED, "sdata", "workflow")} | taken


def tell_plan(args: argparse.Namespace, what: str, plan: RunPlan | OutputPlan) -> None:
    """Print a plan, and put it into the summary."""
    args.summary.setdefault("plans", []).append({"of": what, **asdict(plan)})
    print(f"{what}: {plan}\ndry run: nothing was run or written")
