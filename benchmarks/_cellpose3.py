"""What cellpose 3 does, in an interpreter that has it: `cellpose.py` runs this as a process of its own.

    python -P benchmarks/_cellpose3.py TASK IN.npz OUT.npz '{"threads": 2, ...}'

``-P`` keeps this folder, which holds a ``cellpose.py``, off the path. The tasks, what they read and what they write:

flows    ``labels`` (y, x) int32 -> ``flows`` (2, y, x), unit vectors, by its CPU code
maps     images ``0`` ... (y, x), settings ``model``, ``rescale`` (one an image), ``resample`` -> ``0`` ...
         (3, y, x) float32: flows and cell probability as `CellposeModel.eval` has them; ``limits`` (n, 2): the
         percentiles that became 0 and 1, by its numpy
forward  ``tiles`` (n, 2, y, x) float32, already normalised -> ``maps`` (n, 3, y, x), ``styles`` (n, s)
masks    ``maps`` (3, y, x) or (4, z, y, x), settings ``niter``, ``flow_threshold``, ``min_size``, ``do_3D``, ``truly``
         -> ``labels`` by `dynamics.compute_masks` on the CPU
eval     images ``0`` ..., settings ``model``, ``diameters`` -> labels ``0`` ... by `CellposeModel.eval`
stitch   ``volume`` (z, y, x), settings ``model``, ``diameter``, ``threshold`` -> ``labels``, by `CellposeModel.eval`

All of them write ``seconds`` too, of the work alone, and ``version``.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from cellpose import core, dynamics, models, resnet_torch

Arrays = dict[str, Any]
WARM = {2: 256, 3: 32}
"""px: side of the corner on which a task that is timed runs beforehand, by axes."""


def load(path: str) -> models.CellposeModel:
    """Return a `CellposeModel` around the CPnet of a file, whatever its number of channels.

    `CellposeModel` builds networks of 32 to 256 channels alone, and `run_net` assumes 256 for the style.
    """
    state = torch.load(path, weights_only=True, map_location="cpu")
    first = "downsample.down.res_down_{}.conv.conv_0.2.weight"
    nbase = [state[first.format(0)].shape[1]]
    while (name := first.format(len(nbase) - 1)) in state:
        nbase.append(state[name].shape[0])
    model = models.CellposeModel(gpu=False)
    net = resnet_torch.CPnet(nbase, 3, sz=3, mkldnn=model.mkldnn, max_pool=True, diam_mean=float(state["diam_mean"]))
    net.load_state_dict(state)
    model.net = net.float().eval()
    model.diam_mean, model.diam_labels = (float(state[f"diam_{name}"]) for name in ("mean", "labels"))
    code = inspect.getsource(core.run_net).replace('256), "float32")', f'{nbase[-1]}), "float32")')
    exec(compile(code, core.__file__, "exec"), core.__dict__)
    models.run_net = core.run_net
    return model


def flows(given: Arrays) -> Arrays:
    """Turn labels into flows."""
    return {"flows": dynamics.masks_to_flows_cpu(given["labels"])[0]}


def maps(given: Arrays, model: str, rescale: list[float], resample: bool) -> Arrays:
    """Run the network on whole images."""
    cellpose, found = load(model), {}
    for k, factor in enumerate(rescale):
        _, (_, flow, probability), _ = cellpose.eval(
            given[str(k)], channels=[0, 0], rescale=factor, resample=resample, compute_masks=False
        )
        found[str(k)] = np.concatenate([flow, probability[None]])
    images = [given[str(k)].astype(np.float32) for k in range(len(rescale))]
    limits = [[np.percentile(image, percent) for percent in (1.0, 99.0)] for image in images]  # as it calls it
    return {**found, "limits": np.array(limits, np.float64)}


def forward(given: Arrays, model: str) -> Arrays:
    """Run the network on tiles."""
    out, styles = core._forward(load(model).net, given["tiles"])
    return {"maps": out[:, -3:], "styles": styles}


def masks(
    given: Arrays, niter: int, flow_threshold: float, min_size: int, do_3D: bool = False, truly: bool = False
) -> Arrays:
    """Decode; ``truly``: sampled where positions are, which Cellpose does not do in volumes (``align_corners``)."""
    if truly:
        code = inspect.getsource(dynamics).replace("align_corners=False", "align_corners=True")
        exec(compile(code, str(dynamics.__file__), "exec"), dynamics.__dict__)

    def run(part: np.ndarray) -> np.ndarray:
        found: np.ndarray = dynamics.compute_masks(
            part[:-1], part[-1], niter=niter, flow_threshold=flow_threshold, min_size=min_size, do_3D=do_3D
        )
        return found

    maps, axes = given["maps"], given["maps"].ndim - 1
    run(np.ascontiguousarray(maps[(slice(None), *(slice(WARM[axes]),) * axes)]))
    start = time.perf_counter()
    labels = run(maps)
    return {"labels": labels.astype(np.int32), "seconds": time.perf_counter() - start}


def evaluate(given: Arrays, model: str, diameters: list[float]) -> Arrays:
    """Segment images."""
    cellpose = load(model)
    cellpose.eval(given["0"], channels=[0, 0], diameter=diameters[0])
    start = time.perf_counter()
    found = {
        str(k): cellpose.eval(given[str(k)], channels=[0, 0], diameter=diameter)[0].astype(np.int32)
        for k, diameter in enumerate(diameters)
    }
    return {**found, "seconds": time.perf_counter() - start}


def stitch(given: Arrays, model: str, diameter: float, threshold: float) -> Arrays:
    """Segment the planes of a volume, and stitch them."""
    cellpose, volume = load(model), given["volume"]
    cellpose.eval(volume[0], channels=[0, 0], diameter=diameter)
    start = time.perf_counter()
    labels = cellpose.eval(volume, channels=[0, 0], z_axis=0, diameter=diameter, stitch_threshold=threshold)[0]
    return {"labels": labels.astype(np.int32), "seconds": time.perf_counter() - start}


TASKS = {"flows": flows, "maps": maps, "forward": forward, "masks": masks, "eval": evaluate, "stitch": stitch}


def main() -> None:
    """Run one task."""
    task, source, target, text = sys.argv[1:]
    settings = json.loads(text)
    logging.disable(logging.WARNING)
    torch.set_num_threads(settings.pop("threads"))
    with np.load(source) as given:
        arrays = dict(given)
    start = time.perf_counter()
    found = TASKS[task](arrays, **settings)
    found.setdefault("seconds", time.perf_counter() - start)
    np.savez(target, **found, version=version("cellpose"))


if __name__ == "__main__":
    main()
