"""Runs ended by SIGKILL at random moments and resumed, against the same run that nobody disturbed.

    python benchmarks/kill.py --data PATH|synthetic [--runs 20] [--seed 0]

Every run starts from a fresh copy of a store, is killed one to three times (before anything is written;
while elements are written; while they are put in place; anywhere; some of them while an earlier result is being
replaced), and then runs to its end. After every kill the store is opened, and each element must be the old one
or the new one, whole.
At the end its bytes must be those of the undisturbed run, and no shard that was finished at a kill may have
been computed again. Between kill and resume of every fourth run, files of the scratch are truncated, get a bit
flipped, or are removed. Exit code 1 where anything of this fails. Linux and macOS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spatialdata as sd

from spatialdata_segment import ExpandNuclei, Function, ThresholdNuclei, Workflow, segment
from spatialdata_segment.engine.entries import sound
from spatialdata_segment.errors import ExistsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spatialdata_segment.methods.base import Decoded, View

DOT = ".spatialdata_segment"
STAGED = f"{DOT}/stage-*/new.zarr/labels/*"
JOURNAL = f"{DOT}/journal.json"

Shard = tuple[str, tuple[int, ...]]
"""Mask, and first and last pixel of the core."""

_context = multiprocessing.get_context("forkserver")
_log: Path | None = None


def blobs(image: np.ndarray) -> np.ndarray:
    """Label what is bright: the callable of the runs."""
    from scipy.ndimage import gaussian_filter, label

    smooth = gaussian_filter(image[0].astype(np.float32), 1)
    return label(smooth > (30 if image.dtype == np.uint8 else 3000))[0]


def _say(mask: str, view: View) -> None:
    """Note that a shard is computed; one write, so that lines of a process that dies stay whole."""
    assert _log is not None
    core = view.window.core
    line = f"{os.getpid()} {mask} {' '.join(map(str, core.start + core.stop))}\n"
    file = os.open(_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


class LoggedFunction(Function):
    """A callable that says which shard it computes."""

    def decode(self, maps: np.ndarray, view: View) -> Decoded:  # noqa: D102
        _say("cell", view)
        return super().decode(maps, view)


class LoggedThreshold(ThresholdNuclei):
    """Nuclei that say which shard they are of."""

    def decode(self, maps: np.ndarray, view: View) -> Decoded:  # noqa: D102
        _say("nucleus", view)
        return super().decode(maps, view)


class LoggedExpand(ExpandNuclei):
    """Cells that say which shard they are of."""

    def decode(self, maps: np.ndarray, view: View) -> Decoded:  # noqa: D102
        _say("cell", view)
        return super().decode(maps, view)


def workflow(name: str) -> Any:
    """Return what the runs of that name do."""
    if name == "callable":
        return LoggedFunction(function=blobs, version="1", context_px=8)
    return Workflow(nucleus=LoggedThreshold(), cell=LoggedExpand(distance=4))


def run(store: Path, name: str, shard_size: int, out: Path, overwrite: bool) -> None:
    """Segment a store: what the processes do that are killed."""
    global _log
    _log = out / "computed"
    warnings.simplefilter("ignore")
    logging.basicConfig(filename=out / "log", level=logging.WARNING, force=True)
    sdata = sd.read_zarr(store)
    (out / "started").touch()
    try:
        segment(sdata, "image", workflow(name), shard_size=shard_size, n_jobs=2, overwrite=overwrite, progress=False)
    except ExistsError:  # killed after the result was complete: the next call has put it in its place
        (out / "existed").touch()
    (out / "finished").touch()


def make_store(path: Path, data: str, side: int = 1500) -> Path:
    """Write the image: a mosaic of real nuclei, or a synthetic tissue."""
    if data == "synthetic":
        from spatialdata_segment.testing import Tissue

        Tissue((side, side - 83), seed=3).to_spatialdata(chunks=256).write(path)
    else:
        from _mosaic import mosaic_spatialdata

        mosaic_spatialdata(Path(data), path, 2, 2, chunks=256)
    return path


def tree(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a store, without what is ours beside the result."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and DOT not in path.relative_to(folder).parts
    }


def elements(files: dict[str, str]) -> dict[str, str]:
    """Return one text for each element of a store, the same only where all its files are."""
    parts: dict[str, list[str]] = {}
    for name, digest in files.items():
        head = name.split("/")
        if len(head) > 2:
            parts.setdefault("/".join(head[:2]), []).append(f"{name} {digest}")
    return {name: hashlib.sha256("\n".join(lines).encode()).hexdigest() for name, lines in parts.items()}


def computed(out: Path) -> list[tuple[int, Shard]]:
    """Return process and shard of all that was computed, in order."""
    if not (out / "computed").exists():
        return []
    rows = [line.split() for line in (out / "computed").read_text().splitlines()]
    return [(int(pid), (mask, tuple(map(int, at)))) for pid, mask, *at in rows]


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: what it starts from, what it ends with, and how long its parts take."""

    name: str
    replaces: bool
    start: Path
    shard_size: int
    old: dict[str, str]
    new: dict[str, str]
    shards: dict[str, list[Shard]]
    seconds: float
    written_at: float
    swapped_at: float

    def path(self, store: Path, shard: Shard) -> Path | None:
        """Return the entry of a shard in the scratch of a store, if there is a sound one."""
        mask, _ = shard
        index = self.shards[mask].index(shard)
        found = list((store / DOT / "scratch").glob(f"*/{mask}/shards/{index:07d}.shard"))
        return found[0] if found and sound(found[0]) is not None else None

    def finished(self, store: Path) -> set[Shard]:
        """Return the shards whose results lie complete in the scratch."""
        return {shard for shards in self.shards.values() for shard in shards if self.path(store, shard)}


def _start(ref: tuple[str, int, bool], store: Path, out: Path) -> Any:
    name, shard_size, overwrite = ref
    for mark in ("started", "existed", "finished"):
        (out / mark).unlink(missing_ok=True)
    process = _context.Process(target=run, args=(store, name, shard_size, out, overwrite))
    process.start()
    while not (out / "started").exists() and process.is_alive():
        time.sleep(0.0005)
    return process


def _until(process: Any, store: Path, pattern: str) -> None:
    while process.is_alive() and not any(store.glob(pattern)):
        time.sleep(0.0005)


def reference(folder: Path, name: str, image: Path, earlier: Path | None, shard_size: int, repeat: int) -> Reference:
    """Run undisturbed; more than once, because the first run may compile, and the bytes must repeat."""
    start = earlier or image
    before = tree(start)
    results = []
    for k in range(repeat):
        store, out = folder / f"{name}-{bool(earlier)}-{k}.zarr", folder / f"{name}-{bool(earlier)}-{k}"
        shutil.copytree(start, store)
        out.mkdir()
        process = _start((name, shard_size, earlier is not None), store, out)
        began = time.perf_counter()
        _until(process, store, STAGED)
        written = time.perf_counter() - began
        _until(process, store, JOURNAL)
        swapped = time.perf_counter() - began
        process.join()
        seconds = time.perf_counter() - began
        if process.exitcode or not (out / "finished").exists():
            raise RuntimeError(f"the undisturbed run of {name} failed: {(out / 'log').read_text()}")
        results.append(tree(store))
    if results[0] != results[-1]:
        raise RuntimeError(f"two undisturbed runs of {name} differ: {different(results[0], results[-1])}")
    record = json.loads((store / DOT / "segmentation.run.json").read_text())
    shape = sd.read_zarr(store)["image"].shape[1:]
    shards = {mask: cores(mask, shape, plan["grid"]) for mask, plan in record["plan"].items()}
    unseen = {shard for found in shards.values() for shard in found} - {shard for _, shard in computed(out)}
    if unseen:
        raise RuntimeError(f"the undisturbed run of {name} has not computed {sorted(unseen)}")
    old = before if earlier else {}
    return Reference(
        name, earlier is not None, start, shard_size, elements(old), results[-1], shards, seconds, written, swapped
    )


def cores(mask: str, shape: tuple[int, ...], grid: list[int]) -> list[Shard]:
    """Return the shards of an equal plan in their order; other windows are second looks of one of them."""
    edges = [[n * i // k for i in range(k + 1)] for n, k in zip(shape, grid, strict=True)]
    spans = product(*([*pairwise(e)] for e in edges))
    return [(mask, (*(a for a, _ in span), *(b for _, b in span))) for span in spans]


def different(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Return the files that two trees do not share."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


@dataclass
class Trial:
    """One run: when it was killed, and what was wrong."""

    kills: list[str] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    damaged: int = 0
    wrong: list[str] = field(default_factory=list)


def kill_once(ref: Reference, store: Path, out: Path, when: str, share: float) -> bool:
    """Start a run and kill it; return False where it was done before."""
    process = _start((ref.name, ref.shard_size, ref.replaces), store, out)
    if when == "any":
        time.sleep(share * ref.seconds)
    elif when == "shards":
        time.sleep(share * ref.written_at)
    elif when == "write":
        _until(process, store, STAGED)
        time.sleep(share * (ref.swapped_at - ref.written_at))
    else:
        _until(process, store, JOURNAL)
        time.sleep(share * (ref.seconds - ref.swapped_at))
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return bool(process.exitcode == -signal.SIGKILL)


def inspect(ref: Reference, store: Path) -> list[str]:
    """Open a store that a killed run left, and look at each element."""
    wrong = []
    now, new = elements(tree(store)), elements(ref.new)
    old = ref.old or {name: digest for name, digest in new.items() if name.startswith("images/")}
    for name in sorted(now.keys() | old.keys() | new.keys()):
        if now.get(name) not in {old.get(name), new.get(name)}:
            wrong.append(f"{name} is neither the old nor the new one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = sd.read_zarr(store)
        shown = {f"{kind}/{name}" for kind, name, _ in read.gen_elements()}
        if shown != now.keys():
            wrong.append(f"read_zarr shows {sorted(shown)}, on disk are {sorted(now)}")
    except Exception as error:  # noqa: BLE001 (whatever it raises, the store does not open)
        wrong.append(f"the store does not open: {type(error).__name__}: {error}")
    return wrong


def damage(ref: Reference, store: Path, rng: np.random.Generator) -> dict[Shard, str]:
    """Truncate, flip a bit of, and remove up to three finished shards; and spoil other files of the scratch."""
    finished = sorted(ref.finished(store))
    done: dict[Shard, str] = {}
    for k, at in enumerate(rng.permutation(len(finished))[:3]):
        path = ref.path(store, finished[at])
        assert path is not None
        done[finished[at]] = _spoil(path, ("truncated", "flipped", "missing")[k], rng)
    others = [p for p in (store / DOT / "scratch").rglob("*") if p.suffix in {".core", ".ids", ".entry", ".json"}]
    for path in rng.permutation(np.array(sorted(map(str, others)), object))[:3]:
        _spoil(Path(path), str(rng.choice(["truncated", "flipped", "missing"])), rng)
    return done


def _spoil(path: Path, how: str, rng: np.random.Generator) -> str:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: int(rng.integers(len(content)))])
    else:
        at = int(rng.integers(len(content)))
        content[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
    return how


def trial(ref: Reference, folder: Path, moments: Iterable[tuple[str, float]], rng: Any, spoil: bool) -> Trial:
    """Kill a run at each of the moments, look, resume; then let it end, and compare."""
    result = Trial()
    store, out = folder / "trial.zarr", folder / "trial"
    finished: set[Shard] = set()
    spoiled: dict[Shard, str] = {}
    for when, share in moments:
        while True:
            if not result.kills:
                shutil.rmtree(store, ignore_errors=True)
                shutil.rmtree(out, ignore_errors=True)
                shutil.copytree(ref.start, store)
                out.mkdir()
            seen = len(computed(out))
            if kill_once(ref, store, out, when, share):
                break
            if result.kills:  # it ended before the moment came
                return _ended(ref, store, out, result, finished, seen, spoiled)
            share *= 0.8
        result.kills.append(f"{when} {share:.2f}")
        result.wrong += inspect(ref, store)
        result.wrong += _twice(out, seen, finished)
        finished = ref.finished(store)
        result.kept.append(len(finished))
        if spoil and not spoiled:
            spoiled = damage(ref, store, rng)
            result.damaged = len(spoiled)
            finished -= spoiled.keys()
    seen = len(computed(out))
    process = _start((ref.name, ref.shard_size, ref.replaces), store, out)
    process.join()
    return _ended(ref, store, out, result, finished, seen, spoiled)


def _ended(
    ref: Reference, store: Path, out: Path, result: Trial, finished: set[Shard], seen: int, spoiled: dict[Shard, str]
) -> Trial:
    if not (out / "finished").exists():
        result.wrong.append(f"the resumed run failed; log: {(out / 'log').read_text()}")
    result.wrong += _twice(out, seen, finished)
    result.wrong += [f"{name} differs at the end" for name in different(tree(store), ref.new)[:5]]
    left = [p for p in (store / DOT).glob("*") if p.name.startswith(("stage", "journal", "partial"))]
    result.wrong += [f"{path.name} is left behind" for path in left]
    log = (out / "log").read_text() if (out / "log").exists() else ""
    again = {shard for _, shard in computed(out)[seen:]}
    existed = (out / "existed").exists()
    for shard, how in spoiled.items():
        index = ref.shards[shard[0]].index(shard)
        if shard not in again and len(result.kills) == 1 and not existed:
            result.wrong.append(f"{how} entry of {shard} was not computed again")
        if how != "missing" and not existed and f"{shard[0]}/shards/{index:07d}.shard" not in log:
            result.wrong.append(f"{how} entry of {shard} is not in the log")
    return result


def _twice(out: Path, seen: int, finished: set[Shard]) -> list[str]:
    again = finished & {shard for _, shard in computed(out)[seen:]}
    return [f"{len(again)} finished shards computed again: {sorted(again)[:3]}"] if again else []


def moments_of(k: int, rng: np.random.Generator) -> list[tuple[str, float]]:
    """Return the moments of the k-th run: before writing, while writing, while putting in place, anywhere."""
    kinds = ("shards", "write", "swap", "any")
    count = int(rng.integers(1, 4))
    return [(kinds[(k + 3 * j) % 4], float(rng.uniform(0.02, 1))) for j in range(count)]


def references(folder: Path, data: str, shard_size: int, side: int = 1500, repeat: int = 2) -> list[Reference]:
    """Run undisturbed: each workflow on the bare image, and in place of the other's result."""
    logging.getLogger("ome_zarr").setLevel(logging.ERROR)
    _context.set_forkserver_preload(["spatialdata_segment", "spatialdata", __name__])
    image = make_store(folder / "image.zarr", data, side)
    fresh = [reference(folder, name, image, None, shard_size, repeat) for name in ("callable", "workflow")]
    earlier = {ref.name: folder / f"{ref.name}-False-{repeat - 1}.zarr" for ref in fresh}
    swaps = [("callable", "workflow"), ("workflow", "callable")]
    return fresh + [reference(folder, name, image, earlier[other], shard_size, repeat) for name, other in swaps]


def campaign(folder: Path, data: str, runs: int, seed: int, shard_size: int = 160_000, side: int = 1500) -> int:
    """Run and print all; return the number of runs in which something was wrong."""
    rng = np.random.default_rng(seed)
    refs = references(folder, data, shard_size, side)
    for ref in refs:
        n = sum(map(len, ref.shards.values()))
        print(
            f"{ref.name:9} {'replacing' if ref.replaces else 'fresh':10} {n} shards, {ref.seconds:.2f} s undisturbed, "
            f"writing from {ref.written_at:.2f} s, putting in place from {ref.swapped_at:.2f} s"
        )
    print(f"\n{'run':>4} {'what':20} {'killed at':34} {'finished then':18} {'damaged':>7}  verdict", flush=True)
    bad = kills = 0
    for k in range(runs):
        ref = refs[int(rng.permutation(4)[0])] if k >= 4 else refs[k]
        spoil = k % 4 == 3
        moments = [("any", float(rng.uniform(0.4, 0.95)))] if spoil else moments_of(k, rng)
        result = trial(ref, folder, moments, rng, spoil)
        kills += len(result.kills)
        bad += bool(result.wrong)
        what = f"{ref.name}{', replacing' if ref.replaces else ''}"
        kept = ", ".join(map(str, result.kept))
        print(
            f"{k + 1:4} {what:20} {', '.join(result.kills):34} {kept:18} {result.damaged:7}  "
            f"{'; '.join(result.wrong) or 'identical'}",
            flush=True,
        )
    print(f"\n{runs} runs, {kills} kills: {runs - bad} identical to the undisturbed run, {bad} wrong")
    return bad


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="folder that holds dsb2018/, or 'synthetic'")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=160_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bad = campaign(Path(folder), args.data, args.runs, args.seed, args.shard_size)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
