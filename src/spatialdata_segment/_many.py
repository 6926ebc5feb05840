"""Several images in one call: their shards share the same threads, and one image's failure loses no other."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spatialdata_segment.config import as_workflow
from spatialdata_segment.engine.events import of_image
from spatialdata_segment.errors import ImagesError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spatialdata_segment.config import Workflow
    from spatialdata_segment.engine.executor import Executor

_AHEAD = 4
"""Images at work besides those that keep all cores busy: some wait for their last shard."""


def workflows(images: Sequence[str] | Mapping[str, Any], workflow: Any) -> dict[str, Workflow]:
    """Return the workflow of every image.

    Raises
    ------
    InputError
        If there is no image, one is named twice, or workflows are given in two places.
    """
    flows: dict[str, Workflow]
    if isinstance(images, Mapping):
        if workflow != "dapi":
            raise InputError(
                f"image_key maps images to workflows, and workflow={workflow!r} is given as well: drop one"
            )
        flows = {}
        for key, flow in images.items():
            with naming(key):
                flows[key] = as_workflow(flow)
    else:
        if not isinstance(images, Iterable):
            raise InputError(f"image_key={images!r}, expected the name of an image, several, or a mapping to workflows")
        names = list(images)
        flows = dict.fromkeys(names, as_workflow(workflow))
        if len(flows) < len(names):
            raise InputError(f"image_key={names!r} names an image twice: name each once")
    if not flows:
        raise InputError("image_key is empty: expected the name of an image, several, or a mapping to workflows")
    return flows


@contextmanager
def naming(key: str | None) -> Iterator[None]:
    """Let errors about what was given name the image, where there are several."""
    try:
        yield
    except InputError as error:
        if key is None or repr(key) in str(error):
            raise
        raise type(error)(f"image {key!r}: {error}") from error


def run_each(runs: Mapping[str, Callable[[], None]], executor: Executor) -> None:
    """Run every image, as many at once as keep the executor busy; raise at the end where some failed.

    Raises
    ------
    ImagesError
        Names the images that failed and why; the others are done.
    """
    busy = executor.n_jobs > 1 or executor.client is not None
    at_once = min(len(runs), executor.n_jobs + _AHEAD if busy else 1)

    def one(key: str) -> Exception | None:
        with of_image(key):
            try:
                runs[key]()
            except Exception as error:  # noqa: BLE001 (whatever it is, the other images go on)
                return error
        return None

    if at_once == 1:
        found = {key: one(key) for key in runs}
    else:
        with warnings.catch_warnings():  # what drivers set in turn is put back here
            found = dict(zip(runs, _on_drivers(one, list(runs), at_once, executor), strict=True))
    failed = {key: error for key, error in found.items() if error is not None}
    if failed:
        told = "; ".join(f"{key!r}: {type(error).__name__}: {error}" for key, error in failed.items())
        done = ", ".join(repr(key) for key in runs if key not in failed) or "none"
        raise ImagesError(
            f"{len(failed)} of {len(runs)} images failed: {told}. Done: {done}. Call again with "
            f"image_key={list(failed)}, as a list or with their workflows",
            failed,
        )


def _on_drivers(
    one: Callable[[str], Exception | None], keys: Sequence[str], at_once: int, executor: Executor
) -> list[Exception | None]:
    """Run images side by side, each driven by a thread; an interrupt stops them all after their tasks in flight."""
    with ThreadPoolExecutor(at_once) as drivers:
        futures = [drivers.submit(one, key) for key in keys]
        try:
            return [future.result() for future in futures]
        except BaseException:
            executor.stop()
            drivers.shutdown(wait=False, cancel_futures=True)
            raise
