"""What a command works on: stores, their images, a workflow for each; one that fails loses no other."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment._dialects import read_configuration
from spatialdata_segment._stores import open_store
from spatialdata_segment.errors import ClusterError, ImagesError, InputError, MissingError, SegmentationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from spatialdata import SpatialData

    from spatialdata_segment.config import Workflow


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A store, and the workflow of each of its images that are asked for."""

    store: str
    sdata: SpatialData
    flows: dict[str, str | Workflow]

    def prefix(self, image: str, key_added: str) -> str:
        """Return the prefix of an image's elements, as `segment` makes it."""
        return f"{image}_{key_added}" if len(self.flows) > 1 else key_added


def find_targets(args: argparse.Namespace) -> tuple[list[Target], dict[str, SegmentationError | OSError]]:
    """Open the stores of a command line, and look for their images; of several, return the errors of those that fail.

    Raises
    ------
    MissingError, InputError
        If a store, an image or a workflow is not there or cannot be read.
    """
    paths = [path for given in args.stores for path in _stores(given)]
    if len(paths) > 1 and hasattr(args, "scratch"):
        raise InputError(
            f"--scratch {args.scratch} with {len(paths)} stores: leave it out, each has a scratch of its own"
        )
    flows: dict[str, str | Workflow] = {}
    for given in args.image or ():
        key, named, flow = given.partition("=")
        if key in flows:
            raise InputError(f"--image names {key!r} twice: name each once")
        flows[key] = read_workflow(flow if named else args.workflow, args)
    common = None if flows else read_workflow(args.workflow, args)
    if len(paths) > 1 and hasattr(args, "scratch"):
        logger.info("%s: not used, every store has a scratch of its own", args.scratch)
        del args.scratch
    if len(paths) == 1:
        return [target_of(paths[0], flows, common)], {}
    found: list[Target] = []
    failed: dict[str, SegmentationError | OSError] = {}
    for path in paths:
        try:
            found.append(target_of(path, flows, common))
        except (SegmentationError, OSError) as error:
            failed[path] = error
    return found, failed


def target_of(path: str, flows: dict[str, str | Workflow], common: str | Workflow | None) -> Target:
    """Open a store; where no image is named, take its only one, with the workflow of all."""
    sdata = open_store(path)
    if not flows:
        if len(sdata.images) != 1:
            there = ", ".join(sdata.images) or "none"
            raise MissingError(f"{path} has {len(sdata.images)} images ({there}): name those to work on with --image")
        assert common is not None
        flows = {next(iter(sdata.images)): common}
    return Target(path, sdata, flows)


def read_workflow(given: str, args: argparse.Namespace) -> str | Workflow:
    """Return the workflow of a YAML file, or the name as it is.

    What the file says of the run becomes an option, where the command line does not give it.
    """
    if Path(given).suffix.lower() not in (".yaml", ".yml"):
        return given
    found = read_configuration(given)
    read: dict[str, tuple[str, Any]] = vars(args).setdefault("read", {})
    for name, value in found.options.items():
        if name in read and read[name][1] != value:
            raise InputError(
                f"{read[name][0]} and {given} differ in {name}, {read[name][1]} and {value}, which holds for the whole "
                f"run: give --{name.replace('_', '-')}"
            )
        if name in read or not hasattr(args, name):
            read[name] = given, value
            setattr(args, name, value)
    return found.workflow


def _stores(given: str) -> list[str]:
    """Return a store, or those in a folder that is none."""
    folder = Path(given)
    if not folder.is_dir() or folder.suffix == ".zarr" or any((folder / f).exists() for f in ("zarr.json", ".zgroup")):
        return [given]
    found = sorted(str(path) for path in folder.glob("*.zarr"))
    if not found:
        raise MissingError(f"the folder {given} is no store and holds none: expected names that end in .zarr")
    return found


def each(
    targets: Sequence[Target], work: Callable[[Target], None], client: Any = None
) -> dict[str, SegmentationError | OSError]:
    """Do some work for every store, and return the errors of those where it failed.

    Raises
    ------
    ClusterError
        If there was a client and its workers are gone.
    """
    failed: dict[str, SegmentationError | OSError] = {}
    for target in targets:
        if client is not None and client.status != "running":
            raise ClusterError("the workers are gone")
        try:
            with _naming(target.store if len(targets) > 1 else ""):
                work(target)
        except (SegmentationError, OSError) as error:
            failed[target.store] = error
    return failed


@contextmanager
def _naming(store: str) -> Iterator[None]:
    """Let warnings name the store, where there are several."""
    with warnings.catch_warnings():
        show = warnings.showwarning
        if store:
            warnings.showwarning = lambda message, *args, **options: show(f"{store}: {message}", *args, **options)
        yield


def raise_failed(failed: dict[str, SegmentationError | OSError], total: int) -> None:
    """Raise where some stores failed: the error of the only one, or one that tells of all.

    Raises
    ------
    ImagesError
        Of several stores.
    """
    if not failed:
        return
    if total == 1:
        raise next(iter(failed.values()))
    told = "; ".join(f"{store}: {type(error).__name__}: {error}" for store, error in failed.items())
    raise ImagesError(f"{len(failed)} of {total} stores failed: {told}. The others are done", dict(failed))
