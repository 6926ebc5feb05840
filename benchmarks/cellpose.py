"""Cellpose: agreement with the original, speed of the decoding, accuracy, tiling, memory, and what each stage takes.

    python benchmarks/cellpose.py --data PATH [--parts decode,parity,eval,tiling,accuracy,memory,stages]
        --cellpose3-python PY --cellpose4-python PY [--model nuclei-small] [--size-model PATH] [--size 2080x2784]
        [--repeat 3] [--threads 2] [--device cpu] [--precision float32]

PATH holds ``dsb2018/`` and ``models/cpnet_nuclei_small``, the "shared model". The interpreters have cellpose 3.1.1.3
and 4.2.0; what they do runs in processes of their own (`_cellpose3.py`, `_cellpose4.py`), arrays go through a
temporary folder. ``--model`` is a name or a file. Every figure that has a goal shows it; the exit status is 1 where
one is missed.

decode    flows of real nuclei (labels turned into flows, with noise; the shared model's own) to labels: agreement
          with cellpose 3, and the time beside that of cellpose 4 on the same arrays, in turn. Ours on one core, and
          as the engine does it: windows with a halo on threads, maps in float16, stitching included
parity    maps of the networks, ours and those of cellpose 3, on a tile and on whole images; with random weights too
eval      ``CellposeModel.eval`` of cellpose 3 and `label_image`, with the same weights and diameters
tiling    labels of random plans against those of one shard
accuracy  images that were not trained on, with ``diameter=None`` and with the true mean diameter
memory    the peak of `segment` on synthetic tissues, each in a fresh process
stages    Mpx/s of every stage of `segment` on ``--device``; needs no cellpose
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

# ``import cellpose`` shall find the package, not this file
HERE = str(Path(__file__).resolve().parent)
sys.path = [*(path for path in sys.path if path != HERE), HERE]

from _cellpose_accuracy import accuracy  # noqa: E402
from _cellpose_decode import decode  # noqa: E402
from _cellpose_maps import evaluate, parity  # noqa: E402
from _cellpose_runs import memory, stages, tiling  # noqa: E402
from _cellpose_tools import Goals  # noqa: E402

PARTS = "decode", "parity", "eval", "tiling", "accuracy", "memory", "stages"


def parts(text: str) -> list[str]:
    """Read names with commas between them."""
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no part, expected some of {','.join(PARTS)}")
    return names


def size(text: str) -> tuple[int, int]:
    """Read ``2080x2784``."""
    try:
        height, width = (int(n) for n in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected one such as 2080x2784") from None
    return height, width


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds dsb2018 and models")
    parser.add_argument("--parts", type=parts, default=list(PARTS))
    parser.add_argument("--cellpose3-python")
    parser.add_argument("--cellpose4-python")
    parser.add_argument("--model", default="nuclei-small", help="a name or a file, besides the shared model")
    parser.add_argument("--size-model", type=Path, help="that of a --model that is a file")
    parser.add_argument("--size", type=size, help="of the mosaic, in place of each part's own: HEIGHTxWIDTH, px")
    parser.add_argument("--threads", type=int, default=2, help="of ours, and of torch in the others")
    parser.add_argument("--repeat", type=int, default=3, help="of decode: timings of which the median is taken")
    parser.add_argument("--windows", type=int, default=2, help="of decode, as the engine does it")
    parser.add_argument("--images", type=int, default=50, help="of eval, spread over all sizes")
    parser.add_argument("--images-held", type=int, help="of accuracy, the first by id; all by default")
    parser.add_argument("--plans", type=int, default=5, help="of tiling")
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 8192], help="of the tissues of memory, px")
    parser.add_argument("--device", default="cpu", help="of memory and stages: cpu, cuda:0, mps")
    parser.add_argument("--precision", help="of memory and stages: float32, float16, bfloat16")
    parser.add_argument("--batch-size", type=int, help="of stages")
    parser.add_argument("--shard-size", type=int, default=4_000_000, help="of stages, px")
    parser.add_argument("--diameter", type=float, help="of memory and stages, px; default: estimated, and the median")
    return parser.parse_args()


def main() -> int:
    """Run the parts."""
    args, goals = parsed(), Goals()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {
            "decode": lambda: decode(args, goals, folder),
            "parity": lambda: parity(args, goals, folder),
            "eval": lambda: evaluate(args, goals, folder),
            "tiling": lambda: tiling(args, goals),
            "accuracy": lambda: accuracy(args, goals),
            "memory": lambda: memory(args, goals, folder),
            "stages": lambda: stages(args, folder),
        }
        for part in PARTS:
            if part in args.parts:
                print(f"\n{part}", flush=True)
                runs[part]()
    print(f"\n{goals.summary()}")
    return min(len(goals.missed), 1)


if __name__ == "__main__":
    sys.exit(main())
