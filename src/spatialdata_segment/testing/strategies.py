"""Hypothesis strategies: images, labels, shards and halos, small and awkward.

They draw few numbers each, so that a failing case shrinks; the pixels come from :class:`.Tissue` or from a
seed. Needs ``hypothesis`` (``pip install "spatialdata-segment[test]"``), imported when a strategy is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.testing.tissue import Tissue

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray

_KINDS = "as it is", "few levels", "saturated", "dim", "nuclei alone", "flat", "black"


def image_shapes(ndim: int = 2, *, min_side: int = 1, max_side: int = 96) -> SearchStrategy[tuple[int, ...]]:
    """Draw ``([z], y, x)`` shapes, odd ones and lines of pixels included; a third of the side along z."""
    from hypothesis import strategies as st

    side = st.integers(min_side, max_side)
    deep = st.integers(min_side, max(min_side, max_side // 3))
    return st.tuples(*([deep] if ndim == 3 else []), side, side)


def shard_shapes(ndim: int = 2, *, min_side: int = 5, max_side: int = 64) -> SearchStrategy[tuple[int, ...]]:
    """Draw the shapes of cores: some smaller than a cell, odd, unequal, or larger than the image."""
    from hypothesis import strategies as st

    side = st.one_of(st.integers(min_side, max_side), st.sampled_from([7, 13, 16, 31, 32, 1024]))
    return st.tuples(*[side] * ndim)


def halos(ndim: int = 2, *, min_px: int = 0, max_px: int = 40) -> SearchStrategy[tuple[int, ...]]:
    """Draw the overlap (px) on each side, one number per axis."""
    from hypothesis import strategies as st

    return st.tuples(*[st.integers(min_px, max_px)] * ndim)


def tissues(ndim: int = 2, *, min_side: int = 16, max_side: int = 96) -> SearchStrategy[Tissue]:
    """Draw small tissues: crowded and sparse, clean and noisy, with cells of 8 to 24 px."""
    from hypothesis import strategies as st

    return st.builds(
        Tissue,
        shape=image_shapes(ndim, min_side=min_side, max_side=max_side),
        seed=st.integers(0, 2**16),
        cell_diameter=st.sampled_from([12.0, 8.0, 16.0, 24.0]),
        density=st.sampled_from([0.9, 1.0, 0.5, 0.1, 0.0]),
        touching=st.sampled_from([1.0, 0.8, 0.0]),
        multinucleated=st.sampled_from([0.0, 0.1, 1.0]),
        anucleate=st.sampled_from([0.0, 0.2]),
        debris=st.sampled_from([0.0, 0.1]),
        noise=st.sampled_from([0.0, 1.0]),
        anisotropy=st.sampled_from([1.0, 2.0]) if ndim == 3 else st.just(1.0),
    )


def tissue_images(ndim: int = 2, *, min_side: int = 16, max_side: int = 96) -> SearchStrategy[NDArray[np.uint16]]:
    """Draw ``(c, [z], y, x)`` uint16 images of tissues, ties, saturated, flat and black ones included."""
    from hypothesis import strategies as st

    return st.builds(_expose, tissues(ndim, min_side=min_side, max_side=max_side), st.sampled_from(_KINDS))


def label_images(
    ndim: int = 2, *, min_side: int = 1, max_side: int = 64, max_id: int = 2**40
) -> SearchStrategy[NDArray[np.uint64]]:
    """Draw ``([z], y, x)`` uint64 labels with scattered ids: cells that touch, sheets of boxes, or noise.

    Noise gives objects in many pieces, which no segmentation makes but everything must survive.
    """
    from hypothesis import strategies as st

    return st.builds(
        _labels,
        image_shapes(ndim, min_side=min_side, max_side=max_side),
        st.integers(0, 2**16),
        st.sampled_from(["cells", "boxes", "noise", "empty"]),
        st.sampled_from([max_id, 255, 65535]),
    )


def _expose(tissue: Tissue, kind: str) -> NDArray[np.uint16]:
    """Return the tissue's image as a good or a bad camera shows it."""
    image = tissue.block(Box.whole(tissue.shape)).image
    if kind == "few levels":
        return (image // 1024 * 1024).astype(np.uint16)
    if kind == "saturated":
        return np.where(image > np.median(image), np.uint16(65535), image).astype(np.uint16)
    if kind == "dim":
        return image // np.uint16(128)
    if kind == "nuclei alone":
        image[1:] = 0
    if kind in ("flat", "black"):
        image[:] = 1000 if kind == "flat" else 0
    return image


def _labels(shape: tuple[int, ...], seed: int, kind: str, max_id: int) -> NDArray[np.uint64]:
    """Return labels whose ids lie anywhere up to ``max_id``."""
    rng = np.random.default_rng(seed)
    if kind == "cells":
        parts: NDArray[Any] = Tissue(shape, seed=seed, cell_diameter=10).block(Box.whole(shape)).cells
    elif kind == "boxes":
        side = int(rng.integers(2, 12))
        parts = np.zeros(shape, np.int64)
        for axis, n in enumerate(shape):
            step = np.arange(n).reshape([-1 if k == axis else 1 for k in range(len(shape))]) // side
            parts = parts * (n // side + 1) + step
        parts += 1
    elif kind == "noise":
        parts = rng.integers(0, 12, shape)
    else:
        parts = np.zeros(shape, np.int64)
    present, index = np.unique(parts, return_inverse=True)
    ids = rng.choice(max(max_id, 4 * len(present)), len(present), replace=False).astype(np.uint64) + np.uint64(1)
    ids[present == 0] = 0
    if kind == "boxes":
        ids[rng.random(len(ids)) < 0.3] = 0
    return ids[index].reshape(shape)
