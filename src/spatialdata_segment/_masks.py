"""Measure, match, filter and relabel whole label arrays, block by block: dask arrays in, dask arrays out.

Knows arrays only; elements, axes names and coordinate systems are the business of ``_elements.py``. What
runs at once is one task a chunk on dask's current scheduler; the results that come back are sparse, so that
memory is that of the chunks in flight plus O(objects).
"""

# dask has annotations in part: its functions count as untyped
# mypy: disallow-untyped-calls=False, warn-return-any=False
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array as da
import numpy as np
from dask.base import compute
from dask.delayed import delayed

from spatialdata_segment.core.matching import Fate, Resolution, Rules, resolve
from spatialdata_segment.core.measure import (
    Intensities,
    Moments,
    Nearest,
    Pairs,
    combine,
    combine_intensities,
    combine_nearest,
    combine_pairs,
    intensity_sums,
    locate,
    map_labels,
    measure,
    nearest_pixel,
    pair_counts,
)
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from spatialdata_segment.core.objects import Objects

CHUNK = {2: (2048, 2048), 3: (32, 512, 512)}
"""Blocks in which a numpy array is taken."""


class Matched(NamedTuple):
    """Two masks, what was found in them and what became of it.

    ``nuclei`` and ``cells`` are the relabelled dask arrays (not computed), with the chunks of the nuclei;
    ``nucleus_objects`` and ``cell_objects`` every candidate, in the order of the fates in ``resolution``.
    """

    nuclei: da.Array
    cells: da.Array
    resolution: Resolution
    nucleus_objects: Objects
    cell_objects: Objects


class Filtered(NamedTuple):
    """One mask, filtered: the relabelled dask array (not computed), the fates of its objects, the objects."""

    labels: da.Array
    fate: Fate
    objects: Objects


def match_label_arrays(
    nuclei: da.Array | NDArray[np.integer], cells: da.Array | NDArray[np.integer], rules: Rules
) -> Matched:
    """Match two masks that exist already, filter them by size, and number what is kept.

    The anchor of an object is its pixel nearest its centroid. Both masks are read twice, and once more when
    the result is computed.

    Parameters
    ----------
    nuclei, cells
        Labels ``([z], y, x)`` of the same pixels: integers, ids sparse and below 2**63, 0 background.
    rules
        What decides; with ``match_masks=False`` only the size filters act.

    Raises
    ------
    InputError
        If shapes differ, labels are negative or no integers, or a size filter cannot act.
    """
    if nuclei.shape != cells.shape:
        raise InputError(
            f"nuclei of shape {nuclei.shape} and cells of shape {cells.shape}: expected the same pixels; "
            "bring them to one grid first"
        )
    first = _as_dask(nuclei)
    second = _as_dask(cells).rechunk(first.chunks)
    surveys = _over_blocks(_survey_two, first, second)
    nucleus_objects = _anchored(first, [s[0] for s in surveys])
    cell_objects = _anchored(second, [s[1] for s in surveys])
    resolution = resolve(nucleus_objects, cell_objects, combine_pairs(s[2] for s in surveys), rules)
    assert resolution.nucleus is not None
    assert resolution.cell is not None
    return Matched(
        relabel(first, *resolution.nucleus.mapping, resolution.dtype),
        relabel(second, *resolution.cell.mapping, resolution.dtype),
        resolution,
        nucleus_objects,
        cell_objects,
    )


def filter_label_array(labels: da.Array | NDArray[np.integer], rules: Rules, *, kind: str = "cell") -> Filtered:
    """Drop the objects of a mask that its size filter refuses, and number the others 1..N.

    Parameters
    ----------
    labels
        Labels ``([z], y, x)``: integers, ids sparse and below 2**63, 0 background.
    rules
        Of which the size filter of ``kind`` acts.
    kind
        ``"nucleus"`` or ``"cell"``.
    """
    if kind not in ("nucleus", "cell"):
        raise InputError(f"kind={kind!r}: expected 'nucleus' or 'cell'")
    array = _as_dask(labels)
    objects = measure_objects(array)
    if kind == "nucleus":
        resolution = resolve(objects, None, None, rules)
        fate = resolution.nucleus
    else:
        resolution = resolve(None, objects, None, rules)
        fate = resolution.cell
    assert fate is not None
    return Filtered(relabel(array, *fate.mapping, resolution.dtype), fate, objects)


def measure_objects(labels: da.Array | NDArray[np.integer]) -> Objects:
    """Measure every object of a mask; its anchor is its pixel nearest its centroid. Reads the mask twice."""
    array = _as_dask(labels)
    return _anchored(array, _over_blocks(_survey_one, array))


def measure_moments(labels: da.Array | NDArray[np.integer], start: tuple[int, ...] | None = None) -> Moments:
    """Sum what areas, centroids and boxes follow from; ``start``: index of the first pixel. Reads the mask once."""
    array = _as_dask(labels)
    task = delayed(measure, pure=False)
    first = np.zeros(array.ndim, int) if start is None else np.array(start)
    offsets = [tuple((first + o).tolist()) for o in _offsets(array)]
    parts = compute(*(task(b, o) for b, o in zip(array.to_delayed().ravel(), offsets, strict=True)))
    return combine(parts)


def count_pairs(a: da.Array, b: da.Array) -> Pairs:
    """Count the pixels that the objects of two masks of the same pixels and chunks share."""
    task = delayed(pair_counts, pure=False)
    blocks = zip(a.to_delayed().ravel(), b.to_delayed().ravel(), strict=True)
    return combine_pairs(compute(*(task(x, y) for x, y in blocks)))


def measure_intensities(labels: da.Array | NDArray[np.integer], image: da.Array | NDArray[Any]) -> Intensities:
    """Sum the channels of an image ``(c, [z], y, x)`` over the objects of a mask, by the mask's chunks."""
    array = _as_dask(labels)
    if image.shape[1:] != array.shape:
        raise InputError(f"image of shape {image.shape} does not lie on the grid of labels of shape {array.shape}")
    pixels = image if isinstance(image, da.Array) else da.from_array(image, chunks=-1, name=False)
    pixels = pixels.rechunk((pixels.shape[0], *array.chunks))
    return combine_intensities(_over_blocks(_intensities, array, pixels))


def relabel(labels: da.Array, ids: NDArray[np.int64], new: NDArray[np.integer], dtype: np.dtype[Any]) -> da.Array:
    """Return, lazily, the labels with ``ids`` (ascending) replaced by ``new`` and all others by 0."""
    table = delayed((ids, new), traverse=False)
    return da.map_blocks(
        partial(_relabel_block, dtype=dtype),
        labels,
        table=table,
        dtype=dtype,
        meta=np.zeros((0,) * labels.ndim, dtype),
    )


def _as_dask(labels: da.Array | NDArray[np.integer]) -> da.Array:
    if labels.ndim not in (2, 3) or labels.dtype.kind not in "biu":
        raise InputError(
            f"labels of type {labels.dtype} with {labels.ndim} axes: expected integers with axes (y, x) or (z, y, x)"
        )
    if isinstance(labels, da.Array):
        return labels
    return da.from_array(labels, chunks=CHUNK[labels.ndim], name=False)


def _over_blocks(function: Callable[..., Any], *arrays: da.Array) -> list[Any]:
    """Return the results for each block, given the blocks of all arrays and the offset of the first."""
    task = delayed(function, pure=False)
    blocks = [a.to_delayed().ravel() for a in arrays]
    offsets = _offsets(arrays[0])
    return list(compute(*(task(*each, offset) for *each, offset in zip(*blocks, offsets, strict=True))))


def _offsets(array: da.Array) -> list[tuple[int, ...]]:
    starts = [np.cumsum((0, *sizes[:-1])) for sizes in array.chunks]
    grid = np.meshgrid(*starts, indexing="ij")
    return [tuple(map(int, point)) for point in np.stack([g.ravel() for g in grid], axis=1)]


def _anchored(array: da.Array, parts: list[Moments]) -> Objects:
    moments = combine(parts)
    task = delayed(_nearest, pure=False)
    # each block is given the moments of its own objects alone
    whole = [moments.take(locate(moments.ids, part.ids)[0]) for part in parts]
    blocks = zip(array.to_delayed().ravel(), _offsets(array), whole, strict=True)
    found = compute(*(task(block, offset, part) for block, offset, part in blocks if len(part)))
    return moments.objects(combine_nearest(found).pixel if found else moments.sums)


def _survey_one(labels: NDArray[np.integer], offset: tuple[int, ...]) -> Moments:
    return measure(labels, offset)


def _survey_two(
    nuclei: NDArray[np.integer], cells: NDArray[np.integer], offset: tuple[int, ...]
) -> tuple[Moments, Moments, Pairs]:
    return measure(nuclei, offset), measure(cells, offset), pair_counts(nuclei, cells)


def _nearest(labels: NDArray[np.integer], offset: tuple[int, ...], moments: Moments) -> Nearest:
    return nearest_pixel(labels, offset, moments)


def _intensities(labels: NDArray[np.integer], image: NDArray[Any], offset: tuple[int, ...]) -> Intensities:
    del offset
    return intensity_sums(labels, image)


def _relabel_block(
    labels: NDArray[np.integer], table: tuple[NDArray[np.int64], NDArray[np.integer]], dtype: np.dtype[Any]
) -> NDArray[Any]:
    return map_labels(labels, *table, dtype)
