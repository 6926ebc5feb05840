"""What an import loads, and what it must not: the figure is that of ``benchmarks/import_time.py``."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "matplotlib.pyplot", "distributed", "dask_jobqueue", "cellpose", "h5py", "scanpy", "squidpy")


def loaded(code: str) -> set[str]:
    """Return the modules that code loads beyond those of spatialdata, in a fresh interpreter."""
    script = (
        "import sys, spatialdata\nbefore = set(sys.modules)\n"
        f"{code}\nprint('loaded', *sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("loaded"))
    return set(line.split()[1:])


def test_the_import_is_light():
    """Nothing but the package's own first module: neither numba kernels nor any method."""
    found = loaded("import spatialdata_segment")
    assert found == {"spatialdata_segment", "spatialdata_segment._version"}


def test_all_of_testing_needs_no_test_packages():
    absent = "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None"
    used = "from spatialdata_segment.testing import *; Tissue; match_scores"
    found = loaded(f"{absent}; {used}; del sys.modules['pytest'], sys.modules['hypothesis']")
    assert "spatialdata_segment.testing.scores" in found
    assert "spatialdata_segment.testing.methods" not in found


def test_names_load_nothing_heavy():
    """Neither do the names of methods that run on networks, nor those that draw, load what these need."""
    found = loaded(
        "from spatialdata_segment import Cellpose, StarDist, ThresholdNuclei, Workflow, decode, plan, pl, predict, "
        "segment\nWorkflow(nucleus=ThresholdNuclei(), cell=Cellpose('nuclei-small'))"
    )
    assert "spatialdata_segment._segment" in found
    assert not [m for m in HEAVY if m in found]
