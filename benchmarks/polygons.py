"""Polygons of a large mosaic of real nuclei: ours against ``spatialdata``, in one run on one machine.

    python benchmarks/polygons.py --data PATH [--rows 8] [--cols 8] [--repeat 3] [--skip-reference]
    python benchmarks/polygons.py raster [--side 32000] [--step 32] [--kind edges|smooth] [--rasterio PYTHON]

PATH holds ``dsb2018/`` (CC0 nuclei with expert labels). Prints seconds, ratios, validity, exactness
and memory. ``raster`` draws as many cells as fit into an image, ``step`` px apart: ``poly2mask`` as a process, and
polygons in memory beside rasterio (in an environment of its own, PYTHON) and ``spatialdata.rasterize``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _raster
import dask.array as da
import numpy as np
import shapely
import spatialdata as sd
from _mosaic import mosaic

from spatialdata_segment import labels_to_polygons, polygons_to_labels

if TYPE_CHECKING:
    from collections.abc import Callable

    import geopandas as gpd


def timed(what: str, run: Callable[[], Any], repeat: int = 1) -> tuple[float, Any]:
    """Run ``repeat`` times; return and print the best time, with the last result."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    print(f"{what:<48}{min(seconds):9.3f} s")
    return min(seconds), result


def resident() -> int:
    """Return the memory in use now, bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def held(labels: da.Array, copies: int) -> float:
    """Return the bytes that one frame of polygons keeps."""
    frames = [labels_to_polygons(labels, progress=False)]
    before = resident()
    frames += [labels_to_polygons(labels, progress=False) for _ in range(copies)]
    return (resident() - before) / copies


def quality(frame: gpd.GeoDataFrame, labels: np.ndarray) -> str:
    """Tell how many geometries are valid, and how many have the area of their object."""
    area = np.bincount(labels.ravel())[frame.index.to_numpy()]
    exact = np.isclose(frame.area.to_numpy(), area, rtol=0, atol=1e-6).sum()
    return f"{len(frame)} objects, {frame.is_valid.sum()} valid, {exact} of the exact area"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("mosaic", "raster"), default="mosaic")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--side", type=int, default=32000)
    parser.add_argument("--step", type=int, default=32)
    parser.add_argument("--kind", choices=("edges", "smooth"), default="edges")
    parser.add_argument("--rasterio", metavar="PYTHON")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--beside", nargs="*", default=["ours", "rasterio", "spatialdata"], help="of raster, in memory")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--cols", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--skip-reference", action="store_true")
    args = parser.parse_args()
    if args.part == "raster":
        _raster.run(args)
        return
    if args.data is None:
        parser.error("--data is needed")

    _, labels = mosaic(args.data, args.rows, args.cols)
    lazy = da.from_array(labels, chunks=2048)
    print(f"mosaic {labels.shape[0]} x {labels.shape[1]} px, {len(np.unique(labels)) - 1} nuclei")
    labels_to_polygons(lazy[:64, :64], progress=False)  # compiles
    polygons_to_labels([shapely.box(0, 0, 1, 1)], (2, 2)).compute()

    ours, frame = timed("labels_to_polygons", lambda: labels_to_polygons(lazy, progress=False), args.repeat)
    back_s, back = timed("polygons_to_labels", lambda: polygons_to_labels(frame, labels.shape).compute(), args.repeat)
    vertices = shapely.get_num_coordinates(frame.geometry.to_numpy()).sum()
    size = held(lazy, 20)
    print(f"  {quality(frame, labels)}; back to the same labels: {np.array_equal(back, labels)}")
    print(f"  {vertices} vertices; {size / len(frame):.0f} B a polygon, {size / vertices:.1f} B a vertex")
    print(f"  over 45 B a vertex: {size / len(frame) - 45 * vertices / len(frame):.0f} B a polygon (goal: 1 KB)")
    if args.skip_reference:
        return
    model = sd.models.Labels2DModel.parse(lazy, dims=("y", "x"))
    reference, theirs = timed("spatialdata.to_polygons", lambda: sd.to_polygons(model))
    print(f"  {quality(theirs, labels)}")
    print(f"  labels_to_polygons is {reference / ours:.0f} x faster")
    shapes = sd.models.ShapesModel.parse(frame.reset_index(drop=True))
    height, width = labels.shape
    raster_s, raster = timed(
        "spatialdata.rasterize",
        lambda: np.asarray(
            sd.rasterize(
                shapes,
                axes=("x", "y"),
                min_coordinate=[0, 0],
                max_coordinate=[width, height],
                target_coordinate_system="global",
                target_width=width,
                return_regions_as_labels=True,
            ).data
        ),
    )
    same = np.count_nonzero((raster > 0) == (labels > 0)) / labels.size
    print(f"  foreground as in the labels in {same:.2%} of the pixels")
    print(f"  polygons_to_labels is {raster_s / back_s:.0f} x faster")


if __name__ == "__main__":
    main()
