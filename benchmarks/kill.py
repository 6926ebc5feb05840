"""Runs ended by SIGKILL at random moments and resumed, against the same run that nobody disturbed.

    python benchmarks/kill.py --data PATH|synthetic [--runs 20] [--phases 0] [--seed 0]

Every run starts from a fresh copy of a store, is killed one to three times (before anything is written; while
elements are written; while they are put in place; anywhere; some of them while an earlier result is being
replaced), and then runs to its end. After every kill the store is opened, and each element must be the old one
or the new one, whole. At the end its bytes must be those of the undisturbed run, and no shard that was finished at a
kill may have been computed again. Between kill and resume of every fourth run, files of the scratch are truncated, get
a bit flipped, or are removed.

``--phases`` runs are of the two phases: two of three are `predict`, killed (in the statistics; between and during
blocks; as the manifest is written) and resumed, then `decode` of its maps, killed (in the shards; the seams; while
elements are written; while they are put in place) and resumed; the third is `segment` with ``keep_maps=True``, killed
in any of these. The maps must be those of the undisturbed run, the result that of the run in one, and no block that
was written may have been predicted again. Damage between kill and resume of every fourth befalls maps as well: those of
finished blocks, and what says that they are finished. `predict` must mend it, `decode` tell it or have no more need
of it.

``--again`` runs are of `resegment`: a region of a result again, killed among the shards, while elements are written,
while they are put in place, or anywhere, and resumed.

Exit code 1 where anything of this fails. Linux and macOS.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from _kill_runs import computed, different, make_store, maps_of, tree
from _kill_trials import Reference, Trial, damage, fresh, inspect, kill_once, reference, start, trial, twice

MOMENTS = {
    "segment": ("shards", "write", "swap", "any", "seams"),
    "fused": ("blocks", "shards", "statistics", "write", "manifest", "swap", "any", "seams"),
    "again": ("shards", "write", "swap", "any"),
    "predict": ("blocks", "statistics", "manifest", "any"),
    "decode": ("shards", "write", "seams", "swap", "any"),
}
"""Where the runs of each act are killed."""


def moments_of(act: str, k: int, rng: np.random.Generator, most: int = 3) -> list[tuple[str, float]]:
    """Return one to three moments of the k-th run of an act."""
    kinds = MOMENTS[act]
    count = int(rng.integers(1, most + 1))
    return [(kinds[(k + 3 * j) % len(kinds)], float(rng.uniform(0.02, 1))) for j in range(count)]


def _prepare(folder: Path, data: str, side: int) -> Path:
    logging.getLogger("ome_zarr").setLevel(logging.ERROR)
    return folder / "image.zarr" if (folder / "image.zarr").exists() else make_store(folder / "image.zarr", data, side)


def references(folder: Path, data: str, shard_size: int, side: int = 1500, repeat: int = 2) -> list[Reference]:
    """Run undisturbed: each workflow on the bare image, and in place of the other's result."""
    image, names = _prepare(folder, data, side), ("callable", "expanded")
    options = {"shard_size": shard_size, "n_jobs": 2}
    fresh = [reference(folder, name, "segment", image, options, repeat, {}) for name in names]
    for name, other in zip(names, reversed(names), strict=True):
        begin = folder / f"{other}-segment-False.zarr"
        fresh.append(reference(folder, name, "segment", begin, options | {"overwrite": True}, repeat, tree(begin)))
    return fresh


def again_reference(folder: Path, data: str, shard_size: int, side: int = 1500, repeat: int = 2) -> Reference:
    """Run undisturbed: a region of a result segmented again, with other parameters."""
    image, options = _prepare(folder, data, side), {"shard_size": shard_size, "n_jobs": 2}
    begin = folder / "expanded-segment-False.zarr"
    if not begin.exists():
        reference(folder, "expanded", "segment", image, options, 1, {})
    return reference(folder, "other", "again", begin, options, repeat, tree(begin))


def phase_references(folder: Path, data: str, shard_size: int, side: int = 1500, repeat: int = 2) -> list[Reference]:
    """Run undisturbed, for two workflows: in one with its maps kept, the first phase, the second."""
    image, found = _prepare(folder, data, side), []
    for name in ("pair", "network"):
        options = {"shard_size": shard_size, "n_jobs": 2}
        fused = reference(folder, name, "fused", image, options, repeat, {})
        first = reference(folder, name, "predict", image, options, repeat, {})
        begin = folder / f"{name}-predict-False.zarr"
        second = reference(folder, name, "decode", begin, options, repeat, {})
        if (fused.new, fused.maps) != (second.new, first.maps):
            raise RuntimeError(f"{name}: two phases differ from one: {different(fused.new, second.new)}")
        found += [fused, first, second]
    return found


def phase_trial(
    refs: list[Reference], folder: Path, k: int, rng: np.random.Generator, spoils: bool
) -> tuple[str, Trial]:
    """Kill the two phases one after the other, or the run in one; return what was run as well."""
    fused, first, second = refs
    one = fused if k % 3 == 2 else first
    moments = [("blocks", float(rng.uniform(0.4, 0.95)))] if spoils else moments_of(one.act, k, rng)
    result = trial(one, folder, moments, rng, spoils)
    if one is fused:
        return f"{one.name}, keep_maps", result
    shutil.rmtree(folder / "half.zarr", ignore_errors=True)
    (folder / "trial.zarr").rename(folder / "half.zarr")
    begin = folder / "half.zarr"
    result = result.followed_by(trial(second, folder, moments_of("decode", k, rng), rng, False, begin))
    if spoils:
        result = result.followed_by(damaged_maps(first, second, folder, begin, rng))
    return f"{one.name}, two phases", result


def damaged_maps(first: Reference, second: Reference, folder: Path, begin: Path, rng: np.random.Generator) -> Trial:
    """Damage maps that a killed `decode` has not all read: it must tell, or end as ever; `predict` mends them."""
    result = trial_until_killed(second, folder, begin, rng)
    store, out = folder / "trial.zarr", folder / "trial"
    blocks = first.finished(store)
    spoiled = damage(first, store, rng)
    result.damaged = len(spoiled)
    start((second.name, "decode", second.options), store, out).join()
    if (out / "failed").exists():
        said = (out / "failed").read_text()
        result.told = 1
        if "cannot be read" not in said or "predict() again" not in said:
            result.wrong.append(f"damaged maps are told by: {said}")
        result.wrong += inspect(second, store)
        seen = len(computed(out))
        start((first.name, "predict", first.options), store, out).join()
        result.wrong += twice(out, seen, blocks - spoiled.keys())
        if maps_of(store) != first.maps:
            result.wrong.append("predict has not mended the maps")
        start((second.name, "decode", second.options), store, out).join()
    if not (out / "finished").exists():
        result.wrong.append(f"decode failed: {(out / 'log').read_text()}")
    result.wrong += [f"{name} differs at the end" for name in different(tree(store), second.new)[:5]]
    return result


def trial_until_killed(ref: Reference, folder: Path, begin: Path, rng: np.random.Generator) -> Trial:
    """Kill a run among its shards, and leave it so."""
    result, share = Trial(), float(rng.uniform(0.1, 0.8))
    store, out = folder / "trial.zarr", folder / "trial"
    while not result.kills:
        fresh(store, out, begin)
        if kill_once(ref, store, out, "shards", share):
            result.kills.append(f"shards {share:.2f}")
            result.kept.append(len(ref.finished(store)))
        share *= 0.8
    return result


def campaign(
    folder: Path, data: str, runs: int, phases: int, again: int, seed: int, shard_size: int, side: int = 1500
) -> int:
    """Run and print all; return the number of runs in which something was wrong."""
    rng = np.random.default_rng(seed)
    refs = references(folder, data, shard_size, side) if runs else []
    pairs = phase_references(folder, data, shard_size, side) if phases else []
    regions = [again_reference(folder, data, shard_size, side)] if again else []
    for ref in refs + pairs + regions:
        n = sum(map(len, ref.shards.values()))
        print(
            f"{ref.name:9} {ref.act:8} {'replacing' if ref.replaces else '':10} {n:3} shards and blocks, "
            + ", ".join(f"{mark} {ref.at[mark]:.2f} s" for mark in ("manifest", "seams", "write", "swap", "end"))
        )
    print(
        f"\n{'run':>4} {'what':20} {'killed at':52} {'finished then':24} {'damaged':>7} {'told':>4}  verdict",
        flush=True,
    )
    bad = kills = 0
    for k in range(runs + phases + again):
        spoils = k % 4 == 3
        if k < runs:
            ref = refs[int(rng.permutation(4)[0])] if k >= 4 else refs[k]
            moments = [("any", float(rng.uniform(0.4, 0.95)))] if spoils else moments_of("segment", k, rng)
            what, result = (
                f"{ref.name}{', replacing' if ref.replaces else ''}",
                trial(ref, folder, moments, rng, spoils),
            )
        elif k >= runs + phases:
            moments = [("any", float(rng.uniform(0.4, 0.95)))] if spoils else moments_of("again", k, rng)
            what, result = "a region again", trial(regions[0], folder, moments, rng, spoils)
        else:
            j = k - runs
            of = j // 3 % 2
            what, result = phase_trial(pairs[3 * of : 3 * of + 3], folder, j, rng, spoils)
        kills += len(result.kills)
        bad += bool(result.wrong)
        print(
            f"{k + 1:4} {what:20} {', '.join(result.kills):52} {', '.join(map(str, result.kept)):24} "
            f"{result.damaged:7} {result.told:4}  {'; '.join(result.wrong) or 'identical'}",
            flush=True,
        )
    total = runs + phases + again
    print(f"\n{total} runs, {kills} kills: {total - bad} identical to the undisturbed run, {bad} wrong")
    return bad


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="folder that holds dsb2018/, or 'synthetic'")
    parser.add_argument("--runs", type=int, default=20, help="of segment")
    parser.add_argument(
        "--phases", type=int, default=0, help="of predict and decode, and of segment with its maps kept"
    )
    parser.add_argument("--again", type=int, default=0, help="of resegment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=160_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bad = campaign(Path(folder), args.data, args.runs, args.phases, args.again, args.seed, args.shard_size)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
