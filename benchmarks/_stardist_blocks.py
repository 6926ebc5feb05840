"""`predict_instances_big` of stardist from candidates that are there; run by `stardist.py phase2` in its Python.

The method is stardist's own: its blocks (4096 px, which overlap by 128 and see 128 more), in each its suppression, its
painting and its filter of objects. Only the network is replaced, by the candidates of the block, and not counted.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
from stardist.models import Config2D, StarDist2D

BLOCK, OVERLAP, CONTEXT = 4096, 128, 128
EDGE = 2
"""Cells of the grid at the border of a block in which stardist takes no candidates."""


class FromCandidates(StarDist2D):
    """A model whose network says what a pattern, repeated tile by tile, says."""

    def of(self, image: np.ndarray, pattern: np.ndarray, tile: int) -> FromCandidates:
        """Take the candidates of that image; its memory tells which block is read, and is never touched."""
        self.image, self.pattern, self.tile = image, pattern, tile
        self.predicting = self.suppressing = 0.0
        return self

    def _predict_sparse_generator(self, img: np.ndarray, **_: object):
        start = time.perf_counter()
        offset = img.__array_interface__["data"][0] - self.image.__array_interface__["data"][0]
        low = np.array(divmod(offset, self.image.strides[0]))
        high = low + img.shape
        parts = []
        for ty in range(low[0] // self.tile, -(-high[0] // self.tile)):
            for tx in range(low[1] // self.tile, -(-high[1] // self.tile)):
                part = self.pattern.copy()
                part["point"] += np.array([ty * self.tile, tx * self.tile], np.int32) - low.astype(np.int32)
                edge = EDGE * np.array(self.config.grid)
                inside = (part["point"] >= edge) & (part["point"] < img.shape - edge)
                parts.append(part[np.all(inside, axis=1)])
        found = np.concatenate(parts)
        self.predicting += time.perf_counter() - start
        yield found["prob"].copy(), found["dist"].copy(), found["point"].copy()

    def _instances_from_prediction(self, *args: object, **kwargs: object):
        start = time.perf_counter()
        found = super()._instances_from_prediction(*args, **kwargs)
        self.suppressing += time.perf_counter() - start
        return found


if __name__ == "__main__":
    pattern, side, tile = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    model = FromCandidates(Config2D(n_rays=pattern["dist"].shape[1], grid=(2, 2)), name=None, basedir=None)
    model.thresholds = {"prob": 0.5, "nms": 0.4}
    model._tile_overlap = ((CONTEXT, CONTEXT),) * 2
    image = np.zeros((side, side), np.uint8)
    model.of(image, pattern, tile)
    start, work = time.perf_counter(), time.process_time()
    labels, found = model.predict_instances_big(
        image, "YX", block_size=min(BLOCK, side), min_overlap=OVERLAP, context=CONTEXT, show_progress=False
    )
    total, work = time.perf_counter() - start - model.predicting, time.process_time() - work - model.predicting
    print(
        f"{side} px, {len(found['prob'])} objects: stardist {model.suppressing:.1f} s of suppression and painting, "
        f"{total:.1f} s in all ({work:.1f} s of the cores)"
    )
