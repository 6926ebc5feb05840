"""Parts parity and eval of `cellpose.py`: the network's maps, and whole segmentations, beside those of cellpose 3."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from _cellpose_tools import Model, all_models, cropped_mosaic, manifest, read_example, reference, show, statistics

from spatialdata_segment import label_image
from spatialdata_segment.methods.base import ImageInfo, View
from spatialdata_segment.testing import match_scores
from spatialdata_segment.testing.tiling import whole_plan

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from _cellpose_tools import Example, Goals, Reference

    from spatialdata_segment import Cellpose

CLOSE = 1e-4
"""Of the standard deviation of a map: the greatest difference."""
AGREE = 0.98
ROUNDING = 1e-6
"""Of the range between the percentiles, beside those of this interpreter's numpy."""
PIECE = 777, 1033
"""Of a mosaic, besides images of every shape."""
LISTED = 5
COLUMNS = "flow y", "flow x", "probability", "greatest", "with our percentiles"
"""The original's numpy (< 2.1) rounds the rank of a percentile of float32 pixels to float32, which moves the percentile
itself by up to 2e-5 of itself; later ones do not. The goal is for the same percentiles, ours are shown beside it."""
FEW = 3
"""Shapes, the most frequent, of which maps that are not resampled are compared too, and maps of random weights."""
RANDOM = "random weights"


class Case(NamedTuple):
    """An image, and the factor by which it is resized."""

    name: str
    image: np.ndarray
    rescale: float


def dense(method: Cellpose, image: np.ndarray, limits: np.ndarray | None = None) -> np.ndarray:
    """Return the maps of a whole image ``(y, x)``, in float32, before they are stored.

    ``limits`` are what becomes 0 and 1, in place of percentiles of our own.
    """
    info = ImageInfo(image.shape, image.dtype)
    found = statistics(method, image[None])
    if limits is not None:
        found = dict(zip(found, limits.tolist(), strict=True))
    method = method.adapted(info, found)
    view = View(whole_plan(image.shape).window(0), info, found, model=method.load("cpu"))
    return np.asarray(method.predict(image[None], view))


def difference(right: np.ndarray, found: np.ndarray) -> list[float]:
    """Return, of each of the three maps, the greatest difference as a share of its standard deviation.

    Without resampling ours end with the last pixel that a label is taken of, which may not be the very last.
    """
    right = right[:, : found.shape[1], : found.shape[2]]
    return [float(np.abs(a - b).max() / a.std()) for a, b in zip(right, found, strict=True)]


# --- parity ----------------------------------------------------------------------------------------------------------


def parity(args: argparse.Namespace, goals: Goals, folder: Path) -> None:
    """Print how far our maps are from those of cellpose 3."""
    exact = reference(args, 3, folder)
    if exact is None:
        return
    examples = [read_example(args.data, row) for row in one_of_each_shape(manifest(args.data))]
    piece = cropped_mosaic(args.data, args.size or PIECE)[0]
    for model in (*all_models(args), random_model(folder)):
        rows = [["greatest difference / standard deviation", "factor", *COLUMNS]]
        rows += tile(exact, model, examples[0].image, goals)
        few = [Case(shape(e.image), e.image, model.diam_mean / e.diameter) for e in examples[:FEW]]
        more = [Case(shape(e.image), e.image, model.diam_mean / e.diameter) for e in examples[FEW:]]
        more += [Case("256 x 256, as it is", examples[0].image, 1.0), Case(f"mosaic, {shape(piece)}", piece, 0.7)]
        trained = model.name != RANDOM
        for cases, resample in (([*few, *more] if trained else few, True), (few if trained else [], False)):
            factors = [case.rescale for case in cases]
            images = {str(k): case.image for k, case in enumerate(cases)}
            right = exact("maps", images, model=str(model.weights), rescale=factors, resample=resample)
            for k, case in enumerate(cases):
                method, limits = model.method(rescale=case.rescale, resample=resample), right["limits"][k]
                name = f"{model.name}, {case.name}{'' if resample else ', not resampled'}"
                row = line(name, f"{case.rescale:.3f}", right[str(k)], dense(method, case.image, limits), goals)
                other = max(difference(right[str(k)], dense(method, case.image)))
                rows.append([*row[:-1], f"{other:.1e}"])
                low, high = np.percentile(case.image.astype(np.float32), (1.0, 99.0))
                off = np.abs(np.array(list(statistics(method, case.image[None]).values())) - (low, high)).max()
                goals.most(f"percentiles, {name}", float(off / (high - low)), ROUNDING, form=".1e")
        print()
        show(rows)


def line(name: str, factor: str, right: np.ndarray, found: np.ndarray, goals: Goals) -> list[str]:
    """Return a row of the table."""
    off = difference(right, found)
    greatest = goals.most(f"parity, {name}", max(off), CLOSE, form=".1e")
    return [name, factor, *(f"{n:.1e}" for n in off), greatest, ""]


def tile(exact: Reference, model: Model, image: np.ndarray, goals: Goals) -> list[list[str]]:
    """Return rows of the bare network on one tile: the maps, and the style as one map more."""
    tiles = np.zeros((1, 2, 224, 224), np.float32)
    low, high = np.percentile(image, (1, 99))
    tiles[0, 0] = (image[:224, :224] - low) / (high - low)
    right = exact("forward", {"tiles": tiles}, model=str(model.weights))
    maps, styles = model.method(rescale=1.0).load("cpu").forward(tiles)
    off = float(np.abs(right["styles"] - styles).max() / right["styles"].std())
    name = f"{model.name}, style of a tile"
    style = [name, "", "", "", "", goals.most(f"parity, {name}", off, CLOSE, form=".1e"), ""]
    return [line(f"{model.name}, a tile, 224 x 224", "", right["maps"][0], maps[0], goals), style]


def shape(image: np.ndarray) -> str:
    """Return the sides of an image as text."""
    return "{} x {}".format(*image.shape)


def one_of_each_shape(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the first image of every shape, the most frequent shape first."""
    count = Counter((row["height"], row["width"]) for row in rows)
    first = {key: next(row for row in rows if (row["height"], row["width"]) == key) for key in count}
    return [first[key] for key, _ in count.most_common()]


def random_model(folder: Path) -> Model:
    """Return a network of the usual size with random weights and statistics of its normalisation, of seed 0."""
    import torch

    from spatialdata_segment.methods.cellpose.network import CPnet

    torch.manual_seed(0)
    net = CPnet((2, 32, 64, 128, 256), 3, 3, 30.0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = folder / "random"
    torch.save(net.state_dict(), path)
    return Model(RANDOM, {"model_path": path}, path, 30.0)


# --- eval ------------------------------------------------------------------------------------------------------------


def evaluate(args: argparse.Namespace, goals: Goals, folder: Path) -> None:
    """Print how well whole segmentations agree with those of `CellposeModel.eval`."""
    exact = reference(args, 3, folder)
    if exact is None:
        return
    rows = sorted(manifest(args.data), key=lambda row: (int(row["height"]), int(row["width"]), row["id"]))
    spread = np.linspace(0, len(rows) - 1, min(args.images, len(rows))).round().astype(int)
    examples = [read_example(args.data, rows[k]) for k in spread]
    images = {str(k): e.image for k, e in enumerate(examples)}
    for model in all_models(args):
        theirs = exact("eval", images, model=str(model.weights), diameters=[e.diameter for e in examples])
        start = time.perf_counter()
        ours = [whole(model, e) for e in examples]
        seconds = time.perf_counter() - start
        print(
            f"  {model.name}, {len(examples)} images with their mean diameters: cellpose {theirs['version']} "
            f"{float(theirs['seconds']):.1f} s on {args.threads} threads, ours {seconds:.1f} s, one image at a time"
        )
        report(model, examples, [theirs[str(k)] for k in range(len(examples))], ours, goals)


def whole(model: Model, example: Example) -> np.ndarray:
    """Segment an image."""
    return np.asarray(label_image(example.image[None], model.method(diameter=example.diameter)))


def report(
    model: Model, examples: list[Example], theirs: list[np.ndarray], ours: list[np.ndarray], goals: Goals
) -> None:
    """Print the scores of all images, and the images that agree least."""
    scores = [match_scores(a, b, (0.5, 0.9)) for a, b in zip(theirs, ours, strict=True)]
    ap = np.array([s.ap if s.n_truth + s.n_found else (1.0, 1.0) for s in scores])
    n, m = sum(s.n_truth for s in scores), sum(s.n_found for s in scores)
    tp = [sum(s.tp[k] for s in scores) for k in range(2)]
    pooled = [tp[k] / max(n + m - tp[k], 1) for k in range(2)]
    mean = goals.least(f"eval, {model.name}, mean AP at 0.9", float(ap[:, 1].mean()), AGREE)
    same = sum(identical(a, b) for a, b in zip(theirs, ours, strict=True))
    rows = [["", "theirs", "ours", "AP at 0.5", "AP at 0.9"]]
    rows.append(["mean of the images", "", "", f"{ap[:, 0].mean():.4f}", mean])
    rows.append(["pooled", str(n), str(m), f"{pooled[0]:.4f}", f"{pooled[1]:.4f}"])
    for k in np.argsort(ap[:, 1], kind="stable")[:LISTED]:
        at = f"{examples[k].name}, {shape(examples[k].image)}"
        rows.append([at, str(scores[k].n_truth), str(scores[k].n_found), f"{ap[k, 0]:.4f}", f"{ap[k, 1]:.4f}"])
    show(rows)
    print(f"  {same} of {len(examples)} images are the same to the last pixel")


def identical(first: np.ndarray, second: np.ndarray) -> bool:
    """Tell whether two labellings are one but for their numbers."""
    scores = match_scores(first, second, (1.0,))
    return scores.tp[0] == scores.n_truth == scores.n_found
