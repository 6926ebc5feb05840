"""`resegment`: a region segmented again, every other cell as it was. What is put where is `_update.py`'s."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from spatialdata_segment import _elements
from spatialdata_segment._request import Request, output_names, resolve
from spatialdata_segment._resegment_check import check_fits, check_variables
from spatialdata_segment._segment import discard_scratch, execute
from spatialdata_segment._staging import recover_sdata
from spatialdata_segment._table import plain, read_metadata
from spatialdata_segment._table_merge import UPDATES
from spatialdata_segment._update import Before, update
from spatialdata_segment.config import Workflow, as_workflow
from spatialdata_segment.engine.events import progress_bars
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.errors import InputError, MissingError, SegmentationWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from spatialdata import SpatialData

    from spatialdata_segment._region import Region
    from spatialdata_segment.methods.base import Method


def resegment(
    sdata: SpatialData,
    image_key: str,
    workflow: str | Workflow | Method | Callable[..., Any] | Mapping[str, Any],
    *,
    roi_key: str | None = None,
    bounding_box: Sequence[float] | None = None,
    key_added: str = "segmentation",
    channels: Sequence[str | int] | str | int | None = None,
    scale: str = "scale0",
    to_coordinate_system: str = "global",
    pixel_size: float | Sequence[float] | None = None,
    shard_size: int | None = None,
    overlap_px: int | Sequence[int] | None = None,
    n_jobs: int | Mapping[str, int] | None = None,
    devices: str | int | Sequence[str] = "auto",
    scratch: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> SpatialData:
    """Segment a region again, with other parameters if need be; every cell outside keeps its id and its pixels.

    A cell belongs to the region when the pixel at its centroid does, with its nucleus. Those cells go, and those that
    are found in their place come, whole. Where a new cell meets one that stays, the pixels stay with the old one; a
    new cell that would lose more than half of its pixels so is dropped as "covered". A cell found across the region's
    edge also comes, where most of it was cells that go. With the workflow of the first run the same cells come back.

    Parameters
    ----------
    sdata
        The object with a result of `segment`; it is changed and returned.
    image_key
        The image of that result, axes ``(c, y, x)`` or ``(c, z, y, x)``.
    workflow
        As for `segment`. It must make the masks that the result has, and match them, or not, as there. A method by
        itself makes the one mask of the result.
    roi_key, bounding_box
        The region, as for `segment`; one of them is needed.
    key_added
        Prefix of the result.
    channels, shard_size, overlap_px, n_jobs, devices, scratch, progress
        As for `segment`.
    resume
        Go on from what an earlier run of the same call left: a run that was killed, or, in a store, one that is the
        last change of the result, which is warned of and left as it is. False: do it again, for other new ids.
    scale, to_coordinate_system
        Those of the result; the region is given in this coordinate system.
    pixel_size
        µm a pixel of the scale used, a number or one per axis; None: that of the result. Another one is refused.

    Returns
    -------
    ``sdata`` with the elements of the result, each replaced in one piece. New ids follow the largest there was, in
    raster order of the anchors; no id is used again. Outlines and rows of other cells are those that were there, with
    the columns that others added to them (empty for new cells: integers become floats, text categories); graphs of
    neighbours, ``raw``, and other things known of all cells together are left out, as they would be of other cells,
    which a warning names. With ``match_masks=False``
    a row counts the nuclei that came with the cell. In the candidates table what went is "replaced", and
    the new candidates follow. ``uns["segmentation"]`` lists every such run under "updates". Elements that the result
    does not have (shapes, tables) are not made.

    Raises
    ------
    MissingError
        There is no such result.
    InputError
        No region, other masks, another grid or pixel size, a table whose ``X`` holds no longer the means of the
        channels (after scanpy's ``log1p``, say); before anything runs. The message says what was expected.
    ShardError, ScratchError
        As for `segment`.

    Examples
    --------
    >>> from spatialdata_segment import ThresholdNuclei, Workflow, resegment, segment
    >>> from spatialdata_segment.testing import Tissue
    >>> sdata = segment(Tissue((256, 256), cell_diameter=24).to_spatialdata(), "image", "dapi", progress=False)
    >>> before = int(sdata["segmentation_table"].obs["cell_id"].max())
    >>> smoother = Workflow(nucleus=ThresholdNuclei(sigma=3))
    >>> sdata = resegment(sdata, "image", smoother, bounding_box=(60, 60, 180, 180), progress=False)
    >>> bool((sdata["segmentation_table"].obs["cell_id"] > before).any())
    True
    """
    executor = Executor(n_jobs)
    if _elements.local_store(sdata) is not None:
        recover_sdata(sdata)
    ready = ready_to_resegment(
        sdata,
        image_key,
        _flow(sdata, key_added, workflow),
        executor,
        roi_key=roi_key,
        bounding_box=bounding_box,
        key_added=key_added,
        channels=channels,
        scale=scale,
        to_coordinate_system=to_coordinate_system,
        pixel_size=pixel_size,
        shard_size=shard_size,
        overlap_px=overlap_px,
        devices=devices,
    )
    if resume and ready.is_done and _elements.local_store(sdata) is not None:
        warnings.warn(
            f"the last change of {key_added!r} was this call: nothing was segmented again; resume=False does it again",
            SegmentationWarning,
            stacklevel=2,
        )
        if scratch is None:
            discard_scratch(sdata, ready.request)
        return sdata
    with progress_bars(progress):
        writer = partial(update, before=ready.before, region=ready.region)
        execute(sdata, ready.request, executor, scratch=scratch, resume=resume, writer=writer, record="resegment")
    return sdata


@dataclass(frozen=True)
class Ready:
    """A checked call.

    Attributes
    ----------
    request
        What is computed: with a wider region, that holds the whole of what may come.
    region
        Where cells are replaced.
    names
        Elements that are replaced, and their kinds.
    is_done
        Whether the last change of the result was the same call: that of a run that was killed as it ended.
    """

    before: Before
    request: Request
    region: Region
    names: dict[str, str]
    is_done: bool


def ready_to_resegment(
    sdata: SpatialData,
    image_key: str,
    workflow: Workflow,
    executor: Executor,
    *,
    roi_key: str | None,
    bounding_box: Sequence[float] | None,
    key_added: str,
    to_coordinate_system: str,
    pixel_size: float | Sequence[float] | None,
    **options: Any,
) -> Ready:
    """Check a call of `resegment`, and read the result that it is to change; ``options``: others of `resolve`."""
    if roi_key is None and bounding_box is None:
        raise InputError("neither roi_key nor bounding_box is given: name the region, or segment the whole again")
    before = _before(sdata, key_added)
    known = read_metadata(before.table) if before.table is not None else {}
    if before.table is not None:
        check_variables(before.table, f"{key_added}_table", _elements.read_image(sdata, image_key, options["scale"]))
    request = resolve(
        sdata,
        image_key,
        workflow,
        roi_key=roi_key,
        bounding_box=bounding_box,
        key_added=key_added,
        measure_channels=[] if before.table is None else list(before.table.var_names),
        to_coordinate_system=to_coordinate_system,
        pixel_size=known.get("pixel_size") if pixel_size is None else pixel_size,
        executor=executor,
        shapes=bool(before.shapes),
        table=True,  # sizes and places are needed, whether there are tables or not
        **options,
    )
    check_fits(request, before, known, to_coordinate_system)
    names = {n: kind for n, kind in request.names().items() if n in getattr(sdata, kind)}
    _elements.check_outputs(sdata, names, overwrite=True)
    region = request.region
    assert region is not None
    halo = tuple(2 * max(h) for h in zip(*(p.halo for p in request.plans.values()), strict=True))
    wide = replace(request, region=region.widened(halo))
    return Ready(before, wide, region, names, _is_done(request, known))


def _flow(
    sdata: SpatialData,
    key_added: str,
    given: str | Workflow | Method | Callable[..., Any] | Mapping[str, Any],
) -> Workflow:
    """Return the workflow; a method by itself makes the one mask that the result has."""
    flow = as_workflow(given)
    is_bare = not isinstance(given, str | Workflow | Mapping)
    has_nuclei, has_cells = (f"{key_added}_{m}_labels" in sdata.labels for m in ("nucleus", "cell"))
    return Workflow(nucleus=flow.cell) if is_bare and has_nuclei and not has_cells else flow


def _is_done(request: Request, known: Mapping[str, Any]) -> bool:
    """Tell whether the last entry of a result's updates says what is asked for; a function may have changed since."""
    last = known.get(UPDATES, [])[-1:]
    asked = json.loads(json.dumps(request.parameters(), default=plain))
    return bool(last) and request.workflow.resumable and all(last[0].get(n) == v for n, v in asked.items())


def _before(sdata: SpatialData, key_added: str) -> Before:
    """Find the result that is to be changed."""
    names = output_names(key_added, ("nucleus", "cell"), shapes=True, table=True)
    labels = {m: f"{key_added}_{m}_labels" for m in ("nucleus", "cell") if f"{key_added}_{m}_labels" in sdata.labels}
    if not labels:
        raise MissingError(
            f"the object has no result {key_added!r}, expected labels {key_added}_nucleus_labels or "
            f"{key_added}_cell_labels: segment the image first, or pass another key_added="
        )
    shapes = [n for n, kind in names.items() if kind == "shapes" and n in sdata.shapes]
    return Before(
        labels={m: _elements.read_labels(sdata, name) for m, name in labels.items()},
        shapes={n: _elements.read_shapes(sdata, n).data for n in shapes},
        table=sdata.tables.get(f"{key_added}_table"),
        candidates=sdata.tables.get(f"{key_added}_candidates"),
    )
