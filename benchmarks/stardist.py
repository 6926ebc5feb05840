"""StarDist beside its own package: parity of trained models, and the time of the second phase.

    python benchmarks/stardist.py reference PYTHON DATA FOLDER   # trains small models with stardist and tensorflow
    python benchmarks/stardist.py parity FOLDER                  # maps, instances from the same maps, end to end
    python benchmarks/stardist.py phase2 PYTHON --side 4096      # beside `predict_instances_big`, same candidates
    python benchmarks/stardist.py phase2 --side 2048 4096 8192   # ours alone: is it linear in the image?

PYTHON: of an environment with stardist 0.9.2 (and tensorflow, for ``reference``). DATA: a folder with
``nuclei_2d.tif``, ``nuclei_3d.tif`` and their labels (``..._labels.tif``).
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import zarr

from spatialdata_segment import StarDist
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.maps import Maps, _create, aligned
from spatialdata_segment.engine.mask import run_mask
from spatialdata_segment.engine.points import packed_dtype, write_index, write_points
from spatialdata_segment.engine.shard import Job
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.stardist import shapes
from spatialdata_segment.methods.stardist.description import BORDER, Backbone, Description, describe
from spatialdata_segment.testing import match_scores
from spatialdata_segment.testing.tiling import tile, whole_plan

HERE = Path(__file__).parent
_TILE, _SPACING, _RADIUS = 1024, 26, 9.0
"""px: of the pattern of candidates that is repeated, between its objects, of these."""


def reference(args: argparse.Namespace) -> None:
    """Train models with stardist, and keep what it makes of the images."""
    command = [args.python, "-P", HERE / "_stardist_reference.py", args.folder, args.data, "12", "8"]
    subprocess.run([str(c) for c in command], check=True)


def parity(args: argparse.Namespace) -> None:
    """Compare with what `reference` left."""
    for name in ("nuclei_2d", "nuclei_3d"):
        kept, said = np.load(args.folder / f"{name}.npz"), describe(args.folder / name)
        raw, grid = kept["raw"], np.array(said.grid)
        method = StarDist(args.folder / name)
        with tempfile.TemporaryDirectory() as folder:
            ours = tile(raw[None], method, whole_plan(raw.shape), Path(folder)).labels
        at = np.argwhere(kept["prob"] > np.float32(said.prob_thresh))
        at = at[np.all((at >= BORDER) & (at < said.grid_ends(raw.shape)), axis=1)]
        points = _records(at * grid, kept["prob"][tuple(at.T)], kept["dist"][tuple(at.T)])
        solids, every = shapes.of(said), np.ones(len(points), bool)
        settled = solids.suppressed(points, solids.extents(points, raw.shape), every, every, said.nms_thresh)
        stayed = points[settled.state == 1]
        same = set(map(tuple, stayed["point"].tolist())) == set(map(tuple, kept["points"].tolist()))
        painted = solids.painted(stayed, Box.whole(raw.shape))
        pairs = np.unique(np.stack([painted.ravel(), kept["labels"].ravel()], axis=1), axis=0)
        equal = len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))
        scores = match_scores(kept["labels"].astype(np.int64), ours, [0.9, 1.0])
        print(
            f"{name}: {len(kept['points'])} objects; from TensorFlow's maps the same points: {same}, the same pixels: "
            f"{equal}; end to end AP at IoU 0.9 {scores.ap[0]:.4f}, at 1.0 {scores.ap[1]:.4f}"
        )


def phase2(args: argparse.Namespace) -> None:
    """Time our second phase, and stardist's suppression and painting by blocks, of the same candidates."""
    pattern, runner = _pattern(args.aspect), Executor(args.jobs)
    with tempfile.TemporaryDirectory() as text:
        _timed(pattern, _TILE, Path(text), runner)  # what compiles does so now
    for side in args.side:
        with tempfile.TemporaryDirectory() as text:
            n, seconds, work = _timed(pattern, side, Path(text), runner)
            print(
                f"{side} px, {n} objects: ours {seconds:.1f} s with {args.jobs} threads ({work:.1f} s of the cores), "
                f"{1e9 * work / side**2:.0f} ns of a core a px",
                flush=True,
            )
    if args.python is None:
        return
    with tempfile.TemporaryDirectory() as text:
        np.save(Path(text) / "pattern.npy", pattern)
        for side in args.side:
            command = [args.python, "-P", HERE / "_stardist_blocks.py", Path(text) / "pattern.npy", side, _TILE]
            subprocess.run([str(c) for c in command], check=True)


def _timed(pattern: np.ndarray, side: int, folder: Path, runner: Executor) -> tuple[int, float, float]:
    """Return the objects of an image of that side, the seconds that they took, and those of all cores."""
    job = _prepared(pattern, side, folder / "maps")
    start, work = time.perf_counter(), time.process_time()
    mask = run_mask(job, folder / "run", range(len(job.plan)), runner, "cell")
    runner.map(partial(_painted, mask.labels), [job.plan.core(i) for i in range(len(job.plan))], "painting")
    return len(mask.objects), time.perf_counter() - start, time.process_time() - work


def _painted(labels: object, core: Box) -> int:
    return int(labels.read(core).max())  # type: ignore[attr-defined]


def _prepared(pattern: np.ndarray, side: int, folder: Path) -> Job:
    """Write the candidates of an image of that side as `predict` does."""
    shape = (side, side)
    backbone = Backbone(
        kind="unet", n_depth=3, kernel_size=(3, 3), pool=(2, 2), n_filter_base=32, n_conv=2, activation="relu",
        last_activation="relu", batch_norm=False, n_features=128,
    )  # fmt: skip
    said = Description(n_dim=2, n_channels=1, n_rays=32, grid=(2, 2), backbone=backbone)
    facts = {"model": said.model_dump(mode="json"), "kept_above": 0.5}
    method, info = StarDist("candidates", described=facts), ImageInfo(shape, np.dtype("uint16"))
    blocks, chunks = aligned(shape, 2048 * 2048, (512, 512))
    folder.mkdir(parents=True)
    _create(zarr.open_group(folder, mode="a"), 1, packed_dtype(pattern.dtype), blocks, chunks, sparse=True)
    for k in range(len(blocks)):
        core = blocks.core(k)
        parts = [pattern[:0]]
        for y in range(core.start[0] // _TILE, -(-core.stop[0] // _TILE)):
            for x in range(core.start[1] // _TILE, -(-core.stop[1] // _TILE)):
                part = pattern.copy()
                part["point"] += np.array([y * _TILE, x * _TILE], np.int32)
                parts.append(part[core.holds(part["point"])])
        found = np.concatenate(parts)
        write_points(folder, k, found, method.extents(found, info))
    write_index(folder, range(len(blocks)))
    plan = Plan.fewest(shape, 2048 * 2048, method.halo(info))
    return Job(method, info, plan, {}, None, maps=Maps(folder, blocks, "benchmark", sparse=True))


def _records(points: np.ndarray, prob: np.ndarray, dist: np.ndarray) -> np.ndarray:
    dtype = [("point", "<i4", (points.shape[1],)), ("prob", "<f4"), ("dist", "<f4", (dist.shape[1],))]
    out = np.zeros(len(points), dtype)
    out["point"], out["prob"], out["dist"] = points, prob, dist
    return out


def _pattern(aspect: float) -> np.ndarray:
    """Return candidates, on a grid of 2 px, of ellipses that touch: noisy distances to their outlines."""
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(*[np.arange(_SPACING, _TILE - _SPACING, _SPACING)] * 2), axis=-1).reshape(-1, 2)
    centres = lattice + rng.uniform(-5, 5, lattice.shape)
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    rays = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    points, prob, dist = [], [], []
    for centre in centres:
        radius, turn = rng.uniform(0.7, 1.4) * _RADIUS, rng.uniform(0, np.pi)
        long, short = radius * aspect**0.5, radius / aspect**0.5
        axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / [[long], [short]]
        low = (np.floor((centre - long) / 2) * 2).astype(int)
        near = np.stack(np.meshgrid(*[np.arange(0, 2 * long + 4, 2)] * 2), axis=-1).reshape(-1, 2).astype(int) + low
        away = (near - centre) @ axes.T  # in radii
        inside = (away**2).sum(axis=1) < 0.75**2
        near, away = near[inside], away[inside]
        rays_in, square = rays @ axes.T, ((rays @ axes.T) ** 2).sum(axis=1)
        along = away @ rays_in.T
        exact = (-along + np.sqrt(along**2 + square * (1 - (away**2).sum(axis=1)[:, None]))) / square
        points.append(near)
        prob.append(1 - 0.6 * np.sqrt((away**2).sum(axis=1)) + rng.uniform(0, 0.02, len(near)))
        dist.append(exact * rng.normal(1, 0.03, exact.shape))
    every = _records(np.concatenate(points), np.concatenate(prob), np.concatenate(dist))
    _, first = np.unique(every["point"], axis=0, return_index=True)
    return every[np.sort(first)]


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    made = actions.add_parser("reference")
    made.add_argument("python")
    made.add_argument("data", type=Path)
    made.add_argument("folder", type=Path)
    made.set_defaults(run=reference)
    compared = actions.add_parser("parity")
    compared.add_argument("folder", type=Path)
    compared.set_defaults(run=parity)
    timed = actions.add_parser("phase2")
    timed.add_argument("python", nargs="?")
    timed.add_argument("--side", type=int, nargs="+", default=[4096])
    timed.add_argument("--aspect", type=float, default=1.3)
    timed.add_argument("--jobs", type=int, default=2)
    timed.set_defaults(run=phase2)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
