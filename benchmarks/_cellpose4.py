"""What cellpose 4 does, in an interpreter that has it: `cellpose.py` runs this as a process of its own.

    python -P benchmarks/_cellpose4.py masks IN.npz OUT.npz '{"threads": 2, "niter": 200, ...}'

``-P`` keeps this folder, which holds a ``cellpose.py``, off the path. ``maps`` (3, y, x) -> ``labels`` (y, x), or
(4, z, y, x) -> (z, y, x), by `dynamics.compute_masks` on the CPU, ``seconds`` of it, ``version``. ``truly``: positions
are sampled where they are, which Cellpose does not do (``align_corners``).
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from cellpose import dynamics

WARM = {2: 256, 3: 32}
"""px: side of the corner on which it runs beforehand, by axes."""


def main() -> None:
    """Decode maps."""
    task, source, target, text = sys.argv[1:]
    if task != "masks":
        raise ValueError(f"task {task!r}, expected 'masks'")
    settings = json.loads(text)
    if settings.pop("truly", False):
        code = inspect.getsource(dynamics).replace("align_corners=False", "align_corners=True")
        exec(compile(code, str(dynamics.__file__), "exec"), dynamics.__dict__)
    logging.disable(logging.WARNING)
    torch.set_num_threads(settings.pop("threads"))
    with np.load(source) as given:
        maps = given["maps"]
    axes = maps.ndim - 1
    corner = np.ascontiguousarray(maps[(slice(None), *(slice(WARM[axes]),) * axes)])
    dynamics.compute_masks(corner[:-1], corner[-1], **settings)
    start = time.perf_counter()
    labels = dynamics.compute_masks(maps[:-1], maps[-1], **settings)
    seconds = time.perf_counter() - start
    np.savez(target, labels=labels.astype(np.int32), seconds=seconds, version=version("cellpose"))


if __name__ == "__main__":
    main()
