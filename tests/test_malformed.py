"""Malformed inputs and configurations: what is wrong, what was expected, exit code 2, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel

from spatialdata_segment.cli import main
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")

FILES = {
    "tab.yaml": "nucleus:\n\tmethod: threshold-nuclei\n",
    "open.yaml": "nucleus: {method: threshold-nuclei\n",
    "list.yaml": "- threshold-nuclei\n",
    "empty.yaml": "",
    "twice.yaml": "nucleus:\n  method: threshold-nuclei\n  sigma: 1\n  sigma: 2\n",
    "type.yaml": "nucleus:\n  method: threshold-nuclei\n  sigma: wide\n  contrast: 3\n",
    "key.yaml": "nucleus:\n  method: threshold-nuclei\n  min_distanz: 4\nmatch_mask: true\n",
    "method.yaml": "nucleus:\n  method: thresholdnuclei\n",
    "none.yaml": "match_masks: false\n",
    "nomethod.yaml": "cell: {distance: 3}\n",
    "seeded.yaml": "cell: {method: expand-nuclei}\n",
    "even.yaml": "nucleus:\n  method: threshold-nuclei\n  threshold: 0.2\n  median_block: 40\n",
    "option.yaml": "nucleus: threshold-nuclei\noptions:\n  shardsize: 100\n  n_jobs: many\n",
    "size.yaml": "nucleus: threshold-nuclei\nnucleus_size: {min_size: 20}\n",
    "bounds.yaml": "nucleus: threshold-nuclei\nfilter_masks_size: true\nnucleus_size: {min_size: 20, max_size: 10}\n",
    "function.yaml": "cell: {method: function}\n",
    "workflow.yaml": "WGASegmentatio:\n  nucleus_segmentation: {}\n",
    "missing.yaml": "WGASegmentation:\n  threads: 2\n",
    "model.yaml": "DAPISegmentationCellpose:\n  nucleus_segmentation:\n    diameter: -3\n    modle: nuclei\n",
    "turing.yaml": "pipeline:\n  infer_size: 1000\npostprocess:\n  nitter: 5\n",
    "cluster.yaml": "cores: four\npartitoin: main\n",
}
COMMANDS = [
    # configurations
    ("run S --workflow tab.yaml", "line 2, column 1: .*cannot start any token .indent with spaces."),
    ("run S --workflow open.yaml", "open.yaml cannot be read as YAML: line 2, column 1"),
    ("run S --workflow list.yaml", "list.yaml holds list, expected names and values"),
    ("run S --workflow empty.yaml", "empty.yaml holds nothing, expected names and values"),
    ("run S --workflow twice.yaml", "line 4: nucleus.sigma: given twice, as 2 here and as 1 in line 3: keep one"),
    (
        "run S --workflow type.yaml",
        "2 problems:\n  line 3: nucleus.sigma: expected a valid number, not 'wide'\n  line 4",
    ),
    ("run S --workflow key.yaml", "line 3: .*did you mean 'min_distance'.*\n  line 4: .*did you mean 'match_masks'"),
    ("run S --workflow method.yaml", "line 2: nucleus.method: unknown method .*did you mean 'threshold-nuclei'"),
    ("run S --workflow none.yaml", "a workflow needs a nucleus or a cell method"),
    ("run S --workflow nomethod.yaml", "line 1.*: cell: method is missing: name it"),
    ("run S --workflow seeded.yaml", "expand-nuclei grows from nuclei: give a nucleus= method"),
    ("run S --workflow even.yaml", "line 1: nucleus: median_block=40"),
    (
        "plan S --workflow option.yaml",
        "line 3: options.shardsize: .*'shard_size'.*\n  line 4: options.n_jobs: expected a",
    ),
    ("run S --workflow size.yaml", "nucleus_size has no effect while filter_masks_size is False: set it to True"),
    ("run S --workflow bounds.yaml", "line 3.*: nucleus_size: .*min_size.*20.*10"),
    ("run S --workflow function.yaml", "line 1.*: cell.function: missing"),
    ("run S --workflow workflow.yaml", "line 1: WGASegmentatio: unknown .did you mean 'WGASegmentation'"),
    ("predict S --maps new --workflow missing.yaml", "cytosol_segmentation: missing\n.*nucleus_segmentation: missing"),
    ("run S --workflow model.yaml", "line 3: .*is -3, expected a number above 0.*\n  line 4: .*did you mean 'model'"),
    ("run S --workflow turing.yaml", "line 2: .*infer_size=1000, expected a multiple of 16.*\n  line 4: .*'niter'"),
    ("run S --workflow nowhere.yaml", "configuration nowhere.yaml is not there: check its path"),
    ("run S --workflow binary.yaml", "binary.yaml cannot be read: 'utf-8'"),
    ("run S --workflow wgaa", "unknown workflow 'wgaa' .did you mean 'wga'"),
    (
        "run S --cluster local --cluster-config cluster.yaml",
        "3 problems:.*cores.*not 'four'.*memory: missing.*'partition'",
    ),
    ("decode maps --output new --workflow wga", "no maps in maps: expected a folder that predict"),
    # stores and images
    ("run nowhere.zarr", "there is no store nowhere.zarr"),
    ("run text.zarr", "text.zarr cannot be read as a SpatialData store"),
    ("run bare.zarr", "bare.zarr has 0 images .none.: name those"),
    ("run cut.zarr", "cut.zarr"),
    ("run nan.zarr", "NaN"),
    ("run half.zarr", "has dtype float16"),
    ("run S --image picture", "no image 'picture'"),
    ("run S --scale scale7", "scale7"),
    ("run S --roi-key nowhere", "nowhere"),
    ("run S --to-coordinate-system lab", "no coordinate system 'lab': expected one of global"),
    ("run one.zarr --workflow wga", "needs 2 channels"),
    # options
    ("run S --channels 7", "has no channel 7; expected 0 to 1"),
    ("run S --bounding-box 5,5,1,1", "--bounding-box .* expected .x_min, y_min, x_max, y_max"),
    ("run S --bounding-box 900,900,950,950", "empty|outside|no pixel|region"),
    ("run S --overlap-px 2", "--overlap-px 2: expected a whole number"),
    ("run S --shard-size -5", "--shard-size -5, expected the pixels of a core"),
    ("run S --n-jobs 0", "--n-jobs 0"),
    ("run S --pixel-size -1", "--pixel-size"),
    ("run S --key-added a/b", "a/b"),
    ("run S --devices cuda:99", "cuda:99"),
    ("run S --scratch text.zarr", "text.zarr is a file"),
    ("predict S --maps text.zarr", "text.zarr is a file"),
    ("config --from bare.zarr", "0 results are there .none."),
    ("config nothing", "unknown workflow 'nothing'"),
    ("models fetch cyto33", "no model 'cyto33': did you mean 'cyto3'"),
    ("demo --size 3 --output new", "--size 3: expected at least 64 px"),
    ("demo --image text.zarr --output new", "text.zarr cannot be read"),
]


def write(path, image, names=("DAPI", "WGA")):
    element = Image2DModel.parse(da.from_array(image, chunks=-1), dims=("c", "y", "x"), c_coords=names)
    sd.SpatialData(images={"image": element}).write(path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Sound and malformed ones."""
    folder = tmp_path_factory.mktemp("inputs")
    Tissue((80, 90), seed=1, cell_diameter=18).to_spatialdata(chunks=64).write(folder / "S")
    sd.SpatialData().write(folder / "bare.zarr")
    (folder / "text.zarr").write_text("no store")
    image = np.random.default_rng(0).random((2, 80, 90))
    write(folder / "half.zarr", image.astype(np.float16))
    write(folder / "one.zarr", image[:1], ("DAPI",))
    image[0, 40] = np.nan
    write(folder / "nan.zarr", image)
    shutil.copytree(folder / "S", folder / "cut.zarr")
    for path in (folder / "cut.zarr" / "images").rglob("zarr.json"):
        path.write_text(path.read_text()[:40])
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    return folder


def tree(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def test_there_are_thirty_at_least():
    assert len({command for command, _ in COMMANDS}) >= 30


@pytest.mark.parametrize(("command", "message"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_it_is_told_and_nothing_is_left(command, message, inputs, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", os.devnull + "/models")
    before = tree(inputs)
    quiet = [] if command.startswith("config") else ["--quiet"] * (not command.startswith("plan"))
    assert main([*command.split(), *quiet]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(message, said.err, re.DOTALL), said.err
    last = said.err[said.err.index("spatialdata-segment: error: ") :]
    assert "Traceback" not in said.err
    assert all(line.startswith(("spatialdata-segment: error: ", "  line ")) for line in last.splitlines())
    assert tree(inputs) == before
