"""Previews beside each other: crops of an image, each segmented by several workflows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._elements import read_image
from spatialdata_segment._preview import previews
from spatialdata_segment._results import find_image, find_result
from spatialdata_segment.config import Workflow, as_workflow
from spatialdata_segment.errors import InputError, is_whole
from spatialdata_segment.pl._marks import DARK, draw_legend, drawn_in, make_room
from spatialdata_segment.pl._numbers import fate_counts, masks_of
from spatialdata_segment.pl._overlay import overlay

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from spatialdata_segment._results import Picture
    from spatialdata_segment.pl._input import Channels

_INCHES = 4.0
_SAMPLED = 1024
"""Pixels of the longer side of the image, thinned, by which places are chosen."""


def preview(
    sdata: SpatialData,
    image_key: str,
    workflows: Any = "dapi",
    *,
    centers: Sequence[Sequence[float]] | int = 2,
    size: int = 512,
    scale: str = "scale0",
    show_channels: Channels = None,
    dropped: bool = True,
    n_jobs: int | Mapping[str, int] | None = None,
    progress: bool = False,
    axes: Any = None,
    **options: Any,
) -> NDArray[np.object_]:
    """Segment crops in seconds by one or several workflows, and draw them beside each other, with counts.

    The statistics of the image are estimated once a workflow; see `spatialdata_segment.preview`, which gives the
    segmented crop itself.

    Parameters
    ----------
    sdata, image_key, scale, n_jobs, progress
        As for `segment`; ``sdata`` is not changed.
    workflows
        A mapping from names to what `segment` takes as ``workflow``, ``{"usual": "dapi", "strict": Workflow(...)}``; or
        one workflow, not as a mapping. A bare method makes cells, as in `segment`; beside workflows that all make
        nuclei alone its objects are taken for nuclei, if it reads the same channels for them.
    centers
        ``(x, y)`` of the crops' centres, in px of the scale; or how many: the first is where the first channel is
        brightest on average, the others are darker, down to the lower quartile.
    size
        Side of a crop, in px.
    show_channels
        As ``channels`` of :func:`overlay`.
    dropped
        Draw the boxes of the candidates that were dropped, as dots where they would be too small.
    axes
        A row a crop, a column a workflow; by default a new figure, with a legend below.
    **options
        Of `segment`, see `plan`; no region.

    Returns
    -------
    ``(crops, workflows)`` the axes, in px of each crop.

    Raises
    ------
    MissingError, InputError
        As `preview`; also for axes of another number.

    Examples
    --------
    >>> pl.preview(sdata, "image", {"usual": "dapi", "smoother": ThresholdNuclei(sigma=3)}, centers=2)
    """
    named = alike(workflows if isinstance(workflows, Mapping) else {"": workflows})
    if not named:
        raise InputError("workflows is empty: expected a mapping from names to workflows, or one workflow")
    places = _places(sdata, image_key, scale, centers, size)
    drawn = _new_axes(len(places), len(named)) if axes is None else np.asarray(axes, object)
    if drawn.size != len(places) * len(named):
        raise InputError(f"axes: {drawn.size} given, expected {len(places)} x {len(named)}")
    drawn = drawn.reshape(len(places), len(named))
    key = options.get("key_added", "segmentation")
    how: dict[str, Any] = {"size": size, "scale": scale, "n_jobs": n_jobs, "progress": progress, "options": options}
    for column, (name, flow) in enumerate(named.items()):
        for ax, crop, at in zip(drawn[:, column], previews(sdata, image_key, flow, places, **how), places, strict=True):
            shape = find_result(crop, key).shape
            z = None if len(shape) == 2 else shape[0] // 2
            overlay(crop, image_key, key=key, z=z, channels=show_channels, dropped=dropped, legend=False, ax=ax)
            place = f"x {at[0]:.0f}, y {at[1]:.0f}"
            ax.set_title(f"{name or place}\n{_counts(crop, key)}", fontsize="medium", parse_math=False)
            ax.set(xlabel="", ylabel=place if column == 0 and name else "", xticks=[], yticks=[])
    if axes is None:
        _name_all(drawn)
    return drawn


def alike(workflows: Mapping[str, Any]) -> dict[str, Workflow]:
    """Return workflows by name, bare methods as nuclei where all others make these alone.

    A method that reads other channels for nuclei than for cells stays what `segment` makes of it.
    """
    flows = {name: as_workflow(given) for name, given in workflows.items()}
    bare = [name for name, given in workflows.items() if not isinstance(given, str | Workflow | Mapping)]
    masks = {mask for name, flow in flows.items() if name not in bare for mask in flow.methods()}
    if masks == {"nucleus"}:
        methods = {name: flows[name].methods()["cell"] for name in bare}
        flows |= {n: Workflow(nucleus=m) for n, m in methods.items() if m.roles("nucleus") == m.roles("cell")}
    return flows


def places_of(picture: Picture, n: int, size: int) -> list[tuple[float, float]]:
    """Return centres ``(x, y)`` of ``n`` windows that tile the image, from the brightest to the lower quartile."""
    array = picture.levels.arrays[-1][0]
    array = array.max(axis=0) if array.ndim == 3 else array
    factor = [a / b for a, b in zip(picture.shape[-2:], array.shape, strict=True)]
    step = max(1, max(array.shape) // _SAMPLED)
    seen = np.asarray(array[::step, ::step], np.float64)
    count = [max(1, n_px // size) for n_px in picture.shape[-2:]]
    rows, columns = (np.array_split(np.arange(m), k) for m, k in zip(seen.shape, count, strict=True))
    parts = [(r, c) for r in rows for c in columns if len(r) and len(c)]
    order = np.argsort([-seen[np.ix_(r, c)].mean() for r, c in parts], kind="stable")
    chosen = np.unique(np.round(np.linspace(0, 0.75 * (len(order) - 1), min(n, len(order)))).astype(int))
    middles = [[(int(p[0]) + int(p[-1]) + 1) / 2 * step for p in parts[order[i]]] for i in chosen]
    return [(x * factor[1], y * factor[0]) for y, x in middles]


def _places(
    sdata: SpatialData, image_key: str, scale: str, centers: Sequence[Sequence[float]] | int, size: int
) -> list[tuple[float, float]]:
    """Return the centres given, or as many as are asked for."""
    if not is_whole(centers):
        try:
            given = np.asarray(centers, np.float64)
        except (TypeError, ValueError):
            given = np.empty(0)
        if given.ndim != 2 or given.shape[1] != 2 or not len(given) or not np.isfinite(given).all():
            raise InputError(f"centers={centers!r}: expected how many, or a list of (x, y) in px")
        return [(float(x), float(y)) for x, y in given]
    if centers < 1:
        raise InputError(f"centers={centers}: expected at least 1, or a list of (x, y) in px")
    shape = read_image(sdata, image_key, scale).data.shape[1:]
    return places_of(find_image(sdata, image_key, shape), centers, size)


def _counts(crop: SpatialData, key: str) -> str:
    """Return how many were kept and dropped, in words."""
    result = find_result(crop, key)
    plural = {"nucleus": "nuclei", "cell": "cells"}
    counts = {m: fate_counts(result.candidates_of(m)) for m in masks_of(result)}
    lost = sum(sum(of.values()) - of["kept"] for of in counts.values())
    told = ", ".join(f"{of['kept']:,} {plural[m]}" for m, of in counts.items())
    return f"{told}; {lost:,} dropped"


def _name_all(drawn: NDArray[np.object_]) -> None:
    """Name what is drawn in any of the axes in one legend below them; the numbers of each stand in its title."""
    names: dict[str, Artist] = {}
    for ax in drawn.ravel():
        names |= {name.partition(" (")[0]: artist for name, artist in drawn_in(ax)}
    figure = drawn[0, 0].figure
    columns = 2 * drawn.shape[1]
    make_room(figure, len(names), columns)
    draw_legend(figure, [*names.items()], loc="outside lower center", ncols=columns, **DARK)


def _new_axes(rows: int, columns: int) -> NDArray[np.object_]:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(_INCHES * columns, (_INCHES + 0.5) * rows), layout="constrained")
    return np.asarray(figure.subplots(rows, columns, squeeze=False), object)
