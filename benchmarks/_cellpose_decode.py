"""Part decode of `cellpose.py`: from maps to labels, beside cellpose 3 (what is right) and 4 (how long it takes)."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import dask.array as da
import numpy as np
from _cellpose_tools import cropped_mosaic, median_diameter, reference, shared_model, show
from scipy.ndimage import gaussian_filter

from spatialdata_segment import Cellpose, label_image
from spatialdata_segment.core.flows import FlowRules, decode_flows
from spatialdata_segment.testing import match_scores

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from _cellpose_tools import Goals, Reference

    from spatialdata_segment.methods.base import ImageInfo, View

SIZE = 2080, 2784
FLOW_THRESHOLD, MIN_SIZE = 0.4, 15
LEVELS = 0.5, 0.9
AGREE, COUNT = 0.99, 0.5
FASTER = {True: (80, 300), False: (5, 10)}
"""Goal and aim, with the quality check and without."""
NOISE = 0.5


class Given(Cellpose):
    """Cellpose, but for its network: the image's channels are the maps."""

    uses_device: ClassVar[bool] = False

    def check(self, image: ImageInfo) -> None:
        """Check nothing."""

    def reach(self, image: ImageInfo) -> tuple[int, ...]:
        """Return none."""
        return (0, 0)

    def load(self, device: str) -> None:
        """Load nothing."""

    def predict(self, image: np.ndarray, view: View) -> np.ndarray:
        """Return the window's part of the maps."""
        return image


class Case(NamedTuple):
    """Maps ``(3, y, x)`` float32, and the steps of a path."""

    name: str
    maps: np.ndarray
    steps: int


def decode(args: argparse.Namespace, goals: Goals, folder: Path) -> None:
    """Print agreement and times."""
    exact, timed = reference(args, 3, folder), reference(args, 4, folder)
    if exact is None or timed is None:
        return
    model = shared_model(args.data)
    image, labels = cropped_mosaic(args.data, args.size or SIZE)
    diameter = median_diameter(labels)
    steps = int(200 * diameter / model.diam_mean)
    print(
        f"  {image.shape[0]} x {image.shape[1]} px, {len(np.unique(labels)) - 1} nuclei, median diameter "
        f"{diameter:.1f} px, {steps} steps of a path, {args.threads} threads, median of {args.repeat}"
    )
    method = Given(
        model_path=model.weights, diameter=diameter, niter=steps, normalize=False, channels=(0, 1, 2), min_size=MIN_SIZE
    )
    flows = exact("flows", {"labels": labels})["flows"]
    maps = exact("maps", {"0": image}, model=str(model.weights), rescale=[model.diam_mean / diameter], resample=True)
    cases = (
        Case("labels turned into flows, with noise", noisy(flows, labels), steps),
        Case(f"output of the {model.name}", maps["0"], steps),
    )
    for case in cases:
        for checked in (True, False):
            compare(args, goals, case, method, (exact, timed), checked)


def noisy(flows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return maps such as a network might give: flows and cell probability of labels, with noise."""
    rng = np.random.default_rng(0)
    noise = np.stack([gaussian_filter(rng.normal(0, 1, part.shape), 1) for part in flows])
    logit = np.where(labels > 0, 6, -6) + rng.normal(0, 2, labels.shape)
    return np.concatenate([5 * (flows + NOISE * noise), logit[None]]).astype(np.float32)


def whole(case: Case, threshold: float | None) -> np.ndarray:
    """Decode all of the maps at once, on one core."""
    largest = 0.4 * case.maps[0].size
    rules = FlowRules(flow_threshold=threshold, steps=case.steps, min_size=MIN_SIZE, max_size=largest)
    found = decode_flows(case.maps, np.zeros((2, 2), np.int64), rules)
    kept = np.append(0, np.where(found.reasons == 0, np.arange(1, len(found.reasons) + 1), 0))
    return np.asarray(kept.astype(np.int32)[found.labels])


def by_windows(case: Case, method: Given, threshold: float | None, windows: int, threads: int) -> np.ndarray:
    """Decode by windows with a halo, stitched, as the engine does: maps in float16, a window a thread."""
    size = -(-case.maps[0].size // windows)
    maps = da.from_array(case.maps, chunks=case.maps.shape, name=False)  # a name would be a checksum of it all
    lazy = label_image(maps, method.model_copy(update={"flow_threshold": threshold}), shard_size=size)
    return np.asarray(lazy.compute(scheduler="threads", num_workers=threads))


class Timed(NamedTuple):
    """Labels of the last run, and the seconds of each."""

    title: str
    labels: np.ndarray
    seconds: list[float]


def in_turn(
    args: argparse.Namespace,
    case: Case,
    method: Given,
    references: tuple[Reference, Reference],
    threshold: float | None,
) -> tuple[Timed, list[Timed], Timed]:
    """Decode with cellpose 3, then in turn with ours, on one core and by windows, and with cellpose 4."""
    corner = case._replace(maps=np.ascontiguousarray(case.maps[:, :256, :256]))
    whole(corner, threshold)  # compiles
    by_windows(corner, method, threshold, 2, 2)
    runs: dict[str, Callable[[], Any]] = {
        "ours, one core": lambda: whole(case, threshold),
        f"ours, {args.windows} windows, {args.threads} threads": lambda: by_windows(
            case, method, threshold, args.windows, args.threads
        ),
    }
    exact, timed = references
    path = exact.put(maps=case.maps)
    settings = {"niter": case.steps, "flow_threshold": threshold or 0.0, "min_size": MIN_SIZE}
    right = exact.run("masks", path, **settings)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    labels, other = {}, []
    for _ in range(args.repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            labels[name] = run()
            seconds[name].append(time.perf_counter() - start)
        theirs = timed.run("masks", path, **settings)
        other.append(float(theirs["seconds"]))
    return (
        Timed(f"cellpose {right['version']}", right["labels"], [float(right["seconds"])]),
        [Timed(name, labels[name], seconds[name]) for name in runs],
        Timed(f"cellpose {theirs['version']}", theirs["labels"], other),
    )


def compare(
    args: argparse.Namespace,
    goals: Goals,
    case: Case,
    method: Given,
    references: tuple[Reference, Reference],
    checked: bool,
) -> None:
    """Print one table: the maps decoded with or without the quality check."""
    right, ours, theirs = in_turn(args, case, method, references, FLOW_THRESHOLD if checked else None)
    print(f"\n  {case.name}, {'with' if checked else 'without'} the quality check; agreement with {right.title}")
    rows = [["", "objects", "s", f"times {theirs.title}", "AP at 0.5", "AP at 0.9", "count off, %"]]
    rows.append([right.title, str(right.labels.max()), f"{right.seconds[0]:.2f}", "", "", "", ""])
    for run in (*ours, theirs):
        scores = match_scores(right.labels, run.labels, LEVELS)
        what = f"decode, {case.name}, {'checked' if checked else 'unchecked'}, {run.title}"
        ratio = median(theirs.seconds) / median(run.seconds)
        count = 100 * abs(scores.n_found - scores.n_truth) / max(scores.n_truth, 1)
        faster, ap, off = f"{ratio:.1f}", f"{scores.ap[1]:.4f}", f"{count:.2f}"
        if run is ours[-1]:
            faster = goals.least(f"{what}, times faster", ratio, *FASTER[checked], form=".1f")
        if run is not theirs and checked:
            ap = goals.least(f"{what}, AP at 0.9", scores.ap[1], AGREE)
            off = goals.most(f"{what}, count", count, COUNT, form=".2f")
        rows.append(
            [run.title, str(scores.n_found), f"{median(run.seconds):.3f}", faster, f"{scores.ap[0]:.4f}", ap, off]
        )
    show(rows)
