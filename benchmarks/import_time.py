"""What `import spatialdata_segment`, and its first names, add to `import spatialdata`.

    python benchmarks/import_time.py [--repeat 5]

Each run is a fresh interpreter, in which spatialdata is imported first. The least of the runs counts: others are
the machine's. Goal: the import adds at most 0.3 s. For the modules behind a figure: python -X importtime.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

CODE = """
import sys, time
start = time.perf_counter(); import spatialdata; middle = time.perf_counter(); before = set(sys.modules)
import spatialdata_segment; end = time.perf_counter(); own = len(set(sys.modules) - before)
from spatialdata_segment import segment, Workflow, ThresholdNuclei; named = time.perf_counter()
print(middle - start, end - middle, named - end, own)
"""
GOAL = 0.3


def main() -> None:
    """Take the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    runs = []
    for _ in range(parser.parse_args().repeat):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=True)
        runs.append([float(x) for x in done.stdout.split()])
    spatialdata, package, names, modules = (min(column) for column in zip(*runs, strict=True))
    print(f"import spatialdata                                {spatialdata:7.3f} s")
    print(f"import spatialdata_segment, after it              {package:7.3f} s, {modules:.0f} modules (goal {GOAL} s)")
    print(f"segment, Workflow, ThresholdNuclei, after that    {names:7.3f} s")
    if package > GOAL:
        sys.exit(1)


if __name__ == "__main__":
    main()
