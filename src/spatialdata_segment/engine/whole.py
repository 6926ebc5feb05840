"""Statistics of the whole image: streamed, and kept in the scratch."""

from __future__ import annotations

import json
import logging
import zlib
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment._channels import pick_channels
from spatialdata_segment.core.statistics import Histogram, Statistic
from spatialdata_segment.engine.scratch import write_json
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.engine.executor import Executor

logger = logging.getLogger(__name__)

_BATCH = 8


def measure_image(
    source: da.Array, wanted: Sequence[Statistic], plan: Plan, executor: Executor, stage: str, path: Path | None = None
) -> dict[Statistic, float]:
    """Compute the statistics that a method asks for; ``path`` keeps them for a resumed run.

    Raises
    ------
    InputError
        If a pixel is NaN or infinite.
    """
    if not wanted:
        return {}
    before = _kept(path)
    if before is not None and all(s.label in before for s in wanted):
        return {s: before[s.label] for s in wanted}
    histograms = _histograms(source, sorted({s.channel for s in wanted}), plan, executor, stage)
    bad = sum(h.non_finite for h in histograms.values())
    if bad:
        raise InputError(
            f"the image holds {bad} NaN or infinite pixels, expected finite values: replace them, for example by "
            "0 (numpy.nan_to_num)"
        )
    values = {s: histograms[s.channel].compute(s) for s in wanted}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {s.label: v for s, v in values.items()}
        write_json(path, {"values": kept, "check": _check(kept)})
    return values


def _kept(path: Path | None) -> dict[str, float] | None:
    if path is None or not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        values: dict[str, float] = content["values"]
        sound = content["check"] == _check(values)
    except (ValueError, KeyError, TypeError):
        sound = False
    if sound:
        return values
    logger.warning("scratch entry damaged, computed again: %s", path)
    return None


def _check(values: Mapping[str, float]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _histograms(
    source: da.Array, channels: list[int], plan: Plan, executor: Executor, stage: str
) -> dict[int, Histogram]:
    image = pick_channels(source, channels).rechunk((len(channels), *plan.chunks), threshold=1 << 40)
    origins = [0.0] * len(channels)
    if image.dtype.itemsize > 2:  # what is not counted exactly is counted from its least value
        parts = list(_over_blocks(_least, image, plan, executor, f"{stage}: range"))
        origins = np.min(np.concatenate(parts), axis=0).tolist()
    total: list[Histogram] | None = None
    for batch in _over_blocks(partial(_count, origins=origins), image, plan, executor, stage):
        merged = [reduce(add, column) for column in zip(*batch, strict=True)]
        total = merged if total is None else [a + b for a, b in zip(total, merged, strict=True)]
    assert total is not None
    return dict(zip(channels, total, strict=True))


def _over_blocks(
    function: Callable[[NDArray[Any]], Any], image: da.Array, plan: Plan, executor: Executor, stage: str
) -> Iterator[list[Any]]:
    """Yield what a function says of the blocks, in batches."""
    told = da.map_blocks(
        partial(_told, function),
        image,
        dtype=object,
        chunks=((1,), *((1,) * n for n in plan.grid)),
        meta=np.empty((0,) * image.ndim, object),
    )
    keys = [(told.name, 0, *at) for at in np.ndindex(*plan.grid)]
    graph: Any = told.__dask_graph__()
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        yield [r.item() for r in executor.run(graph.cull(batch), batch, stage, start, len(keys))]


def _told(function: Callable[[NDArray[Any]], Any], block: NDArray[Any]) -> NDArray[Any]:
    out = np.empty((1,) * block.ndim, object)
    out.flat[0] = function(block)
    return out


def _least(block: NDArray[Any]) -> NDArray[np.float64]:
    """Return the least finite value of each channel."""
    values = block.reshape(len(block), -1)
    finite = np.isfinite(values) if values.dtype.kind == "f" else True
    top = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    least = np.min(values, axis=1, initial=top, where=finite).astype(np.float64)
    return np.where(np.isfinite(least), least, 0.0)[None]


def _count(block: NDArray[Any], origins: Sequence[float]) -> list[Histogram]:
    return [Histogram.of(channel, origin) for channel, origin in zip(block, origins, strict=True)]
