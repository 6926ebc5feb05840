"""The shard plan of a run, what happened at its seams, and whether the labels show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._evidence import ALONG_Z, IN_PLANE, SeamProfile, crosses, seam_profiles
from spatialdata_segment._results import Result, find_image, find_result
from spatialdata_segment.errors import MissingError
from spatialdata_segment.pl._charts import _axes
from spatialdata_segment.pl._draw import COLORS
from spatialdata_segment.pl._overlay import overlay

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

AGAIN, DISPUTED = "#ff8c3b", "#ff5252"
_MOST_POINTS = 20_000
_MOST_CUTS = 4


def shards(
    sdata: SpatialData,
    image_key: str | None = None,
    *,
    key: str = "segmentation",
    mask: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how the image was cut, and what happened at the seams.

    Parameters
    ----------
    sdata
        Holds the result.
    image_key
        The image to draw below; None: the one that was segmented, or none.
    key
        Prefix of the result.
    mask
        "nucleus" or "cell"; None: the cells, if there are any, with what happened to any mask.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    The axes, in pixels: cores, the window that the middle one of them reads, cores that ran again with a larger halo,
    those with objects on which neighbours disagreed, and the kept objects that several cores share (at most 20,000).
    Of a volume seen along z; where it is cut along z as well, the legend says before which planes.

    Raises
    ------
    MissingError
        If there is no such result, or the record of its run is not known.
    """
    result = find_result(sdata, key)
    mask, plan, places = plan_of(result, mask)
    ax = _axes(ax)
    height, width = result.shape[-2:]
    image_key = result.image_key(image_key)
    if image_key is not None:
        picture, z = (
            find_image(sdata, image_key, result.shape),
            None if len(result.shape) == 2 else result.shape[0] // 2,
        )
        overlay(picture.levels, z=z, channels=picture.indices(None, result), pixel_size=result.pixel_size, ax=ax)
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", facecolor="#101010", xlabel="x (px)", ylabel="y (px)")
    draw_shards(ax, result, mask, plan, places)
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, fontsize="small", frameon=False)
    return ax


def seams(
    sdata: SpatialData,
    *,
    key: str = "segmentation",
    mask: str | None = None,
    n_windows: int = 64,
    rng: int | np.random.Generator = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often labels differ across the seams, and across the lines beside them.

    Parameters
    ----------
    sdata, key, mask, ax
        As for :func:`shards`.
    n_windows
        Windows of labels (512 x 48 px) along the seams that are read, at most; of a volume as many again along the
        seams between planes.
    rng
        A seed or a generator: which windows.

    Returns
    -------
    The axes: of the pairs of pixels with a label, the share whose labels differ. Seams that cut objects would stand out
    at 0. Of a volume the seams along z are drawn by themselves, by their distance in planes: labels differ more from
    plane to plane than from pixel to pixel. Where there is no seam to look at, because the image was segmented in one
    piece, or in cores of less than 8 px (or planes), the axes say so.

    Raises
    ------
    MissingError
        If there is no such result, or the record of its run is not known.
    """
    from matplotlib.ticker import MaxNLocator

    result = find_result(sdata, key)
    mask, plan, _ = plan_of(result, mask)
    found = seam_profiles(result.labels[mask].arrays[0], plan["chunks"], n_windows, np.random.default_rng(rng))
    ax = _axes(ax)
    if not found:
        is_one = all(len(c) == 1 for c in plan["chunks"])
        return _say(ax, "one shard: no seams" if is_one else "shards too small to tell seams")
    for name, profile in found.items():
        _draw_profile(ax, profile, _PROFILES[name], "" if len(plan["chunks"]) == 2 else f"{name}: ")
    unit = "px" if ALONG_Z not in found else "px; along z planes" if IN_PLANE in found else "planes"
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=f"distance from the seam ({unit})", ylabel="pairs with a label\nthat differ (%)")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize="small", frameon=False)
    return ax


def _say(ax: Axes, text: str) -> Axes:
    """Write why there is nothing to draw."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#888888")
    ax.set(xticks=[], yticks=[])
    return ax


_PROFILES = {IN_PLANE: ("#4c9be8", "."), ALONG_Z: ("#2ca02c", "^")}
"""Colour and marker."""


def _draw_profile(ax: Axes, found: SeamProfile, style: tuple[str, str], name: str) -> None:
    color, marker = style
    beside, at = f"{name}mean beside: {100 * found.beside:.2f} %", f"{name}at the seams: {100 * found.at_seam:.2f} %"
    ax.plot(
        found.offset, 100 * found.share, color=color, marker=marker, markersize=4, linewidth=1,
        label=f"{name}lines beside the seams",
    )  # fmt: skip
    ax.plot([0], [100 * found.at_seam], marker.replace(".", "o"), color="#d62728", label=at)
    ax.axhline(100 * found.beside, color=color if name else "#888888", linestyle=":", label=beside)


def plan_of(result: Result, mask: str | None) -> tuple[str, dict[str, Any], dict[str, dict[str, int]]]:
    """Return the mask, its shard plan and what happened at which shards, from the record of the run.

    Raises
    ------
    MissingError
        If that is not known.
    """
    record = result.record
    if record is None or "plan" not in record:
        raise MissingError(
            f"no record of the run that made {result.key!r}: it lies in the store, and goes with an object in "
            "its attrs. Run segment again to have it"
        )
    plans: dict[str, Any] = record["plan"]
    chosen = mask or (result.main if result.main in plans else next(iter(plans)))
    if chosen not in plans or chosen not in result.labels:
        raise MissingError(f"mask={mask!r}: expected one of {sorted(set(plans) & set(result.labels))}")
    places: dict[str, dict[str, int]] = {}
    for name, of in record.get("places", {}).items():
        for what, at in of.items() if mask in (None, name) else ():
            places.setdefault(what, {}).update(at)
    return chosen, plans[chosen], places


def draw_shards(
    ax: Axes, result: Result, mask: str, plan: dict[str, Any], places: dict[str, dict[str, int]], size: float = 7
) -> None:
    """Draw what :func:`shards` draws above the image; ``size`` of the points, in square points."""
    _draw_cores(ax, plan, places)
    if text := cuts_along_z(plan):
        ax.plot([], [], linestyle="none", label=text)
    rows = result.candidates_of(mask)
    rows = rows[rows["is_kept"].to_numpy(bool)]
    over = rows[crosses(rows, plan["chunks"])]
    step = max(1, -(-len(over) // _MOST_POINTS))
    x, y = (over[f"centroid_{a}"].to_numpy()[::step] for a in "xy")
    ax.scatter(
        x, y, s=size, color=COLORS.get(mask, "white"), linewidths=0, label=f"{len(over):,} objects over a border"
    )


def cuts_along_z(plan: Mapping[str, Any]) -> str:
    """Return where a volume is cut between planes, which no map of the plane shows; empty where it is not."""
    ends = np.cumsum(plan["chunks"][0])[:-1].tolist() if len(plan["chunks"]) == 3 else []
    few = ", ".join(map(str, ends)) if len(ends) <= _MOST_CUTS else f"{ends[0]}, {ends[1]} ... {ends[-1]}"
    return f"{len(ends) + 1} cores along z, cut before planes {few}" if ends else ""


def _draw_cores(ax: Axes, plan: dict[str, Any], places: dict[str, dict[str, int]]) -> None:
    from matplotlib.patches import Rectangle

    ys, xs = (np.concatenate([[0], np.cumsum(c)]) for c in plan["chunks"][-2:])
    width, height = xs[-1], ys[-1]
    for lines, at in ((ax.hlines, ys), (ax.vlines, xs)):
        lines(at[1:-1], 0, width if lines == ax.hlines else height, colors="white", linewidths=0.8, alpha=0.9)
    again = {int(i) for i in places.get("again", {})}
    disputed = {int(i) for what in ("twins", "adopted") for i in places.get(what, {})}
    named: set[str] = set()
    shown: dict[tuple[int, int], bool] = {}  # of cores behind one another: whether any has objects in dispute
    for index in again | disputed:
        row, column = map(int, np.unravel_index(index, plan["grid"])[-2:])
        shown[row, column] = shown.get((row, column), False) or index in disputed
    for (row, column), is_disputed in sorted(shown.items()):
        color = DISPUTED if is_disputed else AGAIN
        text = "cores with objects in dispute" if is_disputed else "cores that looked again, farther"
        number = len(disputed) if is_disputed else len(again - disputed)
        ax.add_patch(
            Rectangle(
                (xs[column], ys[row]),
                xs[column + 1] - xs[column],
                ys[row + 1] - ys[row],
                facecolor=color,
                alpha=0.25,
                edgecolor="none",
                label=None if text in named else f"{number} {text}",
            )
        )
        named.add(text)
    middle = (len(ys) - 1) // 2, (len(xs) - 1) // 2
    halo = plan["halo"][-2:]
    left, top = max(0, xs[middle[1]] - halo[1]), max(0, ys[middle[0]] - halo[0])
    right, bottom = min(width, xs[middle[1] + 1] + halo[1]), min(height, ys[middle[0] + 1] + halo[0])
    window: dict[str, Any] = {"fill": False, "edgecolor": "#00e5ff", "linestyle": "--", "linewidth": 1.2}
    ax.add_patch(Rectangle((left, top), right - left, bottom - top, label="what one core reads", **window))
