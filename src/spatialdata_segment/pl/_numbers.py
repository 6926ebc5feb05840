"""The numbers behind charts and reports, from the tables of a result alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import issparse

from spatialdata_segment.core.matching import Reason

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from spatialdata_segment._results import Result

_CELLS_A_BIN = 10
_MOST_BINS = 160


def density_map(result: Result) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the kept cells of bins as good as square, and the edges of the bins along y and x (px)."""
    rows = result.candidates_of(result.main)
    rows = rows[rows["is_kept"].to_numpy(bool)]
    shape = result.shape[-2:]
    side = max(np.sqrt(float(np.prod(shape)) * _CELLS_A_BIN / max(len(rows), 1)), max(shape) / _MOST_BINS)
    edges = [np.linspace(0, n, max(1, round(n / side)) + 1) for n in shape]
    counts, _, _ = np.histogram2d(rows["centroid_y"], rows["centroid_x"], bins=edges)
    return counts, (edges[0], edges[1])


def masks_of(result: Result) -> list[str]:
    """Return the masks that have candidates, or would have."""
    return result.masks


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates but for those that a later run replaced: these were no failure of any run."""
    return rows[(rows["drop_reason"] != Reason.REPLACED.text).to_numpy(bool)]


def fate_counts(rows: pd.DataFrame) -> dict[str, int]:
    """Return how many candidates were kept, and how many dropped for each reason that occurs, see :func:`judged`."""
    rows = judged(rows)
    kept = rows["is_kept"].to_numpy(bool)
    reasons = rows["drop_reason"].astype(str)[~kept].value_counts()
    return {"kept": int(kept.sum()), **{str(r): int(n) for r, n in reasons.items() if n}}


def area_unit(result: Result) -> tuple[float, str]:
    """Return what a pixel counts, and the unit of areas (volumes)."""
    size = result.pixel_size
    if size is None:
        return 1.0, "px"
    return float(np.prod(size)), "µm²" if len(size) == 2 else "µm³"


def bounds(result: Result, mask: str) -> list[float]:
    """Return the bounds of the size filter of a mask in the unit of :func:`area_unit`, where it acted."""
    flow = result.metadata.get("workflow", {})
    rule: dict[str, Any] = flow.get(f"{mask}_size") or {}
    if not flow.get("filter_masks_size"):
        return []
    factor = area_unit(result)[0] if rule.get("unit", "px") == "px" else 1.0
    return [float(rule[end]) * factor for end in ("min_size", "max_size") if rule.get(end) is not None]


def intensities_of(result: Result, channel: str) -> NDArray[np.float64]:
    """Return the mean intensity of each cell in a channel, of a table with dense or sparse ``X``."""
    at = [str(c) for c in result.table.var_names].index(channel)
    column = result.table.X[:, [at]]
    return np.asarray(column.toarray() if issparse(column) else column, np.float64).ravel()


def intensity_quantiles(result: Result, channel: str) -> list[float]:
    """Return percentiles 1, 25, 50, 75 and 99 of the cells' mean intensities, of those that are there; NaN for none."""
    values = intensities_of(result, channel)
    values = values[np.isfinite(values)]
    return np.quantile(values, (0.01, 0.25, 0.5, 0.75, 0.99)).tolist() if len(values) else [float("nan")] * 5
