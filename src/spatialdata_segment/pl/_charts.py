"""Charts of a result: sizes, intensities, what became of the candidates, matching, density. They read tables alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._results import find_result
from spatialdata_segment._table import KINDS
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.pl._draw import COLORS
from spatialdata_segment.pl._dropped import reason_color
from spatialdata_segment.pl._marks import literal
from spatialdata_segment.pl._numbers import (
    area_unit,
    bounds,
    density_map,
    fate_counts,
    intensity_quantiles,
    judged,
    masks_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_PLURAL = {"nucleus": "nuclei", "cell": "cells"}
_OF_MATCHING = [r.text for r in (Reason.UNMATCHED, Reason.MULTINUCLEATED, Reason.PARTNER_DROPPED)]
"""Reasons for which the matching drops a nucleus."""


def sizes(sdata: SpatialData, *, key: str = "segmentation", bins: int = 50, ax: Axes | None = None) -> Axes:
    """Draw how the areas (volumes) of nuclei and cells are distributed, of those kept and those dropped.

    Parameters
    ----------
    sdata
        Holds the result.
    key
        Its prefix.
    bins
        Of the histograms, equal on a logarithmic axis.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    The axes: px, or µm² (µm³) where the pixel size is known. What was dropped is
    dashed; bounds of size filters that acted are dotted lines. What a later run replaced is left out.

    Raises
    ------
    MissingError
        If there is no such result, or it has no tables.
    """
    result = find_result(sdata, key)
    factor, unit = area_unit(result)
    ax = _axes(ax)
    masks = masks_of(result)
    rows = {m: judged(result.candidates_of(m)) for m in masks}
    areas = {m: rows[m]["area"].to_numpy(np.float64) * factor for m in masks}
    positive = [a[a > 0] for a in areas.values() if (a > 0).any()]
    low, high = (min(a.min() for a in positive), max(a.max() for a in positive)) if positive else (1.0, 10.0)
    edges = np.geomspace(low * 0.95, high * 1.05, bins + 1).tolist()
    for mask in masks:
        kept = rows[mask]["is_kept"].to_numpy(bool)
        color = COLORS[mask]
        ax.hist(areas[mask][kept], edges, color=color, alpha=0.55, label=f"{_PLURAL[mask]} kept ({kept.sum():,})")
        if (~kept).any():
            label = f"{_PLURAL[mask]} dropped ({(~kept).sum():,})"
            dashed: dict[str, Any] = {"linestyle": "--", "linewidth": 1.2, "histtype": "step"}
            ax.hist(areas[mask][~kept], edges, color=_dark(color), label=label, **dashed)
        for bound in bounds(result, mask):
            ax.axvline(bound, color=_dark(color), linestyle=":", linewidth=1.2)
    ax.set(xscale="log", xlabel=f"{'volume' if len(result.shape) == 3 else 'area'} ({unit})", ylabel="objects")
    ax.legend(fontsize="small", frameon=False)
    return ax


def intensities(
    sdata: SpatialData,
    *,
    key: str = "segmentation",
    channels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how the mean intensities of the cells are distributed, a box a channel.

    Parameters
    ----------
    sdata, key, ax
        As for :func:`sizes`.
    channels
        Names; None: all that were measured.

    Returns
    -------
    The axes. Boxes reach from the 25th to the 75th percentile, whiskers from the 1st to the 99th.

    Raises
    ------
    MissingError
        If there is no such result or channel, or no channel was measured.
    """
    result = find_result(sdata, key)
    measured = [str(c) for c in result.table.var_names]
    wanted = measured if channels is None else list(channels)
    if missing := [c for c in wanted if c not in measured]:
        raise MissingError(f"channel {missing[0]!r} is not in {key}_table: expected some of {measured}")
    if not wanted:
        raise MissingError(f"{key}_table has no intensities: run segment with measure_channels=None")
    ax = _axes(ax)
    rows = [intensity_quantiles(result, c) for c in wanted]
    ends = ("whislo", "q1", "med", "q3", "whishi")
    boxes = [
        {"label": literal(c), "fliers": [], **dict(zip(ends, row, strict=True))}
        for c, row in zip(wanted, rows, strict=True)
    ]
    ax.bxp(
        boxes[::-1],
        orientation="horizontal",
        showfliers=False,
        patch_artist=True,
        widths=0.6,
        boxprops={"facecolor": "#4c9be8", "alpha": 0.6},
        medianprops={"color": "#d62728", "linewidth": 1.5},
    )
    values = np.array(rows)
    if np.isfinite(values).all() and values.min() > 0 and values.max() > 50 * values.min():
        ax.set_xscale("log")
    ax.set(xlabel=f"mean intensity of a {result.main} (n = {result.table.n_obs:,})")
    return ax


def fates(sdata: SpatialData, *, key: str = "segmentation", ax: Axes | None = None) -> Axes:
    """Draw what became of the candidates: a bar a mask, of those kept and those dropped by reason.

    Parameters
    ----------
    sdata, key, ax
        As for :func:`sizes`.

    Returns
    -------
    The axes; the legend gives the numbers. What a later run replaced is left out.

    Raises
    ------
    MissingError
        If there is no such result, or it has no tables.
    """
    result = find_result(sdata, key)
    ax = _axes(ax)
    masks = masks_of(result)
    counts = {m: fate_counts(result.candidates_of(m)) for m in masks}
    for reason in dict.fromkeys(r for of in counts.values() for r in of):
        numbers = [counts[m].get(reason, 0) for m in masks]
        totals = [max(sum(counts[m].values()), 1) for m in masks]
        before = [sum(n for r, n in counts[m].items() if _before(counts[m], r, reason)) for m in masks]
        ax.barh(
            [_PLURAL[m] for m in masks],
            [100 * n / t for n, t in zip(numbers, totals, strict=True)],
            left=[100 * b / t for b, t in zip(before, totals, strict=True)],
            color="#59a14f" if reason == "kept" else reason_color(reason),
            edgecolor="#333333",
            linewidth=0.4,
            label=f"{reason.replace('_', ' ')}: {' / '.join(f'{n:,}' for n in numbers)}",
        )
    ax.invert_yaxis()
    ax.set(xlabel="candidates (%)", xlim=(0, 100))
    title = " / ".join(_PLURAL[m] for m in masks)
    ax.legend(
        fontsize="small", frameon=False, title=title, title_fontsize="small", loc="upper left", bbox_to_anchor=(1, 1)
    )
    return ax


def matching(sdata: SpatialData, *, key: str = "segmentation", ax: Axes | None = None) -> Axes:
    """Draw which share of each nucleus lies in its cell, and the threshold: of nuclei kept and dropped, side by side.

    Parameters
    ----------
    sdata, key, ax
        As for :func:`sizes`.

    Returns
    -------
    The axes; counts on a logarithmic axis. Dropped are those that the matching dropped: nuclei that a size filter,
    the region or a method had refused before are left out, and what a later run replaced.

    Raises
    ------
    MissingError
        If there is no such result, or it has no tables.
    InputError
        If the result has one mask.
    """
    result = find_result(sdata, key)
    if set(masks_of(result)) != set(KINDS):
        raise InputError(f"{key!r} has {' and '.join(masks_of(result))} alone: matching needs both nuclei and cells")
    ax = _axes(ax)
    nuclei = result.candidates_of("nucleus")
    share, kept = nuclei["overlap_fraction"].to_numpy(np.float64), nuclei["is_kept"].to_numpy(bool)
    lost = nuclei["drop_reason"].isin(_OF_MATCHING).to_numpy(bool)
    edges = np.linspace(0, 1, 41).tolist()
    parts = [("kept", kept, "#59a14f"), *([("dropped", lost, "#e15759")] if lost.any() else [])]
    names = [f"{name} ({of.sum():,})" for name, of, _ in parts]
    ax.hist([share[of] for _, of, _ in parts], edges, color=[color for *_, color in parts], label=names)
    threshold = result.metadata.get("workflow", {}).get("filtering_threshold_mask_matching")
    if threshold is not None and kept.any():
        ax.axvline(threshold, color="#888888", linestyle=":", linewidth=1.5, label=f"threshold {threshold:g}")
    ax.set(yscale="log", xlabel="share of a nucleus in its cell", ylabel="nuclei", xlim=(0, 1))
    ax.set_ylim(bottom=0.7)
    ax.legend(fontsize="small", frameon=False, loc="upper left")
    return ax


def density(sdata: SpatialData, *, key: str = "segmentation", ax: Axes | None = None) -> Axes:
    """Draw how many cells there are where: a map of the kept cells, of any number of them.

    Parameters
    ----------
    sdata, key, ax
        As for :func:`sizes`.

    Returns
    -------
    The axes, in pixels; objects a mm² where the pixel size is known, else a million pixels. Of a volume seen along z.

    Raises
    ------
    MissingError
        If there is no such result, or it has no tables.
    """
    result = find_result(sdata, key)
    ax = _axes(ax)
    counts, (ys, xs) = density_map(result)
    height, width = result.shape[-2:]
    size = result.pixel_size
    area = np.diff(ys)[:, None] * np.diff(xs)[None]
    unit = area / 1e6 if size is None else area * size[-2] * size[-1] / 1e6
    shown = ax.pcolormesh(xs, ys, counts / unit, cmap="viridis", rasterized=True, vmin=0)
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xlabel="x (px)", ylabel="y (px)")
    label = f"{_PLURAL[result.main]} / {'Mpx' if size is None else 'mm²'}"
    ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)
    return ax


def _before(counts: dict[str, int], one: str, other: str) -> bool:
    """Tell whether a part of a bar lies before another one."""
    order = list(counts)
    if other not in order:
        return False
    return order.index(one) < order.index(other)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6, 3.6), layout="constrained")[1]


def _dark(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    r, g, b = to_rgb(color)
    return 0.65 * r, 0.65 * g, 0.65 * b
