"""The pictures of a report: crops as SVG over JPEG, whole images as JPEG, charts as SVG. All of them as text."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._report.facts import size_text
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.contours import trace
from spatialdata_segment.pl._draw import COLORS, blend, limits
from spatialdata_segment.pl._dropped import among, reason_color
from spatialdata_segment.pl._marks import bar_length, length_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from spatialdata_segment._report.crops import Crop
    from spatialdata_segment._results import Picture, Result

QUANTILES = 0.01, 0.998
_INK = "#0a0b0c"
"""Stands for the colour of the text in charts: they follow the theme of the page."""


@dataclass(frozen=True)
class Pixels:
    """One crop, read.

    Attributes
    ----------
    crop
        Which.
    planes
        The channels, ``(y, x)``; none where there is no image.
    labels
        Mask -> labels of the crop and a pixel around it, and where they begin (y, x).
    """

    crop: Crop
    planes: list[NDArray[Any]]
    labels: dict[str, tuple[NDArray[Any], tuple[int, int]]]


def read_crop(crop: Crop, result: Result, picture: Picture | None, channels: Sequence[int]) -> Pixels:
    """Read a crop, and nothing else."""
    plane = () if crop.z is None else (crop.z,)
    planes = (
        []
        if picture is None
        else [np.asarray(picture.levels.arrays[0][(c, *plane, *crop.box.slices)]) for c in channels]
    )
    wide = crop.box.grow((1, 1), Box.whole(result.shape[-2:]))
    start = (wide.start[0], wide.start[1])
    labels = {m: (np.asarray(of.arrays[0][(*plane, *wide.slices)]), start) for m, of in result.labels.items()}
    return Pixels(crop, planes, labels)


def contrast(crops: Sequence[Pixels]) -> list[tuple[float, float]]:
    """Return what is drawn black and what full of each channel in all crops together."""
    shown = [c.planes for c in crops if c.planes]
    return [limits([planes[i] for planes in shown], QUANTILES) for i in range(len(shown[0]))] if shown else []


def _stretched(plane: NDArray[Any], ends: tuple[float, float]) -> tuple[float, float]:
    """Return what is drawn black and full in one crop: its own quantiles, but stretched four times more at most."""
    low, high = limits([plane], QUANTILES)
    return low, max(high, low + (ends[1] - ends[0]) / 4)


def crop_svg(pixels: Pixels, result: Result, ends: Sequence[tuple[float, float]], text: str) -> str:
    """Return a crop as SVG: pixels, outlines by mask, boxes of what was dropped; each object names itself.

    ``text`` describes it.
    """
    box = pixels.crop.box
    (top, left), (bottom, right) = box.start, box.stop
    height, width = box.shape
    own = [_stretched(p, e) for p, e in zip(pixels.planes, ends, strict=True)]
    picture = blend(pixels.planes, own) if own else np.zeros((height, width, 3), np.float32)
    parts = [
        f'<svg class="crop" viewBox="{left} {top} {width} {height}" role="img" aria-label="{escape(text)}">',
        f'<image x="{left}" y="{top}" width="{width}" height="{height}" href="{jpeg(picture)}"/>',
    ]
    for mask, (labels, start) in pixels.labels.items():
        parts.append(f'<g class="o-{mask}" stroke="{COLORS[mask]}">')
        outlines = trace(labels, start)
        drawn = zip(outlines.ids.tolist(), outlines.geometry, strict=True)
        for i, shape in sorted(drawn, key=lambda o: (mask, o[0]) == pixels.crop.target):  # that one above the others
            chosen = ' class="target"' if (mask, i) == pixels.crop.target else ""
            parts.append(f'<path{chosen} d="{_path(shape)}"><title>{mask} {i}</title></path>')
        parts.append("</g>")
    rows = among(result.candidates, (left, right, top, bottom), pixels.crop.z)
    parts.append('<g class="o-dropped">')
    for _, row in rows.iterrows():
        x, y = row["bbox_x_min"] - 1, row["bbox_y_min"] - 1
        wide, high = row["bbox_x_max"] - x + 1, row["bbox_y_max"] - y + 1
        reason = str(row["drop_reason"])
        said = escape(f"{row['kind']} dropped: {reason.replace('_', ' ')}, {size_text(result, row['area'])}")
        at = f'x="{x}" y="{y}" width="{wide}" height="{high}"'
        parts.append(f'<rect {at} stroke="{reason_color(reason)}"><title>{said}</title></rect>')
    parts.append("</g>")
    if result.pixel_size is not None:
        parts.append(_bar(box, result.pixel_size[-1]))
    return "".join([*parts, "</svg>"])


def chart_svg(draw: Callable[..., Any], text: str, prefix: str, size: tuple[float, float] = (6, 3.4)) -> str:
    """Return a chart as SVG that takes the colour of the page's text.

    Parameters
    ----------
    draw
        Called with ``ax=``.
    text
        Describes it.
    prefix
        Of the ids in it, which must be unique in the page.
    size
        Inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
    settings: Any = dict.fromkeys(ink, _INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "sans-serif",
        "font.size": 10,
        "legend.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        draw(ax=figure.add_subplot())
        out = BytesIO()
        nothing: Any = {"Date": None, "Creator": None}
        figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    svg = out.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns:\w+="[^"]*"| xmlns="[^"]*"', "", svg, count=0).replace("xlink:href", "href")
    return svg.replace("<svg", f'<svg class="chart" role="img" aria-label="{escape(text)}"', 1).strip()


def figure_jpeg(draw: Callable[..., Any], text: str, shape: tuple[int, int], side: int) -> str:
    """Return what ``draw(ax=...)`` draws of an image as an ``<img>``, without margins.

    Parameters
    ----------
    draw
        Called with ``ax=``.
    text
        Describes it.
    shape
        Height and width of what it draws, in any unit.
    side
        Pixels of the longer side.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = (max(1, round(side * n / max(shape))) for n in shape)
    dpi = 100
    with mpl.rc_context({"font.size": side / 45}):
        figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="black")
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1))
        draw(ax=ax)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
        ax.set_axis_off()
        ax.set_aspect("auto")
        out = BytesIO()
        figure.savefig(out, format="jpeg", dpi=dpi, pil_kwargs={"quality": 76, "subsampling": 0})
    return f'<img src="{_uri(out)}" width="{width}" height="{height}" alt="{escape(text)}">'


def jpeg(picture: NDArray[np.float32]) -> str:
    """Return RGB, 0..1, as a data URI."""
    from PIL import Image

    out = BytesIO()
    Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(out, "JPEG", quality=85, subsampling=0)
    return _uri(out)


def _uri(file: BytesIO) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _path(shape: Any) -> str:
    """Return a polygon of corners of pixels as steps along the axes."""
    parts = []
    for polygon in getattr(shape, "geoms", [shape]):
        for ring in (polygon.exterior, *polygon.interiors):
            points = np.asarray(ring.coords, np.int64)
            steps = np.diff(points[:-1], axis=0).tolist()
            parts.append(f"M{points[0, 0]} {points[0, 1]}")
            parts += [f"h{dx}" if dx else f"v{dy}" for dx, dy in steps]
            parts.append("z")
    return "".join(parts)


def _bar(box: Box, pixel_size: float) -> str:
    """Return a scale bar."""
    um = bar_length(pixel_size, box.shape[1])
    unit = box.shape[1] / 100
    x, y, long = box.start[1] + 3 * unit, box.stop[0] - 4 * unit, um / pixel_size
    return (
        f'<g class="bar"><rect x="{x:.2f}" y="{y:.2f}" width="{long:.2f}" height="{unit:.2f}"/>'
        f'<text x="{x:.2f}" y="{y - unit:.2f}" font-size="{4 * unit:.2f}">{length_text(um)}</text></g>'
    )
