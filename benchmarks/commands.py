"""The commands of Turing Segment's README, with this program's name, on real images; what they write is checked.

    python benchmarks/commands.py --data PATH [--images 3] [--planes 4] [--model nuclei-small]

PATH holds ``dsb2018/``. The README's default, ``cyto3``, is asked for where its weights are there (`models fetch
cyto3`); otherwise the model of ``--model`` is added to each command. Each command runs in a process of its own, and is
printed with its seconds and what it said. Its files are then read by other programs' readers: the GeoParquet by
geopandas, JSON and YAML by Python's, the mask by zarr. A file that is missing or wrong means exit code 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import tifffile
import yaml
import zarr
from PIL import Image

from spatialdata_segment.errors import MissingError
from spatialdata_segment.methods.cellpose.models import find_model

CONFIG = """
pipeline:
  infer_size: 1024
  overlap_margin: 32
  n_postprocess_processes: 32
  postprocess_queue_size: 128
  n_merge_tile_processes: 16
postprocess:
  niter: 200
  cellprob_threshold: 0
  flow_threshold: 0.4
  min_size: 15
  resample: false
"""


class Commands:
    """Runs commands in a folder, and says what failed at the end."""

    def __init__(self, folder: Path, model: list[str]) -> None:
        self.folder, self.model, self.wrong = folder, model, []

    def __call__(self, text: str) -> None:
        """Run a command as one would type it."""
        arguments = text.split()
        if arguments[0] == "infer" and "--model-type" not in arguments:
            arguments += self.model
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "spatialdata_segment", *arguments, *(["--quiet"] * (arguments[0] == "infer"))],
            cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        said = (done.stdout + done.stderr).strip().replace("\n", "\n    ")
        print(
            f"$ spatialdata-segment {' '.join(arguments)}\n    {said}\n    exit code {done.returncode}, {seconds:.1f} s"
        )
        self.expect(done.returncode == 0, f"exit code {done.returncode} of: {text}")

    def expect(self, is_right: bool, what: str) -> None:
        """Note what is wrong."""
        if not is_right:
            self.wrong.append(what)
            print(f"    WRONG: {what}")

    def labels(self, name: str, shape: tuple[int, ...]) -> int:
        """Check a folder of one image, and return the number of its cells."""
        folder = self.folder / name
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        self.expect({"metadata.json", "polygons.parquet"} <= set(there), f"{name} holds {there}")
        if "metadata.json" not in there:
            return 0
        metadata = json.loads((folder / "metadata.json").read_text())
        frame = gpd.read_parquet(folder / "polygons.parquet")
        self.expect(metadata["image-shape"] == list(shape), f"{name}: image-shape {metadata['image-shape']}")
        self.expect("scale" in metadata and "model-type" in metadata, f"{name}: {sorted(metadata)}")
        self.expect(len(frame) > 0 and frame.geometry.is_valid.all(), f"{name}: {len(frame)} polygons")
        print(f"    {name}: {len(frame)} cells, scale {metadata['scale']}, {metadata['model-type']}")
        return len(frame)


def prepare(data: Path, folder: Path, n_images: int, n_planes: int) -> tuple[int, ...]:
    """Lay out the images: some pictures, a TIFF of two channels, planes of a stack; return the TIFF's sides."""
    pictures = sorted((data / "dsb2018/images").glob("*.png"))
    (folder / "images").mkdir()
    (folder / "stack").mkdir()
    for path in pictures[:n_images]:
        shutil.copy(path, folder / "images")
    pixels = np.asarray(Image.open(pictures[5]))
    for k in range(n_planes):
        Image.fromarray(np.roll(pixels, k, axis=1)).save(folder / f"stack/plane{k}.png")
    tifffile.imwrite(
        folder / "image.tif", np.stack([pixels, pixels]), tile=(128, 128), photometric="minisblack", compression="zlib"
    )
    (folder / "config.yaml").write_text(CONFIG)
    return pixels.shape


def main() -> int:
    """Run all commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--planes", type=int, default=4)
    parser.add_argument("--model", default="nuclei-small", help="where the weights of cyto3 are not there")
    args = parser.parse_args()
    try:
        find_model("cyto3")
        model, channels, name = [], "0,1", "cyto3"
    except MissingError:
        model, channels, name = ["--model-type", args.model, "--channels", "1"], "1", args.model
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shape = prepare(args.data, folder, args.images, args.planes)
        of_pictures = model[:2]
        run = Commands(folder, model)
        run("infer --image-path image.tif --output-dir out")
        n = run.labels("out", shape)
        run(f"infer --image-path image.tif --model-type {name} --channels {channels}")
        run.labels(f"image_0_{channels.replace(',', '-')}_{name}", shape)
        run("infer --image-path image.tif --image-type tiff --output-dir typed")
        run.expect(run.labels("typed", shape) == n, "another number of cells with --image-type")
        run("infer --image-path image.tif --config-file config.yaml --output-dir configured")
        run.labels("configured", shape)
        run.model = []
        run("infer --image-path image.tif --config-file out/metadata.json --output-dir again")
        same = (folder / "again/polygons.parquet").read_bytes() == (folder / "out/polygons.parquet").read_bytes()
        run.expect(same, "a repeated run has other polygons")
        run.model = of_pictures
        run("infer --image-dir images --output-dir results")
        for path in sorted((folder / "images").iterdir()):
            run.labels(f"results/{path.stem}", np.asarray(Image.open(path)).shape)
        listed = yaml.safe_load((folder / "results/configs.yml").read_text())["stitch"]
        run.expect([e["z_index"] for e in listed] == [None] * args.images, f"configs.yml: {listed}")
        run("poly2mask out")
        mask = np.asarray(zarr.open(folder / "out/mask.zarr", mode="r"))
        run.expect(
            mask.shape == shape and len(np.unique(mask)) == n + 1, f"mask.zarr {mask.shape}, {mask.max()} labels"
        )
        run("infer --image-dir stack")
        configs = folder / "stack_results/configs.yml"
        entries = [e | {"z_index": k} for k, e in enumerate(yaml.safe_load(configs.read_text())["stitch"])]
        configs.write_text(yaml.safe_dump({"stitch": entries}))
        run("stitch stack_results --iou-threshold 0.5 --num-process 8")
        stitched = gpd.read_parquet(folder / "stack_results/3d_polygons.parquet").reset_index()
        run.expect({"geometry", "z_index", "cell_id"} <= set(stitched), f"3d_polygons.parquet: {list(stitched)}")
        tall = stitched.groupby("cell_id").z_index.nunique().max()
        run.expect(tall == args.planes, f"the tallest cell has {tall} planes")
    print(f"\n{len(run.wrong)} wrong" + "".join(f"\n  {what}" for what in run.wrong))
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
