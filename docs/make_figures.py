"""Draw the pictures of README and docs again: ``python docs/make_figures.py``. One of them needs Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image
from scipy.ndimage import distance_transform_edt
from skimage.graph import MCP_Geometric
from skimage.segmentation import find_boundaries

from spatialdata_segment import ExpandNuclei, SeededWatershed, ThresholdNuclei, Workflow, pl, report, segment
from spatialdata_segment._demo import demo_tissue, demo_workflow
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.statistics import Histogram
from spatialdata_segment.methods.base import ImageInfo, Method, Seeds, View
from spatialdata_segment.testing import Tissue

STATIC = Path(__file__).parent / "_static"
OWNERS = "#4c9be8", "#f28e2b", "#59a14f", "#b07aa1"
INK = "#333333"
NUCLEUS, CELL = "#ffd92f", "#ff4fd8"
TOP, LEFT, WINDOW = 460, 300, (260, 500)
SHOWN = Box((120, 130), (250, 260))


def overlay_picture() -> None:
    """The demo's nuclei and cells, for the README."""
    tissue = demo_tissue(1024)
    sdata = segment(tissue.to_spatialdata(), "image", demo_workflow(), shapes=False, progress=False)
    masks = {m: sdata[f"segmentation_{m}_labels"].data for m in ("nucleus", "cell")}
    path = STATIC / "overlay.png"
    crop = (slice(TOP, TOP + WINDOW[0]), slice(LEFT, LEFT + WINDOW[1]))
    pl.save_overlay(path, sdata["image"].data, masks, crop=crop, zoom=2, linewidth=1.1)
    _shrink(path, 96)


def shards_picture() -> None:
    """Cores, a halo, and the shard that owns each nucleus."""
    side, half, halo = 220, 110, 26
    tissue = Tissue((side, side), seed=5, cell_diameter=34, density=0.8, debris=0, uneven_light=0, blur=2)
    sdata = segment(tissue.to_spatialdata(), "image", ThresholdNuclei(sigma=2), shapes=False, progress=False)
    image, labels = sdata["image"].values, sdata["segmentation_cell_labels"].values
    figure = Figure(figsize=(9.4, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, title in (
        (left, "1. a shard reads its core and a halo"),
        (right, "2. the core that holds the anchor owns the object"),
    ):
        ax.set_title(title, fontsize=11, color=INK)
        ax.set(xlim=(-4, side + 4), ylim=(side + 4, -4), xticks=[], yticks=[], aspect="equal")
        ax.axis("off")
    grey = np.clip(image[0] / np.quantile(image[0], 0.998), 0, 1)
    left.imshow(grey, cmap="gray", extent=(0, side, side, 0))
    left.add_patch(Rectangle((0, 0), half + halo, half + halo, fc=OWNERS[0], alpha=0.28))
    left.add_patch(Rectangle((0, 0), half + halo, half + halo, fc="none", ec=OWNERS[0], lw=1.6, ls="--"))
    owned = np.ones((side, side, 3))
    anchors = []
    for label in range(1, int(labels.max()) + 1):
        mask = labels == label
        peak = int(np.argmax(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]))
        y, x = divmod(peak, side)
        owner = 2 * (y >= half) + (x >= half)
        owned[mask] = mpl.colors.to_rgb(OWNERS[owner])
        anchors.append((x + 0.5, y + 0.5))
    right.imshow(owned, extent=(0, side, side, 0))
    right.scatter(*zip(*anchors, strict=True), s=9, color="black", zorder=3)
    for ax, color in ((left, "white"), (right, INK)):
        ax.plot([half, half], [0, side], color=color, lw=1.4)
        ax.plot([0, side], [half, half], color=color, lw=1.4)
        ax.add_patch(Rectangle((0, 0), side, side, fc="none", ec=INK, lw=1.4))
    left.text(6, half - 6, "core", color="white", fontsize=11, weight="bold")
    left.text(6, half + halo - 6, "halo", color="white", fontsize=11, weight="bold")
    for k, (y, x) in enumerate(((0, 0), (0, half), (half, 0), (half, half))):
        right.text(x + 4, y + 11, f"shard {k}", color=INK, fontsize=9)
    figure.savefig(STATIC / "shards.png", dpi=110)
    _shrink(STATIC / "shards.png", 64)


def way_picture() -> None:
    """The way of the data."""
    steps = [
        ("resolve", "names, channels,\nscale, outputs checked"),
        ("statistics", "of the whole image,\nstreamed once"),
        ("plan", "fewest equal shards,\nmemory checked"),
        ("shards", "predict, decode;\neach kept in scratch"),
        ("seams", "one owner an object,\npainted whole"),
        ("objects", "match and filter\nwhole cells"),
        ("write", "labels, shapes, tables;\nall or nothing"),
    ]
    width, gap = 1.62, 0.26
    figure = Figure(figsize=(13.2, 1.75), layout="constrained")
    ax = figure.add_subplot()
    ax.axis("off")
    ax.set(xlim=(-0.05, len(steps) * (width + gap) - gap + 0.05), ylim=(0, 1.05))
    for k, (name, text) in enumerate(steps):
        x = k * (width + gap)
        lazy = name in ("shards", "seams")
        face = "#dcebfa" if lazy else "#f3f3f3"
        ax.add_patch(
            FancyBboxPatch((x + 0.05, 0.1), width - 0.1, 0.85, boxstyle="round,pad=0.05", fc=face, ec=INK, lw=1)
        )
        ax.text(x + width / 2, 0.74, name, ha="center", va="center", fontsize=12, weight="bold", color=INK)
        ax.text(x + width / 2, 0.34, text, ha="center", va="center", fontsize=8.6, color=INK)
        if k:
            ax.annotate(
                "", (x - 0.01, 0.52), (x - gap + 0.01, 0.52), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2}
            )
    with mpl.rc_context({"svg.hashsalt": "spatialdata-segment"}):
        figure.savefig(STATIC / "way.svg", metadata={"Date": None})


def classical_pictures() -> None:
    """The steps of the nuclei, and of the cells that grow from them."""
    dapi, wga = _crowded().image().compute()
    at = SHOWN.slices
    nuclei = ThresholdNuclei(object_radius=9)
    view = _whole(nuclei, dapi)
    maps = nuclei.predict(dapi[None], view)
    found = nuclei.decode(maps, view)
    distance = distance_transform_edt(maps[0])
    labels, peaks = found.labels, found.anchors
    assert peaks is not None
    y, x = (peaks[((peaks >= SHOWN.start) & (peaks < SHOWN.stop)).all(1)] - SHOWN.start).T
    figure, axes = _panels(
        "1. nuclear stain", "2. above the local threshold", "3. distance, and its peaks", "4. flooded from the peaks"
    )
    axes[0].imshow(_grey(dapi[at]), cmap="gray")
    axes[1].imshow(maps[0][at], cmap="gray")
    axes[2].imshow(distance[at], cmap="magma")
    axes[2].scatter(x, y, s=30, c="#7df9ff", marker="x", linewidths=1.4)
    axes[3].imshow(_outlined(dapi[at], (labels[at], NUCLEUS)))
    _save(figure, "classical_nuclei.png")

    cells = SeededWatershed()
    view = _whole(cells, wga, Seeds(labels.astype(np.int32), peaks))
    maps = cells.predict(wga[None], view)
    potential = 1 - maps[1] / 65535
    share = np.clip((potential - cells.min_clip) / (cells.max_clip - cells.min_clip), 0, 1)
    time, _ = MCP_Geometric(1 / (0.1 + 0.9 * share)).find_costs(list(zip(*np.nonzero(labels), strict=True)))
    grown = cells.decode(maps, view).labels
    figure, axes = _panels("5. membrane stain", "6. potential, and the nuclei", "7. travel time", "8. cells")
    axes[0].imshow(_grey(wga[at]), cmap="gray")
    axes[1].imshow(_outlined(share[at], (labels[at], NUCLEUS), top=1))
    axes[2].imshow(np.where(labels[at] > 0, np.nan, time[at]), cmap="viridis_r", vmax=40)
    axes[3].imshow(_outlined(wga[at], (grown[at], CELL), (labels[at], NUCLEUS)))
    _save(figure, "classical_cells.png")


def parameters_picture() -> None:
    """What contrast, object_radius and min_distance do."""
    dapi = _crowded().image().compute()[0]
    changed = {"contrast": (0.15, 0.7), "object_radius": (3, 30), "min_distance": (2, 20)}
    figure = Figure(figsize=(9.4, 6.5), layout="constrained")
    for column, (name, values) in zip(figure.subplots(2, 3).T, changed.items(), strict=True):
        for ax, value in zip(column, values, strict=True):
            method = ThresholdNuclei(**{"object_radius": 9, name: value})
            view = _whole(method, dapi)
            labels = method.decode(method.predict(dapi[None], view), view).labels
            ax.set_title(f"{name}={value}", fontsize=10.5, color=INK)
            ax.imshow(_outlined(dapi[SHOWN.slices], (labels[SHOWN.slices], NUCLEUS)))
            ax.axis("off")
    _save(figure, "classical_parameters.png")


def volume_picture() -> None:
    """Three planes of a volume with nuclei and cells."""
    voxel = (1.5, 0.5, 0.5)
    workflow = Workflow(nucleus=ThresholdNuclei(sigma=0.7), cell=ExpandNuclei(distance=2, unit="um"))
    tissue = Tissue((24, 160, 200), seed=1, cell_diameter=24, anisotropy=3)
    sdata = segment(tissue.to_spatialdata(), "image", workflow, pixel_size=voxel, shapes=False, progress=False)
    masks = {m: sdata[f"segmentation_{m}_labels"] for m in ("nucleus", "cell")}
    axes = pl.orthogonal_views(sdata["image"], masks, pixel_size=voxel)
    axes[0].figure.savefig(STATIC / "volume.png", dpi=90)
    _shrink(STATIC / "volume.png", 64)


def _crowded() -> Tissue:
    return Tissue((400, 400), seed=4, cell_diameter=34, density=0.9, debris=0, touching=1, multinucleated=0.35)


def _whole(method: Method, image: np.ndarray, seeds: Seeds | None = None) -> View:
    """The image in one piece, with the numbers that the method asks for."""
    info, box = ImageInfo(image.shape, image.dtype), Box.whole(image.shape)
    histogram = Histogram.of(image)
    return View(Window(box, box, box), info, {s: histogram.compute(s) for s in method.statistics(info)}, seeds)


def _panels(*titles: str) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(12.4, 3.5), layout="constrained")
    axes = figure.subplots(1, len(titles))
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10.5, color=INK)
        ax.axis("off")
    return figure, axes


def report_picture() -> None:
    """The upper part of a report, as a browser shows it. Needs Chromium on PATH."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no Chromium on PATH: report.png stays as it is")
        return
    sdata = demo_tissue(512).to_spatialdata()
    segment(sdata, "image", demo_workflow(), pixel_size=0.5, shard_size=300 * 300, progress=False)
    with TemporaryDirectory() as folder:
        page = report(sdata, Path(folder) / "report.html", title="A report")
        size = ["--window-size=1240,1250", f"--screenshot={STATIC / 'report.png'}"]
        command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        subprocess.run([*command, *size, page.resolve().as_uri()], check=True, capture_output=True)
    picture = Image.open(STATIC / "report.png")
    picture.resize((930, 937), Image.Resampling.LANCZOS).save(STATIC / "report.png")
    _shrink(STATIC / "report.png", 48)


def _grey(image: np.ndarray, top: float | None = None) -> np.ndarray:
    grey: np.ndarray = np.clip(image / (np.quantile(image, 0.998) if top is None else top), 0, 1)
    return grey


def _outlined(image: np.ndarray, *masks: tuple[np.ndarray, str], top: float | None = None) -> np.ndarray:
    """A grey image, three times as large, with the outlines of labels on it."""
    rgb = np.repeat(_grey(np.kron(image, np.ones((3, 3))), top)[..., None], 3, axis=2)
    for labels, color in masks:
        rgb[find_boundaries(np.kron(labels, np.ones((3, 3), np.int64)), mode="thick")] = mpl.colors.to_rgb(color)
    return rgb


def _save(figure: Figure, name: str) -> None:
    figure.savefig(STATIC / name, dpi=100)
    _shrink(STATIC / name, 128)


def _shrink(path: Path, colors: int) -> None:
    Image.open(path).convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    STATIC.mkdir(exist_ok=True)
    overlay_picture()
    shards_picture()
    way_picture()
    classical_pictures()
    parameters_picture()
    volume_picture()
    report_picture()
