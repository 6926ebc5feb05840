"""One run killed and resumed, and what may not come of it: for `kill.py`."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spatialdata as sd
import zarr
from _kill_runs import DOT, MAPS, Unit, computed, different, elements, maps_of, n_done, run, tree, units

from spatialdata_segment.engine.entries import sound
from spatialdata_segment.engine.maps import block_sums

if TYPE_CHECKING:
    from collections.abc import Iterable

MARKS = ("start", "first block", "last block", "manifest", "seams", "write", "swap", "end")
"""What a run comes to, in order."""
KINDS: dict[str, tuple[str, str]] = {
    "any": ("start", "end"),
    "statistics": ("start", "first block"),
    "blocks": ("first block", "last block"),
    "manifest": ("last block", "manifest"),
    "shards": ("manifest", "seams"),
    "seams": ("seams", "write"),
    "write": ("write", "swap"),
    "swap": ("swap", "end"),
}
"""Where a run is killed: between two marks of its way."""
HOW = ("truncated", "flipped", "missing")
"""What befalls a file."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["spatialdata_segment", "spatialdata", "_kill_runs"])


def has_reached(mark: str, store: Path, n_blocks: int) -> bool:
    """Tell whether a run has come to a mark."""
    if mark in ("first block", "last block"):
        return n_done(store) >= (1 if mark == "first block" else n_blocks)
    patterns = {
        "manifest": f"{MAPS}/maps.json",
        "seams": f"{DOT}/scratch/*/*/*/*.ids",
        "write": f"{DOT}/stage-*/new.zarr/labels/*",
        "swap": f"{DOT}/journal.json",
    }
    return any(store.glob(patterns[mark]))


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: what it starts from, what it ends with, and when it reaches its marks (s)."""

    name: str
    act: str
    replaces: bool
    start: Path
    options: dict[str, Any]
    old: dict[str, str]
    new: dict[str, str]
    maps: dict[str, str]
    shards: dict[str, list[Unit]]
    at: dict[str, float]

    @property
    def n_blocks(self) -> int:
        """Blocks of maps."""
        return sum(len(found) for what, found in self.shards.items() if what.endswith(".maps"))

    def path(self, store: Path, unit: Unit) -> Path | None:
        """Return the entry of a shard in the scratch of a store, if there is a sound one."""
        mask, _ = unit
        index = self.shards[mask].index(unit)
        found = list((store / DOT / "scratch").glob(f"*/{mask}/shards/{index:07d}.shard"))
        return found[0] if found and sound(found[0]) is not None else None

    def finished(self, store: Path) -> set[Unit]:
        """Return the shards and the blocks of maps whose results lie complete in a store."""
        found: set[Unit] = set()
        for what, every in self.shards.items():
            if not what.endswith(".maps"):
                found |= {unit for unit in every if self.path(store, unit)}
            elif self.act != "decode" and (store / MAPS / what[:-5] / "done" / "zarr.json").exists():
                sums = block_sums(zarr.open_group(store / MAPS / what[:-5], mode="r"))
                found |= {unit for unit, done in zip(every, sums, strict=True) if done}
        return found


def start(ref: tuple[str, str, dict[str, Any]], store: Path, out: Path) -> Any:
    """Start a run."""
    name, act, options = ref
    for mark in ("started", "existed", "failed", "finished"):
        (out / mark).unlink(missing_ok=True)
    process = _context.Process(target=run, args=(act, store, name, out, options))
    process.start()
    while not (out / "started").exists() and process.is_alive():
        time.sleep(0.0005)
    return process


def watch(process: Any, store: Path) -> dict[str, float]:
    """Wait for a run to end, and tell when it reached what it reached."""
    began, at, blocks = time.perf_counter(), {"start": 0.0}, -1
    while process.is_alive():
        now = time.perf_counter() - began
        for mark in ("first block", "manifest", "seams", "write", "swap"):
            if mark not in at and has_reached(mark, store, 0):
                at[mark] = now
        if (n := n_done(store)) > blocks:
            at["last block"], blocks = now, n
        time.sleep(0.0005)
    process.join()
    at["end"] = time.perf_counter() - began
    for later, mark in zip(MARKS[:0:-1], MARKS[-2::-1], strict=True):  # what it has not ends with what it has
        at.setdefault(mark, at[later] if mark != "manifest" else 0.0)
    return at


def reference(
    folder: Path, name: str, act: str, begin: Path, options: dict[str, Any], repeat: int, old: dict[str, str]
) -> Reference:
    """Run undisturbed; more than once, because the first run may compile, and the bytes must repeat."""
    results = []
    for k in range(repeat):
        label = f"{name}-{act}-{options.get('overwrite', False)}"
        store, out = folder / f"{label}.zarr", folder / f"{label}-{k}"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(begin, store)
        out.mkdir()
        process = start((name, act, options), store, out)
        at = watch(process, store)
        if process.exitcode or not (out / "finished").exists():
            raise RuntimeError(f"the undisturbed run of {label} failed: {(out / 'log').read_text()}")
        results.append((tree(store), maps_of(store)))
    if results[0] != results[-1]:
        raise RuntimeError(f"two undisturbed runs of {label} differ: {different(results[0][0], results[-1][0])}")
    shards = {}
    if act in ("fused", "predict"):
        kept = json.loads((store / MAPS / "maps.json").read_text())
        shards = {f"{mask}.maps": units(f"{mask}.maps", at["blocks"]) for mask, at in kept["masks"].items()}
    if act != "predict":
        name_of = "resegment" if act == "again" else "run"
        record = json.loads((store / DOT / f"segmentation.{name_of}.json").read_text())
        shape = sd.read_zarr(store)["image"].shape[1:]
        shards |= {mask: units(mask, equal(shape, plan["grid"])) for mask, plan in record["plan"].items()}
    unseen = {unit for found in shards.values() for unit in found} - {unit for _, unit in computed(out)}
    if unseen and (act != "again" or not computed(out)):  # of the plan what the region needs
        raise RuntimeError(f"the undisturbed run of {label} has not computed {sorted(unseen)}")
    return Reference(name, act, "overwrite" in options, begin, options, elements(old), *results[-1], shards, at)


def equal(shape: tuple[int, ...], grid: list[int]) -> list[list[int]]:
    """Return the sizes of the cores of an equal plan along every axis."""
    return [np.diff([n * i // k for i in range(k + 1)]).tolist() for n, k in zip(shape, grid, strict=True)]


@dataclass
class Trial:
    """One run: when it was killed, and what was wrong."""

    kills: list[str] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    damaged: int = 0
    told: int = 0
    wrong: list[str] = field(default_factory=list)

    def followed_by(self, other: Trial) -> Trial:
        """Return what both phases say."""
        return Trial(
            self.kills + other.kills,
            self.kept + other.kept,
            self.damaged + other.damaged,
            self.told + other.told,
            self.wrong + other.wrong,
        )


def kill_once(ref: Reference, store: Path, out: Path, when: str, share: float) -> bool:
    """Start a run and kill it; return False where it was done before."""
    process = start((ref.name, ref.act, ref.options), store, out)
    first, last = KINDS[when]
    if first != "start" and ref.at[first] > 0:
        while process.is_alive() and not has_reached(first, store, ref.n_blocks):
            time.sleep(0.0005)
    time.sleep(share * max(0.0, ref.at[last] - ref.at[first]))
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode != -signal.SIGKILL and not (out / "finished").exists() and not (out / "existed").exists():
        said = (out / "failed").read_text() if (out / "failed").exists() else f"exit code {process.exitcode}"
        raise RuntimeError(f"{ref.act} of {ref.name} failed before it was killed: {said}")
    return bool(process.exitcode == -signal.SIGKILL)


def inspect(ref: Reference, store: Path) -> list[str]:
    """Open a store that a killed run left, and look at each element."""
    wrong = []
    waits = (store / DOT / "journal.json").exists()
    now, new = elements(tree(store)), elements(ref.new)
    old = ref.old or {name: digest for name, digest in new.items() if name.startswith("images/")}
    for name in sorted(now.keys() | old.keys() | new.keys()):
        if now.get(name) not in {old.get(name), new.get(name)}:
            wrong.append(f"{name} is neither the old nor the new one")
    if not waits and now not in (old, new):
        wrong.append("some elements are old and some are new, and no journal says so")
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


def damage(ref: Reference, store: Path, rng: np.random.Generator) -> dict[Unit, str]:
    """Truncate, flip a bit of, and remove up to three finished shards, and as many blocks; other files as well."""
    finished = sorted(ref.finished(store))
    done: dict[Unit, str] = {}
    shards = [unit for unit in finished if not unit[0].endswith(".maps")]
    for how, at in zip(HOW, rng.permutation(len(shards))[:3], strict=False):
        path = ref.path(store, shards[at])
        assert path is not None
        done[shards[at]] = spoil(path, how, rng)
    blocks = [unit for unit in finished if unit[0].endswith(".maps")]
    for how, at in zip(HOW, rng.permutation(len(blocks))[:3], strict=False):
        spoil(_file_of(ref, store, blocks[at], rng), how, rng)
        done[blocks[at]] = how
    others = [p for p in (store / DOT / "scratch").rglob("*") if p.suffix in {".core", ".ids", ".entry", ".json"}]
    for path in rng.permutation(np.array(sorted(map(str, others)), object))[:3]:
        spoil(Path(path), str(rng.choice(HOW)), rng)
    return done


def _file_of(ref: Reference, store: Path, block: Unit, rng: np.random.Generator) -> Path:
    """Return a file of a block: one of its chunks of maps, or (one in three) what says that it is done."""
    mask, at = block[0][:-5], block[1]
    folder = store / MAPS / mask
    if rng.random() < 1 / 3:
        shape = zarr.open_array(folder / "done", mode="r").shape
        place = np.unravel_index(ref.shards[block[0]].index(block), shape)
        return folder / "done" / "c" / "/".join(map(str, place))
    array = zarr.open_array(folder / "maps", mode="r")
    first = [a // c for a, c in zip(at[: len(at) // 2], array.chunks[1:], strict=True)]
    return folder / "maps" / "c" / "0" / "/".join(map(str, first))


def spoil(path: Path, how: str, rng: np.random.Generator) -> str:
    """Damage a file."""
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


def fresh(store: Path, out: Path, begin: Path) -> None:
    """Begin anew with a copy of a store."""
    for folder in (store, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(begin, store)
    out.mkdir()


def trial(
    ref: Reference,
    folder: Path,
    moments: Iterable[tuple[str, float]],
    rng: Any,
    spoils: bool,
    begin: Path | None = None,
) -> Trial:
    """Kill a run at each of the moments, look, resume; then let it end, and compare."""
    result = Trial()
    store, out = folder / "trial.zarr", folder / "trial"
    finished: set[Unit] = set()
    spoiled: dict[Unit, str] = {}
    for when, share in moments:
        while True:
            if not result.kills:
                fresh(store, out, begin or ref.start)
            seen = len(computed(out))
            if kill_once(ref, store, out, when, share):
                break
            if result.kills:  # it ended before the moment came
                return _ended(ref, store, out, result, finished, seen, spoiled)
            share *= 0.8
        result.kills.append(f"{when} {share:.2f}")
        result.wrong += inspect(ref, store)
        if (maps := maps_of(store)) and maps != ref.maps:
            result.wrong.append("maps that say that they are complete are not those of the undisturbed run")
        result.wrong += twice(out, seen, finished)
        finished = ref.finished(store)
        result.kept.append(len(finished))
        if spoils and not spoiled:
            spoiled = damage(ref, store, rng)
            result.damaged = len(spoiled)
            finished -= spoiled.keys()
    seen = len(computed(out))
    start((ref.name, ref.act, ref.options), store, out).join()
    return _ended(ref, store, out, result, finished, seen, spoiled)


def _ended(
    ref: Reference, store: Path, out: Path, result: Trial, finished: set[Unit], seen: int, spoiled: dict[Unit, str]
) -> Trial:
    log = (out / "log").read_text() if (out / "log").exists() else ""
    if not (out / "finished").exists():
        said = (out / "failed").read_text() if (out / "failed").exists() else ""
        result.wrong.append(f"the resumed run failed: {said}; log: {log}")
    result.wrong += twice(out, seen, finished)
    result.wrong += [f"{name} differs at the end" for name in different(tree(store), ref.new)[:5]]
    result.wrong += [f"the maps of {mask} differ at the end" for mask in different(maps_of(store), ref.maps)]
    left = [p for p in (store / DOT).glob("*") if p.name.startswith(("stage", "journal", "partial"))]
    result.wrong += [f"{path.name} is left behind" for path in left]
    again = {unit for _, unit in computed(out)[seen:]}
    if (out / "existed").exists():
        return result
    for unit, how in spoiled.items():
        index, is_block = ref.shards[unit[0]].index(unit), unit[0].endswith(".maps")
        if unit not in again and len(result.kills) == 1:
            result.wrong.append(f"{how} entry of {unit} was not computed again")
        told = "maps damaged" if is_block else f"{unit[0]}/shards/{index:07d}.shard"
        if how != "missing" and told not in log:
            result.wrong.append(f"{how} entry of {unit} is not in the log")
    return result


def twice(out: Path, seen: int, finished: set[Unit]) -> list[str]:
    """Return what was computed since, though it was finished."""
    again = finished & {unit for _, unit in computed(out)[seen:]}
    return [f"{len(again)} finished shards computed again: {sorted(again)[:3]}"] if again else []
