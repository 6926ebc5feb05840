"""StarDist from the command line, by the files that its page shows, and in jobs that have no network at hand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
import yaml

from spatialdata_segment.cli import main
from spatialdata_segment.cluster import ClusterConfig
from spatialdata_segment.testing import Tissue

pytest.importorskip("torch")
pytest.importorskip("pyclipper")
pytestmark = pytest.mark.filterwarnings("ignore")

HERE = Path(__file__).parent
PAGE = (HERE.parents[2] / "docs" / "stardist.md").read_text(encoding="utf-8")
write_model = runpy.run_path(str(HERE / "networks.py"))["write_model"]
NO_SLURM = runpy.run_path(str(HERE.parents[1] / "test_cluster.py"))["NO_SLURM"]
LABELS = "segmentation_cell_labels"


def shown(first):
    """Return the YAML of the page that begins with a key."""
    (text,) = [t for t in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if t.startswith(first)]
    return text


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder as the page has it: a store, a central folder of models, and the page's settings."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models" / "embryo", 3, n_rays=14, grid=(1, 2, 2), radius=4.0, prob_thresh=0.7)
    Tissue((10, 60, 64), seed=2, cell_diameter=14, channels=("DAPI",)).to_spatialdata().write("embryo.zarr")
    Path("stardist.yaml").write_text(shown("cell:"))
    return tmp_path


def test_the_files_of_the_page(project):
    """Two commands give what one call gives."""
    assert ClusterConfig(**yaml.safe_load(shown("nodes:"))).count == 4
    first = ["predict", "embryo.zarr", "--image", "image", "--workflow", "stardist.yaml", "--maps", "maps", "--quiet"]
    assert main(first) == 0
    (project / "models").rename(project / "elsewhere")
    assert main(["decode", "maps", "--output", "cells.zarr", "--quiet"]) == 0
    (project / "elsewhere").rename(project / "models")
    assert main(["run", "embryo.zarr", "--workflow", "stardist.yaml", "--quiet"]) == 0
    expected, found = (np.asarray(sd.read_zarr(s)[LABELS]) for s in ("embryo.zarr", "cells.zarr"))
    assert expected.max() > 5
    assert expected.dtype == np.uint32
    assert np.array_equal(found, expected)


@pytest.mark.skipif(NO_SLURM is not None, reason=str(NO_SLURM))
def test_decoded_by_jobs_without_torch_and_tensorflow(project):
    """On a real SLURM, by workers that cannot import a network."""
    for name in ("torch", "tensorflow", "stardist", "csbdeep"):
        Path("none", name).mkdir(parents=True)
        Path("none", name, "__init__.py").write_text("raise ImportError('not installed on this node')\n")
    settings = yaml.safe_load(shown("nodes:")) | {"jobs": 2, "cores": 1, "memory": "2 GiB", "walltime": "00:10:00"}
    settings["job_script_prologue"] = [f"export PYTHONPATH={project}/none:$PYTHONPATH", "python -c 'import torch' || :"]
    del settings["nodes"]
    Path("cluster.yaml").write_text(yaml.safe_dump(settings))
    predicted = ["predict", "embryo.zarr", "--workflow", "stardist.yaml", "--maps", "maps", "--quiet"]
    assert main(predicted) == 0
    decoded = ["decode", "maps", "--shard-size", "16384", "--quiet"]
    assert main([*decoded, "--output", "here.zarr"]) == 0
    assert main([*decoded, "--output", "jobs.zarr", "--cluster", "slurm", "--cluster-config", "cluster.yaml"]) == 0
    expected, found = (np.asarray(sd.read_zarr(s)[LABELS]) for s in ("here.zarr", "jobs.zarr"))
    assert np.array_equal(found, expected)
    logs = "".join(p.read_text() for p in Path("slurm-logs").glob("*.err"))
    assert "not installed on this node" in logs
