"""The decoding of flows in volumes: cells come back, as Cellpose has them, how fast, in how many bytes.

    python benchmarks/decode_3d.py [--labels TIFF] [--image TIFF] [--reference PYTHON ...] [--parts tissue,windows,...]
        [--shape 72x320x400] [--diameter 16] [--anisotropy 2] [--crop 48x160x160] [--noise 0.3] [--threads 2]

A tissue of cells that all touch becomes flows, as Cellpose makes them of masks, which are decoded. The cells that the
volume cuts are left out, unless it says otherwise: of many of them the centre is not there.

tissue     cells recovered at IoU 0.9, of whole cells; and with those that are cut
windows    windows of the volume against all of it: what they are sure of, and whether it is right
labels     the labels of a TIFF (z, y, x), as flows and back
memory     bytes a voxel besides the maps (float16), in a process of its own; with open sides, which takes more. Linux
reference  `dynamics.compute_masks(do_3D=True)` on the CPU in each interpreter, on a crop: agreement and time. Oracle
           flows, and with noise. Ours takes one core, torch ``--threads``
network    the flows that ``nuclei-small`` has of ``--image``: paths end in many places, and where they are sampled
           decides. Each reference as it is, up to half a voxel off, and made to sample truly

Every figure that has a goal shows it; the exit status is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

HERE = str(Path(__file__).resolve().parent)
sys.path = [*(path for path in sys.path if path != HERE), HERE]

from _cellpose_tools import Goals, Reference, show  # noqa: E402

from spatialdata_segment.core.flows import FlowObjects, FlowRules  # noqa: E402
from spatialdata_segment.core.flows3d import BYTES, count_ends_3d, decode_flows_3d  # noqa: E402
from spatialdata_segment.core.sinks3d import SEEN  # noqa: E402
from spatialdata_segment.testing import Tissue, match_scores  # noqa: E402
from spatialdata_segment.testing.flows import volume_maps  # noqa: E402

PARTS = "tissue", "windows", "labels", "memory", "reference", "network"
CLOSED = np.zeros((3, 2), np.int64)
LEVELS = 0.5, 0.75, 0.9


def size(text: str) -> tuple[int, ...]:
    """Read ``72x320x400``."""
    shape = tuple(int(n) for n in text.split("x"))
    if len(shape) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected one such as 72x320x400")
    return shape


def compact(labels: np.ndarray) -> np.ndarray:
    """Return labels 0..n."""
    found: np.ndarray = np.unique(np.append(labels, 0), return_inverse=True)[1][:-1]
    return found.reshape(labels.shape).astype(np.int32)


def tissue_labels(args: argparse.Namespace) -> np.ndarray:
    """Return the cells of a tissue in which all touch."""
    tissue = Tissue(
        args.shape, seed=4, cell_diameter=args.diameter, anisotropy=args.anisotropy, touching=1.0, density=1.0
    )
    return compact(np.asarray(tissue.cells(chunks=64).compute(scheduler="sync")))


def uncut(labels: np.ndarray) -> np.ndarray:
    """Leave out what touches the faces of the volume."""
    faces = [np.unique(np.take(labels, side, axis)) for axis in range(3) for side in (0, -1)]
    return compact(np.where(np.isin(labels, np.unique(np.concatenate(faces))), 0, labels))


def kept(found: FlowObjects) -> np.ndarray:
    """Return the labels of what is not rejected."""
    labels = np.maximum(found.labels, 0)
    return np.where(np.append(False, found.reasons == 0)[labels], labels, 0)


def noisy(maps: np.ndarray, noise: float) -> np.ndarray:
    """Add noise to the flows of the cells."""
    rng, out = np.random.default_rng(0), maps.copy()
    out[:3] += (5 * noise * rng.normal(size=maps[:3].shape) * (maps[3] > 0)).astype(np.float16)
    return out


def recover(name: str, labels: np.ndarray) -> tuple[list[str], float, float]:
    """Decode the flows of labels; return a row of a table, the share that comes back, and the AP at IoU 0.9."""
    maps = volume_maps(labels)
    start = time.perf_counter()
    found = kept(decode_flows_3d(maps, CLOSED, FlowRules()))
    seconds = time.perf_counter() - start
    scores = match_scores(labels, found, LEVELS)
    numbers = (f"{scores.recall[2]:.4f}", *(f"{ap:.4f}" for ap in scores.ap), f"{seconds:.2f}")
    row = [name, str(labels.shape), str(scores.n_truth), *numbers, f"{1e-6 * labels.size / seconds:.2f}"]
    return row, scores.recall[2], scores.ap[2]


HEADS = ["", "voxels", "cells", "recovered", "AP 0.5", "AP 0.75", "AP 0.9", "s", "Mvoxel/s"]


def tissue(args: argparse.Namespace, goals: Goals, all_labels: np.ndarray) -> None:
    """Print what comes back of a tissue."""
    labels = uncut(all_labels)
    row, share, _ = recover("whole cells", labels)
    show([HEADS, row, recover("and those that are cut", all_labels)[0]])
    print(f"  cells: {goals.least('tissue, cells', int(labels.max()), 5000, form='d')}")
    print(f"  recovered at IoU 0.9: {goals.least('tissue, recovered', share, 0.99)}")


def windows(args: argparse.Namespace, goals: Goals, all_labels: np.ndarray) -> None:
    """Decode windows with a halo of two diameters around the parts of the volume."""
    rows = [["", "objects", "of parts", "complete, %", "wrong"]]
    for name, noise in (("oracle flows", 0.0), (f"with noise of {args.noise}", args.noise)):
        maps = noisy(volume_maps(all_labels), noise)
        whole, counts = decode_flows_3d(maps, CLOSED, FlowRules()), count_ends_3d(maps, CLOSED, FlowRules())
        assert counts is not None
        number = {tuple(s): k for k, s in enumerate(whole.sinks.tolist(), 1)}
        halo = [int(np.ceil(2 * args.diameter / a)) for a in (args.anisotropy, 1, 1)]
        owned = sure = wrong = 0
        for corner in np.ndindex(2, 2, 2):
            cores = [(c * n // 2, (c + 1) * n // 2) for c, n in zip(corner, args.shape, strict=True)]
            ends = [(max(0, a - h), min(n, b + h)) for (a, b), h, n in zip(cores, halo, args.shape, strict=True)]
            inner = tuple(slice(a, b) for a, b in ends)
            edge = np.array([[a > 0, b < n] for (a, b), n in zip(ends, args.shape, strict=True)], np.int64)
            low = tuple(max(0, a - SEEN) for a, _ in ends)
            known = counts[tuple(slice(a, b + SEEN) for a, (_, b) in zip(low, ends, strict=True))]
            before = tuple(a - b for (a, _), b in zip(ends, low, strict=True))
            found = decode_flows_3d(np.ascontiguousarray(maps[:, *inner]), edge, FlowRules(), known, before)
            at = found.sinks + [a for a, _ in ends]
            mine = np.all([(at[:, k] >= a) & (at[:, k] < b) for k, (a, b) in enumerate(cores)], axis=0)
            owned, sure = owned + int(mine.sum()), sure + int((mine & found.complete).sum())
            same = np.array([0, *(number.get(tuple(s), -1) for s in at.tolist())]) * np.append(True, found.complete)
            there = np.where(np.isin(whole.labels[inner], same[same > 0]), whole.labels[inner], 0)
            differs = same[np.maximum(found.labels, 0)] != there
            wrong += int((same < 0).sum()) + len(np.unique(found.labels[differs & (found.labels > 0)]))
        share = 100 * sure / owned
        rows.append(
            [name, str(len(whole.sinks)), str(owned), f"{share:.2f}", goals.most(f"{name}, wrong", wrong, 0, "d")]
        )
    print("  eight windows, a halo of two diameters")
    show(rows)


def from_file(args: argparse.Namespace, goals: Goals) -> None:
    """Print what comes back of labels."""
    import tifffile

    row, _, ap = recover(args.labels.name, compact(tifffile.imread(args.labels)))
    show([HEADS, row])
    print(f"  AP at IoU 0.9: {goals.least('labels, AP at 0.9', ap, 0.95)}")


MEASURED = """
import sys
import numpy as np
from pathlib import Path
from spatialdata_segment.core.flows import FlowRules
from spatialdata_segment.core.flows3d import decode_flows_3d

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

maps, edge = np.load(sys.argv[1]), np.full((3, 2), int(sys.argv[2]))
decode_flows_3d(np.ascontiguousarray(maps[:, :32, :32, :32]), edge, FlowRules())
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
found = decode_flows_3d(maps, edge, FlowRules())
print((memory("VmHWM") - before) / maps[0].size)
"""


def memory(goals: Goals, folder: Path, all_labels: np.ndarray) -> None:
    """Print bytes a voxel."""
    path = folder / "maps.npy"
    np.save(path, volume_maps(all_labels))
    for side, name in enumerate(("the whole volume", "a window, all sides open")):
        command = [sys.executable, "-c", MEASURED, str(path), str(side)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = goals.most(f"memory, {name}", float(done.stdout), 24, form=".1f")
        print(f"  {name}: {taken} bytes a voxel besides the maps; {BYTES} by design")


def reference(args: argparse.Namespace, goals: Goals, folder: Path, all_labels: np.ndarray) -> None:
    """Print agreement and times."""
    labels = uncut(all_labels[tuple(slice(n) for n in args.crop)])
    rows = [["", "objects", "s", "times ours", "AP 0.5", "AP 0.75", "AP 0.9"]]
    for name, noise in (("oracle", 0.0), (f"noise {args.noise}", args.noise)):
        maps = noisy(volume_maps(labels), noise)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            found = kept(decode_flows_3d(maps, CLOSED, FlowRules()))
            seconds.append(time.perf_counter() - start)
        ours = sorted(seconds)[1]
        rows.append([f"{name}: ours", str(len(np.unique(found)) - 1), f"{ours:.2f}", "", "", "", ""])
        for python in args.reference:
            version = version_of(python)
            run = Reference(python, f"_cellpose{version[0]}.py", folder, args.threads)
            settings = {"niter": 200, "flow_threshold": 0.0, "min_size": 15, "do_3D": True}
            theirs = run("masks", {"maps": maps.astype(np.float32)}, **settings)
            scores = match_scores(theirs["labels"], found, LEVELS)
            what, faster = f"{name}, cellpose {version}", float(theirs["seconds"]) / ours
            ratio = goals.least(f"{what}, times", faster, 20, form=".1f") if version[0] == "4" else f"{faster:.1f}"
            agreed = [
                f"{scores.ap[0]:.4f}",
                goals.least(f"{what}, AP at 0.75", scores.ap[1], 0.99),
                f"{scores.ap[2]:.4f}",
            ]
            rows.append([what, str(scores.n_truth), f"{float(theirs['seconds']):.2f}", ratio, *agreed])
    print(f"  {labels.shape} voxels, {len(np.unique(labels)) - 1} cells")
    show(rows)


def network(args: argparse.Namespace, folder: Path) -> None:
    """Print agreement on the flows of a network."""
    import tifffile

    from spatialdata_segment import Cellpose
    from spatialdata_segment.core.boxes import Box
    from spatialdata_segment.core.plan import Window
    from spatialdata_segment.core.statistics import quantile_or_end
    from spatialdata_segment.methods.base import ImageInfo, View

    pixels = tifffile.imread(args.image)[None]
    info, whole = ImageInfo(pixels.shape[1:], pixels.dtype), Box.whole(pixels.shape[1:])
    levels = {quantile_or_end(0, q): float(np.quantile(pixels, q)) for q in (0.01, 0.99)}
    method = Cellpose("nuclei-small", diameter=args.network_diameter, do_3D=True).adapted(info, levels)
    view = View(
        Window(whole, whole, whole), info, levels, model=method.load("cpu"), read=lambda box: pixels[:, *box.slices]
    )
    maps = method.stored(method.predict(pixels[:, :0], view))
    found = kept(decode_flows_3d(maps, CLOSED, FlowRules()))
    rows = [["", "objects", "AP 0.5", "AP 0.75", "AP 0.9"], ["ours", str(len(np.unique(found)) - 1), "", "", ""]]
    for python in args.reference:
        version = version_of(python)
        for truly in (False, True):
            run = Reference(python, f"_cellpose{version[0]}.py", folder, args.threads)
            settings = {"niter": 200, "flow_threshold": 0.0, "min_size": 15, "do_3D": True, "truly": truly}
            theirs = run("masks", {"maps": maps.astype(np.float32)}, **settings)
            scores = match_scores(theirs["labels"], found, LEVELS)
            name = f"cellpose {version}{', sampled truly' if truly else ''}"
            rows.append([name, str(scores.n_truth), *(f"{ap:.4f}" for ap in scores.ap)])
    show(rows)


def version_of(python: str) -> str:
    """Return the version of cellpose that an interpreter has."""
    code = "from importlib.metadata import version; print(version('cellpose'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="a TIFF of labels (z, y, x)")
    parser.add_argument("--image", type=Path, help="a TIFF (z, y, x) of nuclei")
    parser.add_argument("--network-diameter", type=float, default=14.0, help="of its nuclei, px")
    parser.add_argument("--reference", nargs="*", default=[], help="interpreters that have cellpose")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--shape", type=size, default=(72, 320, 400), help="of the tissue, voxels")
    parser.add_argument("--diameter", type=float, default=16.0, help="of its cells, px")
    parser.add_argument("--anisotropy", type=float, default=2.0)
    parser.add_argument("--crop", type=size, default=(48, 160, 160), help="on which references run, voxels")
    parser.add_argument("--noise", type=float, default=0.3, help="standard deviation, of flows of length 1")
    parser.add_argument("--threads", type=int, default=2, help="of torch in the references")
    return parser.parse_args()


def main() -> int:
    """Run the parts."""
    args, goals = parsed(), Goals()
    warnings.simplefilter("ignore")
    labels = tissue_labels(args)
    warm = np.zeros((4, 24, 24, 24), np.float16)
    warm[3] = 1
    decode_flows_3d(warm, np.ones((3, 2), np.int64), FlowRules())  # compiles
    with tempfile.TemporaryDirectory() as name:
        runs = {
            "tissue": lambda: tissue(args, goals, labels),
            "windows": lambda: windows(args, goals, labels),
            "labels": lambda: from_file(args, goals),
            "memory": lambda: memory(goals, Path(name), labels),
            "reference": lambda: reference(args, goals, Path(name), labels),
            "network": lambda: network(args, Path(name)),
        }
        for part in args.parts.split(","):
            if (part == "labels" and args.labels is None) or (part == "network" and args.image is None):
                continue
            if part in ("reference", "network") and not args.reference:
                continue
            print(f"\n{part}", flush=True)
            runs[part]()
    print(f"\n{goals.summary()}")
    return min(len(goals.missed), 1)


if __name__ == "__main__":
    sys.exit(main())
