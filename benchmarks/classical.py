"""The classical workflows: accuracy on real nuclei and synthetic cells, and scPortrait's beside them.

    python benchmarks/classical.py --data PATH [--parts folds mosaic speed match wga] [--workflow dapi]
        [--scportrait-python PATH] [--rows 8 --cols 8] [--shard-size 4000000] [--threads 2] [--folder DIR]

PATH holds ``dsb2018/``. A workflow that is not registered is skipped, and that is said. scPortrait runs in an
interpreter of its own that has it and scikit-fmm, with its documented values (`_scportrait.py`).

folds   every image alone through ``--workflow``: the mean over images of F1 at IoU 0.5, by five folds of the image id
        and by size of the image
mosaic  ``--workflow`` on a mosaic (8 x 8 tiles: 4,160 x 5,568 px) as one image: F1 pooled over all nuclei
speed   ``dapi`` and ``dapi-scportrait`` from store to labels in the store, and scPortrait's sharded segmentation to
        labels and centres, each in a process of its own with the same shard size: seconds, processor seconds, and the
        peak of summed resident memory, with that of child processes. scPortrait gets one process by default: with
        two, each imports and compiles anew, and on two cores that took longer and more memory
match   share of scPortrait's nuclei that ``--against`` finds at IoU 0.7, apart from those near the image border (where
        scPortrait removes what touches it) and near its shard borders; why the others are not matched
wga     cells of the workflow ``wga`` on synthetic tissue (``--density``, ``--noise``, ``--uneven-light``,
        ``--multinucleated``): F1 at IoU 0.7, goal 0.90
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _scportrait import Watch, processor

from spatialdata_segment.config import as_workflow
from spatialdata_segment.errors import MissingError
from spatialdata_segment.testing import match_scores
from spatialdata_segment.testing.scores import pair_counts

if TYPE_CHECKING:
    from spatialdata_segment.testing import Scores

PARTS = "folds", "mosaic", "speed", "match", "wga"
FOLDS = 5
LEVELS = 0.5, 0.7, 0.9
MATCHED = 0.7
GOAL_WGA = 0.90


def registered(name: str) -> bool:
    """Return whether there is a workflow of that name; say so if not."""
    try:
        as_workflow(name)
    except MissingError:
        print(f"  workflow {name!r} is not registered: skipped")
        return False
    return True


def in_memory(image: np.ndarray, names: list[str]) -> Any:
    """Return a SpatialData object in memory with the image ``image``, (c, y, x)."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel

    return sd.SpatialData(images={"image": Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=names)})


# --- folds -----------------------------------------------------------------------------------------------------------


def fold_of(name: str) -> int:
    """Return the fold of an image: a hash of its id, the same everywhere."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % FOLDS


def one_image(data: Path, workflow: str, name: str) -> tuple[str, str, tuple[int, int, int]]:
    """Segment one image; return its id, its size, and the numbers of true, found and matched nuclei."""
    from skimage.io import imread

    from spatialdata_segment import segment

    warnings.simplefilter("ignore")
    grey, truth = (imread(data / "dsb2018" / kind / f"{name}.png") for kind in ("images", "labels"))
    sdata = in_memory(grey[None], ["DAPI"])
    segment(sdata, "image", workflow, shapes=False, table=False, progress=False, n_jobs=1)
    scores = match_scores(truth, np.asarray(sdata["segmentation_nucleus_labels"].data), (0.5,))
    return name, "{} x {}".format(*grey.shape), (scores.n_truth, scores.n_found, scores.tp[0])


def folds(args: argparse.Namespace) -> None:
    """Print the mean F1 of the images, by fold and by size."""
    if not registered(args.workflow):
        return
    with (args.data / "dsb2018" / "manifest.csv").open() as file:
        names = sorted(row["id"] for row in csv.DictReader(file))
    start = time.perf_counter()
    run = partial(one_image, args.data, args.workflow)
    with ProcessPoolExecutor(args.threads, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(run, names, chunksize=8))
    groups: dict[str, list[tuple[int, int, int]]] = {}
    for name, size, counts in found:
        for group in (f"fold {fold_of(name)}", size, "all"):
            groups.setdefault(group, []).append(counts)
    print(f"  {'':12}{'images':>8}{'nuclei':>8}{'mean F1':>9}{'pooled':>8}")
    order = {name: (name == "all", " x " in name and -len(group)) for name, group in groups.items()}
    for group in sorted(groups, key=lambda name: (*order[name], name)):
        counts = np.array(groups[group])
        mean = np.mean([2 * tp / (n + m) for n, m, tp in counts if n + m])
        true, seen, tp = counts.sum(0)
        print(f"  {group:12}{len(counts):8}{true:8}{mean:9.3f}{2 * tp / (true + seen):8.3f}")
    seconds = time.perf_counter() - start
    print(f"  {len(names)} images in {seconds:.1f} s on {args.threads} processes", flush=True)


# --- a mosaic, by us and by scPortrait -------------------------------------------------------------------------------


def segment_store(store: Path, labels: Path, workflow: str, shard_size: int, threads: int, table: bool) -> dict:
    """Segment a store (in a process of its own); return what it took."""
    import spatialdata as sd

    from spatialdata_segment import segment

    sdata = sd.read_zarr(store)
    watch, before, start = Watch(), processor(), time.perf_counter()
    segment(
        sdata,
        "image",
        workflow,
        key_added=workflow,
        shard_size=shard_size,
        n_jobs=threads,
        shapes=False,
        table=table,
        overwrite=True,
        progress=False,
    )
    found = {"seconds": time.perf_counter() - start, "cpu": processor() - before, "peak": watch.peak}
    masks = [
        np.asarray(sdata[name].data) for kind in ("nucleus", "cell") if (name := f"{workflow}_{kind}_labels") in sdata
    ]
    np.save(labels, np.stack(masks))
    if table:
        dropped = sdata[f"{workflow}_candidates"].obs.query("not is_kept")
        dropped = dropped[["centroid_y", "centroid_x", "drop_reason"]].astype({"drop_reason": str})
        found["dropped"] = dropped.values.tolist()
    return found


class Bench:
    """A mosaic in a folder, and those who segment it, each in a process of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        size = f"{args.rows}x{args.cols}"
        self.store, self.image = folder / f"mosaic-{size}.zarr", folder / f"mosaic-{size}.npy"
        self.truth = folder / f"truth-{size}.npy"
        self.shape = tuple(n * t for n, t in zip((args.rows, args.cols), (520, 696), strict=True))

    def make(self) -> None:
        """Write the mosaic, unless it is there."""
        from _mosaic import mosaic, mosaic_spatialdata

        if not self.store.exists():
            mosaic_spatialdata(self.args.data, self.store, self.args.rows, self.args.cols)
        if not (self.image.exists() and self.truth.exists()):
            image, truth = mosaic(self.args.data, self.args.rows, self.args.cols)
            np.save(self.image, image[None])
            np.save(self.truth, truth)

    def ours(self, workflow: str, table: bool = False) -> tuple[dict[str, Any], np.ndarray]:
        """Run one of our workflows."""
        self.make()
        labels = self.folder / f"ours-{workflow}.npy"
        command = [sys.executable, __file__, "--segment", str(self.store), str(labels), "--workflow", workflow]
        found = call([*command, *self._shards(self.args.threads), *(["--table"] if table else [])])
        return found, np.load(labels)[0]

    def scportrait(self, sharded: bool) -> tuple[dict[str, Any], np.ndarray]:
        """Run scPortrait."""
        self.make()
        labels = self._kept(sharded)
        command = [self.args.scportrait_python, str(Path(__file__).with_name("_scportrait.py")), str(self.image)]
        shards = [*self._shards(self.args.scportrait_threads), "--overlap", str(self.args.overlap)]
        flags = shards if sharded else ["--unsharded"]
        found = call([*command, str(labels), *flags])
        return found, np.load(labels)[0]

    def kept(self, sharded: bool) -> np.ndarray:
        """Return scPortrait's labels, of an earlier part or an earlier run in the same folder if there was one."""
        labels = self._kept(sharded)
        return np.load(labels)[0] if labels.exists() else self.scportrait(sharded)[1]

    def _kept(self, sharded: bool) -> Path:
        shards = f"{self.args.shard_size}-{self.args.overlap}" if sharded else "whole"
        return self.folder / f"scportrait-{self.args.rows}x{self.args.cols}-{shards}.npy"

    def _shards(self, threads: int) -> list[str]:
        return ["--shard-size", str(self.args.shard_size), "--threads", str(threads)]


def call(command: list[str]) -> dict[str, Any]:
    """Run a command and return the JSON of its last line."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(what: str, scores: Scores, found: dict[str, Any]) -> None:
    """Print one result."""
    f1 = "  ".join(f"{value:.3f}" for value in scores.f1)
    took = f"{found['seconds']:9.1f}{found['cpu']:9.1f}{found['peak'] / 1e6:10.0f}"
    print(f"  {what:28}{took}{scores.n_found:8}  {f1}", flush=True)


def heading() -> None:
    """Print the heading of such lines."""
    columns = f"{'s':>9}{'cpu s':>9}{'MB':>10}"
    print(f"  {'':28}{columns}{'nuclei':>8}  F1 at IoU {LEVELS}")


def pooled(args: argparse.Namespace, bench: Bench) -> None:
    """Print the scores of the mosaic as one image."""
    if not registered(args.workflow):
        return
    found, labels = bench.ours(args.workflow)
    heading()
    line(args.workflow, match_scores(np.load(bench.truth), labels, LEVELS), found)


def speed(args: argparse.Namespace, bench: Bench) -> None:
    """Print what each takes, and the ratios."""
    names = [name for name in ("dapi", "dapi-scportrait") if registered(name)]
    bench.make()
    truth = np.load(bench.truth)
    heading()
    times: dict[str, dict[str, Any]] = {}
    for name in names:
        times[name], labels = bench.ours(name)
        line(name, match_scores(truth, labels, LEVELS), times[name])
    if args.scportrait_python is None:
        print("  no interpreter given (--scportrait-python)")
        return
    theirs, labels = bench.scportrait(sharded=True)
    line("scPortrait, sharded", match_scores(truth, labels, LEVELS), theirs)
    seconds = (theirs[key] for key in ("seconds", "segment", "resolve"))
    print("  of scPortrait's {:.1f} s: shards {:.1f}, stitching {:.1f}".format(*seconds))
    for name, ours in times.items():
        ratios = (theirs[key] / ours[key] for key in ("seconds", "cpu", "peak"))
        print("  scPortrait / {}: seconds {:.2f}, processor {:.2f}, memory {:.2f}".format(name, *ratios))


# --- match -----------------------------------------------------------------------------------------------------------


def cuts(n: int, other: int, shard_size: int) -> list[int]:
    """Return where scPortrait cuts an axis of n pixels; the other axis decides whether it cuts at all."""
    if shard_size >= n * other:
        return [0, n]
    count = -(-n // max(int(shard_size**0.5), 1))
    return [*(k * (n // count) for k in range(count)), n]


def far(labels: np.ndarray, lines: tuple[list[int], list[int]], margin: int) -> dict[int, tuple[int, int]]:
    """Return the ids whose bounding boxes keep a margin (px) from every line, and where they are (y, x)."""
    from scipy.ndimage import find_objects

    found = {}
    for k, box in enumerate(find_objects(labels.astype(np.int64)), start=1):
        if box is not None and all(
            s.stop + margin <= at or at + margin <= s.start for s, axis in zip(box, lines, strict=True) for at in axis
        ):
            found[k] = tuple((s.start + s.stop) // 2 for s in box)
    return found


def unmatched(
    theirs: np.ndarray, ours: np.ndarray, ids: dict[int, tuple[int, int]], dropped: list[list[Any]]
) -> tuple[int, list[tuple[str, int]]]:
    """Return how many of their ids are matched, and of the others why not."""
    pairs = pair_counts(theirs, ours)
    area = [np.zeros(int(side.max()) + 1, np.int64) for side in (pairs.truth, pairs.found)]
    np.add.at(area[0], pairs.truth.astype(np.int64), pairs.pixels)
    np.add.at(area[1], pairs.found.astype(np.int64), pairs.pixels)
    shared: dict[int, list[tuple[int, int]]] = {}
    covers: dict[int, set[int]] = {}  # our object: their objects that lie half in it
    for their, our, pixels in zip(*(np.asarray(side).astype(np.int64).tolist() for side in pairs), strict=True):
        if their and our:
            shared.setdefault(their, []).append((pixels, our))
            if 2 * pixels >= area[0][their]:
                covers.setdefault(our, set()).add(their)
    lost = {
        int(theirs[min(int(y), theirs.shape[0] - 1), min(int(x), theirs.shape[1] - 1)]): why for y, x, why in dropped
    }
    matched, rest = 0, []
    for k in ids:
        partners = sorted(shared.get(k, []), reverse=True)
        pixels, best = partners[0] if partners else (0, 0)
        if pixels and pixels / (area[0][k] + area[1][best] - pixels) >= MATCHED:
            matched += 1
        else:
            within = sum(2 * n >= area[1][our] for n, our in partners)
            rest.append((_why(k, pixels, best, within, area, covers, lost), k))
    return matched, rest


def _why(
    k: int,
    pixels: int,
    best: int,
    within: int,
    area: list[np.ndarray],
    covers: dict[int, set[int]],
    lost: dict[int, str],
) -> str:
    if 10 * pixels < area[0][k]:
        return f"dropped by us: {lost[k]}" if k in lost else "not found by us"
    if within > 1:
        return "parted by us"
    if len(covers.get(best, ())) > 1:
        return "not parted by us"
    ratio = area[1][best] / area[0][k]
    if ratio > 1.2:
        return "larger with us"
    if ratio < 1 / 1.2:
        return "smaller with us" if k not in lost else f"a part dropped by us: {lost[k]}"
    return "other outline"


def match(args: argparse.Namespace, bench: Bench) -> None:
    """Print the share of scPortrait's nuclei that we find."""
    if not registered(args.against):
        return
    if args.scportrait_python is None:
        print("  no interpreter given (--scportrait-python)")
        return
    found, ours = bench.ours(args.against, table=True)
    height, width = bench.shape
    for sharded in (False, True):
        theirs = bench.kept(sharded)
        lines = [0, height], [0, width]
        if sharded:
            lines = cuts(height, width, args.shard_size), cuts(width, height, args.shard_size)
        margin = args.overlap if sharded else args.margin
        ids = far(theirs, lines, margin)
        matched, rest = unmatched(theirs, ours, ids, found["dropped"])
        what, total = "sharded" if sharded else "in one piece", int((np.unique(theirs) > 0).sum())
        print(f"  scPortrait {what}: {total} nuclei, {len(ids)} at least {margin} px from borders")
        print(f"    matched by {args.against} at IoU {MATCHED}: {matched} ({matched / max(len(ids), 1):.1%})")
        for why, count in Counter(why for why, _ in rest).most_common():
            places = [str(ids[k]) for w, k in rest if w == why][: args.list]
            print(f"    {count:6}  {why:32} (y, x) {', '.join(places)}")
        back = far(ours, lines, margin)
        known, _ = unmatched(ours, theirs, back, [])
        print(f"    of {len(back)} of ours there, {len(back) - known} match none of scPortrait's", flush=True)


# --- wga -------------------------------------------------------------------------------------------------------------


def wga(args: argparse.Namespace, folder: Path) -> None:
    """Print the F1 of the cells of synthetic tissue."""
    from spatialdata_segment import segment
    from spatialdata_segment.testing import Tissue

    ours = registered("wga")
    if not ours and args.scportrait_python is None:
        return
    totals: dict[str, list[Scores]] = {}
    for seed in range(args.seeds):
        tissue = Tissue(
            (args.side, args.side),
            seed=seed,
            cell_diameter=args.diameter,
            density=args.density,
            noise=args.noise,
            uneven_light=args.uneven_light,
            multinucleated=args.multinucleated,
        )
        image = tissue.image(chunks=args.side).compute()
        cells = np.asarray(tissue.cells(chunks=args.side))
        if ours:
            sdata = in_memory(image, list(tissue.channels))
            segment(sdata, "image", "wga", shapes=False, table=False, progress=False, n_jobs=args.threads)
            labels = np.asarray(sdata["segmentation_cell_labels"].data)
            totals.setdefault("wga", []).append(match_scores(cells, labels, LEVELS))
        if args.scportrait_python is not None:
            np.save(folder / "tissue.npy", image)
            command = [args.scportrait_python, str(Path(__file__).with_name("_scportrait.py")), "--workflow", "wga"]
            call([*command, str(folder / "tissue.npy"), str(folder / "cells.npy"), "--unsharded"])
            labels = np.load(folder / "cells.npy")[1]
            totals.setdefault("scPortrait, in one piece", []).append(match_scores(cells, labels, LEVELS))
    print(
        f"  {args.seeds} tissues of {args.side} x {args.side} px, cells of {args.diameter} px, density {args.density}, "
        f"noise {args.noise}, uneven light {args.uneven_light}, multinucleated {args.multinucleated}"
    )
    for name, scores in totals.items():
        f1 = np.mean([score.f1 for score in scores], axis=0)
        cells_ = sum(score.n_found for score in scores), sum(score.n_truth for score in scores)
        goal = f"   (goal: {GOAL_WGA:.2f} at {MATCHED})" if name == "wga" else ""
        print(f"  {name:26}{cells_[0]} of {cells_[1]} cells, F1 at {LEVELS}: {'  '.join(f'{n:.3f}' for n in f1)}{goal}")


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workflow", default="dapi", help="of folds and mosaic")
    parser.add_argument("--against", default="dapi-scportrait", help="what match compares scPortrait with")
    parser.add_argument("--scportrait-python")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--cols", type=int, default=8)
    parser.add_argument("--shard-size", type=int, default=4_000_000)
    parser.add_argument(
        "--overlap", type=int, default=100, help="of scPortrait's shards, and the margin of match there"
    )
    parser.add_argument("--margin", type=int, default=32, help="of match from the image border, px")
    parser.add_argument("--list", type=int, default=4, help="places that match lists for each reason")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scportrait-threads", type=int, default=1, help="its processes; see speed")
    parser.add_argument(
        "--folder", type=Path, help="where the mosaic and scPortrait's labels stay; temporary by default"
    )
    parser.add_argument("--side", type=int, default=1024, help="of the tissues of wga, px")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--diameter", type=float, default=40.0)
    parser.add_argument("--density", type=float, default=0.92)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--uneven-light", type=float, default=0.3)
    parser.add_argument("--multinucleated", type=float, default=0.0)
    parser.add_argument("--segment", type=Path, nargs=2, metavar=("STORE", "LABELS"), help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.segment:
        print(json.dumps(segment_store(*args.segment, args.workflow, args.shard_size, args.threads, args.table)))
        return
    if args.data is None and set(args.parts) != {"wga"}:
        parser.error("--data is missing")
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(args, folder)
        runs = {
            "folds": lambda: folds(args),
            "mosaic": lambda: pooled(args, bench),
            "speed": lambda: speed(args, bench),
            "match": lambda: match(args, bench),
            "wga": lambda: wga(args, folder),
        }
        for part in PARTS:
            if part in args.parts:
                print(f"\n{part}", flush=True)
                runs[part]()


if __name__ == "__main__":
    main()
