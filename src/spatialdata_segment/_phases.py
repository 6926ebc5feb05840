"""`predict` and `decode`: the two phases of a run apart, with the dense maps in a zarr store between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment import _elements
from spatialdata_segment._maps import MANIFEST, check_maps, opened, prepared_of, read_manifest, read_workflow, with_maps
from spatialdata_segment._prepare import at_hand, prepare
from spatialdata_segment._request import resolve
from spatialdata_segment._segment import DOT, execute
from spatialdata_segment._staging import recover_sdata
from spatialdata_segment.config import Workflow, as_workflow
from spatialdata_segment.engine.events import progress_bars
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spatialdata import SpatialData

    from spatialdata_segment._prepare import Prepared
    from spatialdata_segment._request import Request
    from spatialdata_segment.methods.base import Method


def predict(
    sdata: SpatialData,
    image_key: str,
    workflow: str | Workflow | Method | Callable[..., Any] | Mapping[str, Any],
    maps: str | Path,
    *,
    channels: Sequence[str | int] | str | int | None = None,
    scale: str = "scale0",
    roi_key: str | None = None,
    bounding_box: Sequence[float] | None = None,
    to_coordinate_system: str = "global",
    pixel_size: float | Sequence[float] | None = None,
    shard_size: int | None = None,
    overlap_px: int | Sequence[int] | None = None,
    n_jobs: int | Mapping[str, int] | None = None,
    devices: str | int | Sequence[str] = "auto",
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Predict dense maps (flows, probabilities) of an image and keep them: the first phase of `segment`.

    The part that wants a GPU. `decode` makes the result of the maps, elsewhere if need be, without the image and
    without torch. A run that was killed goes on, when it is called again, with the blocks that are not written.

    Parameters
    ----------
    sdata, image_key, workflow, channels, scale, roi_key, bounding_box, to_coordinate_system, pixel_size, overlap_px
        As for `segment`. Of a region, and of what lies around it, maps are predicted; the rest is left out.
    maps
        Folder to write, a zarr group: for each mask ``maps`` ``(k, [z], y, x)`` in the method's stored precision, and
        what decoding needs to know. New, empty, or of an earlier call.
    shard_size
        Pixels that are predicted at once, about; blocks are made of whole chunks of the store.
    n_jobs, devices, progress
        As for `segment`.
    resume
        Go on from what an earlier call left; False discards it.
    overwrite
        Replace the maps of another run.

    Returns
    -------
    ``maps``.

    Raises
    ------
    MissingError, InputError
        Before anything runs, as `segment`; also where a method's maps cannot be kept (those of a function).
    ShardError
        When a block failed; the others are kept.
    ScratchError
        When the folder holds something else, or cannot be written.
    """
    executor = Executor(n_jobs)
    request = request_maps(
        sdata,
        image_key,
        as_workflow(workflow),
        maps,
        executor,
        channels=channels,
        scale=scale,
        roi_key=roi_key,
        bounding_box=bounding_box,
        to_coordinate_system=to_coordinate_system,
        pixel_size=pixel_size,
        shard_size=shard_size,
        overlap_px=overlap_px,
        devices=devices,
    )
    with (
        progress_bars(progress),
        opened(Path(maps), request, executor, resume=resume, overwrite=overwrite) as kept,
        at_hand(request, kept.part("image"), executor) as readable,
    ):
        with_maps(prepare(readable, kept.part, executor, kept=True), kept, executor)
    return Path(maps)


def request_maps(
    sdata: SpatialData, image_key: str, flow: Workflow, maps: str | Path, executor: Executor, **options: Any
) -> Request:
    """Check everything that `predict` can know beforehand; ``options``: those of its own that decide the maps."""
    request = resolve(
        sdata,
        image_key,
        flow,
        key_added="maps",
        measure_channels=(),
        executor=executor,
        shapes=False,
        table=False,
        **options,
    )
    check_maps(flow)
    store, folder = _elements.local_store(sdata), Path(maps).resolve()
    if store is not None and store.resolve() in folder.parents and (store / DOT).resolve() not in folder.parents:
        raise InputError(f"maps={str(maps)!r} lies among the elements of {store}: pass a folder outside of the store")
    return request


def decode(
    maps: str | Path,
    *,
    sdata: SpatialData | None = None,
    workflow: str | Workflow | Method | Mapping[str, Any] | None = None,
    key_added: str = "segmentation",
    measure_channels: Sequence[str | int] | str | int | None = None,
    to_coordinate_system: str = "global",
    shard_size: int | None = None,
    overlap_px: int | Sequence[int] | None = None,
    n_jobs: int | Mapping[str, int] | None = None,
    devices: str | int | Sequence[str] = "auto",
    scratch: str | Path | None = None,
    resume: bool = True,
    shapes: bool = True,
    table: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> SpatialData:
    """Turn maps that `predict` kept into labels, shapes and tables: the second phase of `segment`.

    The labels are those of `segment` with the same workflow, for every plan. Neither the image nor the network is
    needed.

    Parameters
    ----------
    maps
        Folder that `predict` wrote, or that ``segment(..., keep_maps=True)`` left.
    sdata
        The object that gets the result. Where it holds the image, mean intensities go into the table. None: a new
        object in memory.
    workflow
        With other thresholds: any of the parameters that `predict` does not read may differ. None: that of `predict`.
    key_added, measure_channels, to_coordinate_system, n_jobs, scratch, resume, shapes, table, overwrite, progress
        As for `segment`.
    shard_size, overlap_px
        As for `segment`; None: those of `predict`.
    devices
        For methods that decode on a device.

    Returns
    -------
    ``sdata``, or the new object.

    Raises
    ------
    MissingError
        If there are no such maps, or `predict` did not finish.
    InputError
        If the workflow asks for other maps, or the image of ``sdata`` is another.
    ShardError, ScratchError
        As `segment`.
    """
    executor = Executor(n_jobs)
    if sdata is not None and _elements.local_store(sdata) is not None:
        recover_sdata(sdata)
    target = _elements.new_object() if sdata is None else sdata
    ready = ready_to_decode(
        maps,
        target,
        workflow,
        executor,
        scratch=scratch,
        key_added=key_added,
        measure_channels=measure_channels,
        to_coordinate_system=to_coordinate_system,
        shard_size=shard_size,
        overlap_px=overlap_px,
        devices=devices,
        shapes=shapes,
        table=table,
    )
    _elements.check_outputs(target, ready.request.names(), overwrite)
    with progress_bars(progress):
        execute(target, ready.request, executor, scratch=scratch, resume=resume, overwrite=overwrite, ready=ready)
    return target


def ready_to_decode(
    maps: str | Path,
    target: SpatialData,
    workflow: str | Workflow | Method | Mapping[str, Any] | None,
    executor: Executor,
    *,
    scratch: str | Path | None,
    to_coordinate_system: str,
    **options: Any,
) -> Prepared:
    """Check everything that `decode` can know beforehand; ``options``: those of its own that decide the result."""
    folder, kept = Path(maps), read_manifest(Path(maps))
    flow = read_workflow(kept) if workflow is None else as_workflow(workflow)
    if scratch is not None and folder.resolve() in (Path(scratch).resolve(), *Path(scratch).resolve().parents):
        raise InputError(f"scratch={str(scratch)!r} lies in the folder of the maps, {folder}: pass another one")
    executor.check_seen(folder / MANIFEST, "what predict() left")
    return prepared_of(folder, kept, flow, target, executor, system=to_coordinate_system, **options)
