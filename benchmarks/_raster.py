"""A million cells drawn as labels: ``poly2mask`` as a process of its own, rasterio and spatialdata beside it.

Called by ``polygons.py raster``; with ``--worker`` it is what that runs in another Python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import shapely

SIZE = 32
"""px that hold a cell."""


def shapes(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``n`` outlines of cells about (16, 16), none beyond 32 x 32 px: smooth, or along pixel edges."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    bumps = sum(rng.uniform(-0.12, 0.12, (n, 1)) * np.cos(k * angle + rng.uniform(0, 6.3, (n, 1))) for k in (2, 3, 4))
    radius = rng.uniform(8, 11.5, (n, 1)) * (1 + bumps)
    points = np.stack((16 + radius * np.cos(angle), 16 + radius * np.sin(angle)), axis=-1)
    smooth = shapely.polygons(points)
    if kind == "smooth":
        return smooth
    from spatialdata_segment.core.contours import fill, trace

    found = []
    for shape in smooth:
        labels = np.zeros((SIZE, SIZE), np.uint32)
        fill(labels, np.array([shape]), np.array([1]))
        found.append(trace(labels).geometry[0])
    return np.array(found)


def write_cells(folder: Path, side: int, kind: str, step: int) -> int:
    """Write polygons.parquet and metadata.json of an image full of cells; return their number."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    templates = shapes(kind, 256, rng)
    per_row = side // step
    schema = pa.schema({"geometry": pa.binary(), "cell_id": pa.int64()})
    geo = {"version": "1.0.0", "primary_column": "geometry"}
    geo["columns"] = {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}}  # type: ignore[assignment]
    schema = schema.with_metadata({"geo": json.dumps(geo)})
    with pq.ParquetWriter(folder / "polygons.parquet", schema, compression="zstd") as writer:
        for row in range(per_row):
            chosen = templates[rng.integers(0, len(templates), per_row)]
            xy, owner = shapely.get_coordinates(chosen, return_index=True)
            moved = shapely.set_coordinates(
                chosen.copy(), xy + np.column_stack((owner * step, np.full(len(xy), row * step)))
            )
            ids = np.arange(1, per_row + 1) + row * per_row
            table = pd.DataFrame({"geometry": shapely.to_wkb(moved), "cell_id": ids})
            writer.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False))
    (folder / "metadata.json").write_text(json.dumps({"image-shape": [side, side]}))
    return per_row**2


def watched(command: list[str]) -> tuple[float, float, float]:
    """Run a process; return its seconds, those of the CPU, and the peak of its resident memory, MB."""
    import psutil

    peak, cpu = 0, 0.0
    start = time.perf_counter()
    process = subprocess.Popen(command)
    seen = psutil.Process(process.pid)

    def watch() -> None:
        nonlocal peak, cpu
        while process.poll() is None:
            try:
                peak = max(peak, seen.memory_info().rss)
                cpu = sum(seen.cpu_times()[:2])
            except psutil.Error:
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait():
        raise SystemExit(f"{command} failed")
    thread.join()
    return time.perf_counter() - start, cpu, peak / 1e6


def run(args: argparse.Namespace) -> None:
    """Run the comparison."""
    with TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        n = write_cells(folder, args.side, args.kind, args.step)
        print(f"{n} {args.kind} cells on {args.side} x {args.side} px")
        seconds, cpu, peak = watched([sys.executable, "-m", "spatialdata_segment", "poly2mask", str(folder)])
        print(f"poly2mask, the whole process, file to zarr      {seconds:9.2f} s {cpu:9.2f} s of CPU {peak:9.0f} MB")
        for worker, python in (("ours", sys.executable), ("rasterio", args.rasterio), ("spatialdata", sys.executable)):
            if python and worker in args.beside:
                watched([python, __file__, "--worker", worker, str(folder)])


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Return geometries, ids and the image's side."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "polygons.parquet")
    geometry = shapely.from_wkb(table.column("geometry").to_numpy())
    return (
        geometry,
        table.column("cell_id").to_numpy(),
        json.loads((folder / "metadata.json").read_text())["image-shape"][0],
    )


def work(worker: str, folder: Path) -> None:
    """Draw the polygons, which are in memory before and after as labels, and print the best time of twenty."""
    geometry, ids, side = read(folder)
    if worker == "ours":
        from spatialdata_segment import polygons_to_labels

        polygons_to_labels(geometry[:1], (40, 40)).compute()  # compiles

        def draw() -> Any:
            return polygons_to_labels(geometry, (side, side), ids=ids).compute()

    elif worker == "rasterio":
        from rasterio.features import rasterize

        def draw() -> Any:
            return rasterize(zip(geometry, ids.tolist(), strict=True), (side, side), dtype="int32")

    else:
        import geopandas as gpd
        import spatialdata as sd

        element = sd.models.ShapesModel.parse(gpd.GeoDataFrame(geometry=geometry))
        box = {"min_coordinate": [0, 0], "max_coordinate": [side, side], "target_coordinate_system": "global"}

        def draw() -> Any:
            drawn = sd.rasterize(element, ("x", "y"), **box, target_width=side, return_regions_as_labels=True)
            return np.asarray(drawn.data)

    seconds = cpu = float("inf")
    for _ in range(20):
        labels, start, started = None, time.perf_counter(), time.process_time()
        labels = draw()
        seconds, cpu = min(seconds, time.perf_counter() - start), min(cpu, time.process_time() - started)
    print(f"{worker + ', polygons in memory to an array':<48}{seconds:9.3f} s {cpu:9.3f} s of CPU", end="; ")
    print(f"{np.count_nonzero(labels)} px in cells")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", required=True)
    parser.add_argument("folder", type=Path)
    parsed = parser.parse_args()
    work(parsed.worker, parsed.folder)
