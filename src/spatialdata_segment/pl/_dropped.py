"""Candidates that were dropped, as boxes coloured by the reason: their pixels are in no labels element."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.pl._numbers import judged

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

REASON_COLORS = {
    "too_small": "#4fc3f7",
    "too_large": "#ff8c3b",
    "unmatched": "#7cff4f",
    "multinucleated": "#b388ff",
    "partner_dropped": "#c9c9c9",
    "outside_region": "#8d9db0",
    "covered": "#d7a86e",
    "replaced": "#f48fb1",
    "low_contact": "#1de9b6",
    "flow_error": "#ff5252",
}
"""Reason of the candidates table -> colour."""
_LEAST = 4.0
"""Points (1/72 inch) below which the side of a box is drawn as a dot."""
_DOT = 16.0
"""Square points of a dot: as wide as the smallest box."""


def among(candidates: pd.DataFrame, extent: tuple[float, float, float, float], z: int | None) -> pd.DataFrame:
    """Return the dropped candidates whose boxes share something with (left, right, top, bottom), of the plane ``z``.

    What a later run replaced is left out.
    """
    left, right, top, bottom = extent
    rows = judged(candidates[~candidates["is_kept"].to_numpy(bool)])
    met = (rows["bbox_x_min"] < right) & (rows["bbox_x_max"] > left)
    met &= (rows["bbox_y_min"] < bottom) & (rows["bbox_y_max"] > top)
    if z is not None and "bbox_z_min" in rows:
        met &= (rows["bbox_z_min"] <= z) & (rows["bbox_z_max"] > z)
    return rows[met]


def reason_color(reason: str) -> str:
    """Return the colour of a reason."""
    return REASON_COLORS.get(reason, "#ffffff")


def draw_dropped(ax: Axes, rows: pd.DataFrame, linewidth: float = 0.8, points: float | None = None) -> None:
    """Draw the boxes of candidates, a collection a reason; dots where the boxes would be too small.

    ``points``: dots in any case, of this area in square points.
    """
    from matplotlib.collections import LineCollection

    (left, right), width = sorted(ax.get_xlim()), ax.get_window_extent().width * 72 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    reasons = rows["drop_reason"].astype(str).to_numpy()
    for reason in _ordered(reasons):
        of = rows[reasons == reason]
        name = f"{reason.replace('_', ' ')} ({len(of):,})"
        corners = boxes(of)
        side = float(np.median(corners[:, 2, :] - corners[:, 0, :])) if len(corners) else 0.0
        if points is not None or side * width / max(right - left, 1) < _LEAST:
            middle = corners[:, [0, 2]].mean(axis=1)
            ax.scatter(
                middle[:, 0],
                middle[:, 1],
                s=points or _DOT,
                color=reason_color(reason),
                label=name,
                edgecolors="black",
                linewidths=0.5,
                zorder=3,
            )
            continue
        ax.add_collection(
            LineCollection(
                list(corners),
                colors=reason_color(reason),
                linewidths=1.4 * linewidth,
                label=name,
                linestyle=(0, (3, 1)),
            ),
            autolim=False,
        )


def boxes(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the boxes of candidates as closed lines: ``(n, 5, 2)`` points (x, y), one px around them."""
    low = rows[["bbox_x_min", "bbox_y_min"]].to_numpy(np.float64) - 1
    high = rows[["bbox_x_max", "bbox_y_max"]].to_numpy(np.float64) + 1
    other = np.column_stack([high[:, 0], low[:, 1]]), np.column_stack([low[:, 0], high[:, 1]])
    return np.stack([low, other[0], high, other[1], low], axis=1)


def _ordered(reasons: NDArray[np.object_]) -> list[str]:
    """Return the reasons that occur, in the order of their colours."""
    there, known = set(reasons.tolist()), list(REASON_COLORS)
    return sorted(there, key=lambda r: (known.index(r) if r in known else len(known), r))
