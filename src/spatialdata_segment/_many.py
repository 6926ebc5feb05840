"""Several images in one call: their shards share the same threads, and one image's failure loses no other."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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
    if isinstance(images, Mapping):
        if workflow != "dapi":
            raise InputError(
                f"image_key maps images to workflows, and workflow={workflow!r} is given as well: drop one"
            )
        flows = {key: as_workflow(flow) for key, flow in images.items()}
    else:
        flows = dict.fromkeys(images, as_workflow(workflow))
        if len(flows) < len(images):
            raise InputError(f"image_key={list(images)!r} names an image twice: name each once")
    if not flows:
        raise InputError("image_key is empty: expected the name of an image, several, or a mapping to workflows")
    return flows


def run_each(runs: Mapping[str, Callable[[], None]], executor: Executor) -> None:
    """Run every image, as many at once as keep the executor busy; raise at the end where some failed.

    Raises
    ------
    ImagesError
        Names the images that failed and why; the others are done.
    """
    at_once = min(len(runs), executor.n_jobs + _AHEAD if executor.n_jobs > 1 or executor.client is not None else 1)

    def one(key: str) -> Exception | None:
        with of_image(key):
            try:
                runs[key]()
            except Exception as error:  # noqa: BLE001 (whatever it is, the other images go on)
                return error
        return None

    with ThreadPoolExecutor(at_once) as drivers:
        found = dict(zip(runs, drivers.map(one, runs), strict=True))
    failed = {key: error for key, error in found.items() if error is not None}
    if failed:
        told = "; ".join(f"{key!r}: {type(error).__name__}: {error}" for key, error in failed.items())
        done = ", ".join(repr(key) for key in runs if key not in failed) or "none"
        raise ImagesError(f"{len(failed)} of {len(runs)} images failed: {told}. Done: {done}", failed)
