"""`segment`: resolve, plan, run, stitch, write. Knows no method family."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from spatialdata_segment import _elements
from spatialdata_segment._many import naming, run_each, workflows
from spatialdata_segment._maps import check_maps, opened, with_maps
from spatialdata_segment._prepare import Prepared, at_hand, prepare, run_masks
from spatialdata_segment._record import clock, write_record
from spatialdata_segment._request import Request, leftovers, resolve
from spatialdata_segment._staging import Staging, recover_sdata
from spatialdata_segment._write import write
from spatialdata_segment.config import Workflow, as_workflow
from spatialdata_segment.engine.events import progress_bars
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.scratch import Scratch, Shared
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from spatialdata import SpatialData

    from spatialdata_segment.engine.mask import Mask
    from spatialdata_segment.engine.preprocess import Measured
    from spatialdata_segment.methods.base import Method

DOT = ".spatialdata_segment"
_object = Lock()
"""Held while a run changes an object: several images may be at work."""


def segment(
    sdata: SpatialData,
    image_key: str | Sequence[str] | Mapping[str, Any],
    workflow: str | Workflow | Method | Callable[..., Any] | Mapping[str, Any] = "dapi",
    *,
    channels: Sequence[str | int] | str | int | None = None,
    scale: str = "scale0",
    roi_key: str | None = None,
    bounding_box: Sequence[float] | None = None,
    key_added: str = "segmentation",
    measure_channels: Sequence[str | int] | str | int | None = None,
    to_coordinate_system: str = "global",
    pixel_size: float | Sequence[float] | None = None,
    shard_size: int | None = None,
    overlap_px: int | Sequence[int] | None = None,
    n_jobs: int | Mapping[str, int] | None = None,
    devices: str | int | Sequence[str] = "auto",
    scratch: str | Path | None = None,
    resume: bool = True,
    keep_maps: bool = False,
    shapes: bool = True,
    table: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> SpatialData:
    """Segment the cells of an image of any size, and write labels, shapes and tables back.

    The image is cut into equal shards with a halo; each is segmented by itself, lazily, and what several
    shards saw is stitched so that the labels are the same for every plan. In a backed object the result is
    written to its store, and a run that was killed goes on where it stopped when it is called again.

    Parameters
    ----------
    sdata
        The object; it is changed and returned.
    image_key
        Name of an image with axes ``(c, y, x)`` or ``(c, z, y, x)``, single- or multiscale. Several names, or a
        mapping from names to workflows: all images in one run, as if each by itself; the other options hold for all.
    workflow
        Name of a workflow ("dapi"), a `Workflow`, one method, or any function from ``(c, y, x)`` pixels to
        ``(y, x)`` integer labels. The function is called with windows of the image; see `Function`.
    channels
        Names or 0-based indices: the nuclear stain, then the membrane stain. None: the channel rules of the
        workflow, then the image's order. A function gets all of them. "haematoxylin" or "eosin": the stain of an
        RGB image, by colour deconvolution.
    scale
        Which scale of a multiscale image; the result lies on its grid.
    roi_key
        A shapes or labels element. Shards outside are not computed; a cell whose anchor lies inside is kept,
        whole. Shapes go through all planes of a volume.
    bounding_box
        In place of ``roi_key``: ``(x_min, y_min, x_max, y_max)`` in ``to_coordinate_system``; of a volume all planes,
        or with ``(x_min, y_min, z_min, x_max, y_max, z_max)`` those between.
    key_added
        Prefix of the names written; of several images after the image's name, ``{image}_{key_added}``.
    measure_channels
        Channels whose mean intensity a cell goes into the table; None: all.
    to_coordinate_system
        Of ``obsm["spatial"]`` and of the region.
    pixel_size
        µm a pixel of the scale used, a number or one per axis ``([z], y, x)``; for µm² and µm.
    shard_size
        Pixels (voxels) of a shard's core, at most; None: 2048 x 2048, or 256³.
    overlap_px
        Halo read on each side of a core, a number or one per axis; None: the method's.
    n_jobs
        Shards in flight; None: one a core. A mapping tells apart, on one machine: ``"decode"``, shards decoded at
        once; ``"queue"``, further ones whose maps may wait for that, as far as memory holds them, so that a GPU is
        not idle; ``"write"``, blocks written at once. An active ``distributed.Client`` is used instead.
    devices
        Where networks run: "auto" (all CUDA devices, else Apple's "mps", else "cpu"), or names such as "cuda:1",
        several to share the shards. A number: as "auto", at most so many; the CPU in their place is warned of.
    scratch
        Folder for intermediate results; of several images each has one in it. None: in the store of a backed
        object, else (also for `read_remote`) a temporary one, from which no later run can go on.
    resume
        Go on from what an earlier run of the same image, workflow and plan left; False discards it.
    keep_maps
        Keep the dense maps, to be decoded again with other thresholds: see `decode`. They lie in the store of a
        backed object, in ``.spatialdata_segment/{key_added}.maps``, else beside ``scratch``, as ``....maps``. With
        ``overwrite`` they replace those of the earlier result; without ``keep_maps`` those go with it.
    shapes, table
        Whether to write outlines, and tables.
    overwrite
        Replace an earlier result of the same prefix, as a whole: also those of its elements that this one does
        not have (of another mask, say), because their ids would not go with the new ones.
    progress
        Show progress bars.

    Returns
    -------
    ``sdata`` with labels ``{key_added}_nucleus_labels`` and/or ``{key_added}_cell_labels`` (uint32, uint64
    beyond; 0 is background), shapes ``..._boundaries`` (in px of the scale, with its transformations; the index is
    ``cell_id``, or, of a volume, there is a row a cell and plane, with the columns ``z_index`` and ``cell_id``), table
    ``{key_added}_table`` (a row a kept cell) and ``{key_added}_candidates`` (a row for every object found).

    Raises
    ------
    MissingError, ExistsError, InputError
        Before anything runs, for what can be known then; the message says what was expected.
    ShardError
        When a shard failed; the others are kept for the next call.
    ScratchError
        When the scratch or the store cannot be written, or is full.
    ImagesError
        When some of several images failed, at the end; the others are written.
    """
    executor = Executor(n_jobs)
    if _elements.local_store(sdata) is not None:
        recover_sdata(sdata)
    alone = image_key if isinstance(image_key, str) else None
    flows = workflows(image_key, workflow) if alone is None else {alone: as_workflow(workflow)}
    runs: dict[str, Callable[[], None]] = {}
    names: dict[str, str] = {}
    for key, flow in flows.items():
        with naming(key if alone is None else None):
            request = resolve(
                sdata,
                key,
                flow,
                channels=channels,
                scale=scale,
                roi_key=roi_key,
                bounding_box=bounding_box,
                key_added=f"{key}_{key_added}" if alone is None else key_added,
                measure_channels=measure_channels,
                to_coordinate_system=to_coordinate_system,
                pixel_size=pixel_size,
                shard_size=shard_size,
                overlap_px=overlap_px,
                executor=executor,
                devices=devices,
                shapes=shapes,
                table=table,
            )
        folder = Shared(scratch) if alone is None and scratch is not None else scratch
        maps = _maps_folder(sdata, request, folder) if keep_maps else None
        names |= request.names()
        runs[key] = partial(
            execute, sdata, request, executor, scratch=folder, resume=resume, overwrite=overwrite, maps=maps
        )
    _elements.check_outputs(sdata, names, overwrite)
    with progress_bars(progress):
        if alone is None:
            run_each(runs, executor)
        else:
            runs[alone]()
    return sdata


def _drop_maps(sdata: SpatialData, key_added: str) -> None:
    """Remove the maps that a result kept, when it is replaced by one that keeps none."""
    if (store := _elements.local_store(sdata)) is not None:
        shutil.rmtree(store / DOT / f"{key_added}.maps", ignore_errors=True)


def _maps_folder(sdata: SpatialData, request: Request, scratch: str | Path | None) -> Path:
    """Return where the maps of a run are kept."""
    check_maps(request.workflow)
    if (store := _elements.local_store(sdata)) is not None:
        return store / DOT / f"{request.key_added}.maps"
    if scratch is None:
        raise InputError("keep_maps=True of an object in memory needs scratch=: the maps are kept beside that folder")
    folder = Path(scratch).resolve()
    if isinstance(scratch, Shared):
        return folder / f"{request.key_added}.maps"
    return folder.with_name(f"{folder.name}.maps")


def execute(
    sdata: SpatialData,
    request: Request,
    executor: Executor,
    *,
    scratch: str | Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
    measured: Mapping[str, Measured] | None = None,
    ready: Prepared | None = None,
    maps: Path | None = None,
    writer: Callable[[Request, dict[str, Mask], Staging, Executor, Mapping[str, Mapping[str, float]]], None]
    | None = None,
    record: str = "run",
) -> None:
    """Run a checked request and put its result into the object; what is not ``measured`` of the image is.

    ``ready``: what an earlier phase prepared, with its maps. ``maps``: where they are to be kept. ``writer``: what
    stages the result. ``record``: by which name the run is put on record.
    """
    with ExitStack() as stack:
        timed = stack.enter_context(clock())
        folder = stack.enter_context(_scratch(sdata, request, scratch, resume))
        executor.check_folder(folder.folder)
        with _object:
            staging = stack.enter_context(Staging(sdata, folder.part("staging")))
        kept = scratch is not None or _elements.local_store(sdata) is not None
        request = stack.enter_context(at_hand(request, folder.part("image"), executor))
        from_maps = ready is not None
        if ready is not None:
            jobs = {name: replace(job, kept=kept) for name, job in ready.jobs.items()}
            ready = replace(ready, request=request, jobs=jobs)
        else:
            ready = prepare(request, folder.part, executor, measured, kept=kept)
            if maps is not None:
                store = stack.enter_context(opened(maps, request, executor, resume=resume, overwrite=True))
                ready = with_maps(ready, store, executor)
        masks = run_masks(ready, executor, folder.part)
        (writer or write)(ready.request, masks, staging, executor, ready.numbers())
        if overwrite:
            stale = leftovers(request.key_added, request.names())
            staging.remove([name for name in stale if name != request.roi_key])
        with _object:
            staging.commit()
        if overwrite and maps is None and not from_maps:
            _drop_maps(sdata, request.key_added)
        write_record(sdata, request, folder, _elements.local_store(sdata), masks, executor, timed, record)
        folder.clear()


def discard_scratch(sdata: SpatialData, request: Request) -> None:
    """Remove what a run that is through left in its scratch, because it was killed as it ended."""
    with _scratch(sdata, request, None, True) as folder:
        folder.clear()


@contextmanager
def _scratch(sdata: SpatialData, request: Request, given: str | Path | None, resume: bool) -> Iterator[Scratch]:
    """Open the scratch; what a failed run finished stays there, unless nobody could go on from it."""
    fingerprint = request.fingerprint()
    resumable = request.workflow.resumable
    store = _elements.local_store(sdata)
    temporary = None
    if given is not None:
        root = Path(given).resolve()
    elif store is not None:
        root = store / DOT / "scratch"
    else:
        root = temporary = Path(tempfile.mkdtemp(prefix="spatialdata-segment-"))
    named = given is not None and not isinstance(given, Shared)
    try:
        folder = Scratch(root, fingerprint, given=named, resume=resume, resumable=resumable)
        try:
            yield folder
        except BaseException:
            if not resumable or not folder.holds_entries():
                folder.clear()
            raise
        finally:
            folder.close()
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        elif given is None:
            with suppress(OSError):  # what is empty goes; other runs may be at work here
                root.rmdir()
                root.parent.rmdir()
