"""What `predict_instances_big` does with candidates, block by block; run by `stardist.py phase2`, in stardist's Python.

Blocks of 4096 px that overlap by 128: non-maximum suppression, painting, and the copy into the image.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from stardist.geometry import polygons_to_label
from stardist.nms import non_maximum_suppression_sparse

BLOCK, OVERLAP = 4096, 128

if __name__ == "__main__":
    pattern, side, tile = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    total, kept = 0.0, 0
    out = np.zeros((min(side, BLOCK + OVERLAP),) * 2, np.int32)
    for y in range(0, side, BLOCK):
        for x in range(0, side, BLOCK):
            low = np.maximum(np.array([y, x]) - OVERLAP, 0)
            high = np.minimum(np.array([y, x]) + BLOCK, side)
            parts = []
            for ty in range(low[0] // tile, -(-high[0] // tile)):
                for tx in range(low[1] // tile, -(-high[1] // tile)):
                    part = pattern.copy()
                    part["point"] += np.array([ty * tile, tx * tile], np.int32)
                    parts.append(part[np.all((part["point"] >= low) & (part["point"] < high), axis=1)])
            found = np.concatenate(parts)
            start = time.perf_counter()
            points, prob, dist, _ = non_maximum_suppression_sparse(
                found["dist"], found["prob"], found["point"] - low, nms_thresh=0.4
            )
            labels = polygons_to_label(dist, points, prob=prob, shape=tuple(high - low))
            out[: labels.shape[0], : labels.shape[1]] = labels
            total += time.perf_counter() - start
            kept += len(points)
    print(f"{side} px, {kept} objects in blocks: stardist {total:.1f} s")
