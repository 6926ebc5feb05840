"""Part accuracy of `cellpose.py`: models on images that `nuclei-small` was not trained on."""

from __future__ import annotations

import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from _cellpose_tools import SHARED, Model, all_models, manifest, read_example, show, statistics

from spatialdata_segment import label_image
from spatialdata_segment.core.statistics import Statistic
from spatialdata_segment.testing import match_scores

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from _cellpose_tools import Goals

    from spatialdata_segment.testing import Scores

LEVELS = 0.5, 0.75
F1, AIM = 0.90, 0.94
WORST = 10


class Result(NamedTuple):
    """Scores of an image: with the diameter that was estimated, and with the true mean diameter, px."""

    name: str
    size: str
    estimate: float
    diameter: float
    estimated: Scores
    given: Scores


def accuracy(args: argparse.Namespace, goals: Goals) -> None:
    """Print the mean F1 of every model, by size of the images, and the worst images of `--model`."""
    from train_nuclei_small import held_out

    rows = [row for row in manifest(args.data) if held_out(row["id"])]
    rows = rows[: args.images_held]
    for model in all_models(args):
        run = partial(one_image, args.data, model)
        with ProcessPoolExecutor(args.threads, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(run, rows))
        also = ", which it was trained on as well" if model.name == SHARED else ""
        print(f"\n  {model.name}: {len(results)} images held out{also}; mean over images")
        summarise(model, results, goals)
        if model.name != SHARED:
            worst(results)


def one_image(data: Path, model: Model, row: dict[str, str]) -> Result:
    """Segment one image twice."""
    warnings.simplefilter("ignore")
    example = read_example(data, row)
    image, method = example.image[None], model.method()
    found = statistics(method, image)
    scores = []
    for one in (method, model.method(diameter=example.diameter)):
        labels = np.asarray(label_image(image, one, statistics=found))
        scores.append(match_scores(example.labels, labels, LEVELS))
    estimate = found[Statistic("diameter")]
    return Result(example.name, "{} x {}".format(*example.image.shape), estimate, example.diameter, *scores)


def summarise(model: Model, results: list[Result], goals: Goals) -> None:
    """Print the means over the images of a size, and over all."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.size, []).append(result)
    ordered = sorted(groups, key=lambda size: -len(groups[size]))
    heads = [f"{which}, F1 at {level}" for which in ("estimated", "true") for level in LEVELS]
    rows = [["diameter", "images", "nuclei", *heads, "|log(estimate / true)|, median"]]
    for name, group in [*((size, groups[size]) for size in ordered), ("all", results)]:
        f1 = [[mean_f1(group, which, level) for level in range(2)] for which in ("estimated", "given")]
        shown = [f"{value:.4f}" for pair in f1 for value in pair]
        if name == "all" and model.name != SHARED:
            shown[0] = goals.least(f"accuracy, {model.name}, mean F1 at 0.5", f1[0][0], F1, AIM)
        off = np.median([abs(np.log(r.estimate / r.diameter)) for r in group])
        rows.append([name, str(len(group)), str(sum(r.given.n_truth for r in group)), *shown, f"{off:.3f}"])
    show(rows)


def mean_f1(results: list[Result], which: str, level: int) -> float:
    """Return the mean F1 of those images in which there is anything."""
    scores: list[Scores] = [getattr(result, which) for result in results]
    return float(np.mean([s.f1[level] for s in scores if s.n_truth + s.n_found]))


def worst(results: list[Result]) -> None:
    """Print the images of the lowest F1."""
    print(f"\n  the {WORST} worst, by F1 at {LEVELS[0]} with diameter=None")
    rows = [["", "", "nuclei", "found", "F1 at 0.5", "0.75", "diameter", "true", "F1 at 0.5 with it"]]
    for r in sorted(results, key=lambda r: r.estimated.f1[0])[:WORST]:
        f1 = [f"{value:.3f}" for value in r.estimated.f1]
        found = str(r.given.n_truth), str(r.estimated.n_found)
        diameters = f"{r.estimate:.1f}", f"{r.diameter:.1f}"
        rows.append([r.name, r.size, *found, *f1, *diameters, f"{r.given.f1[0]:.3f}"])
    show(rows)
