"""Statistics of the whole image: one streamed pass, kept in the scratch."""

from __future__ import annotations

import json
import logging
import zlib
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment.core.statistics import Histogram, Statistic
from spatialdata_segment.engine.scratch import write_json
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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
    image = source[channels].rechunk((len(channels), *plan.chunks), threshold=1 << 40)
    counted = da.map_blocks(
        _count,
        image,
        dtype=object,
        chunks=((1,), *((1,) * n for n in plan.grid)),
        meta=np.empty((0,) * image.ndim, object),
    )
    keys = [(counted.name, 0, *at) for at in np.ndindex(*plan.grid)]
    graph: Any = counted.__dask_graph__()
    total: list[Histogram] | None = None
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        results = executor.run(graph.cull(batch), batch, stage, start, len(keys))
        parts = [r.item() for r in results]
        merged = [reduce(add, column) for column in zip(*parts, strict=True)]
        total = merged if total is None else [a + b for a, b in zip(total, merged, strict=True)]
    assert total is not None
    return dict(zip(channels, total, strict=True))


def _count(block: NDArray[Any]) -> NDArray[Any]:
    out = np.empty((1,) * block.ndim, object)
    out.flat[0] = [Histogram.of(channel) for channel in block]
    return out
