"""What pictures have besides pixels and outlines: a scale bar, a legend, a figure of their shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

_SHARE = 0.2
"""Of the width of a picture: the length of its scale bar, at most."""
_SIDE, _LEAST = 7.0, 2.0
"""Inches of the sides of a picture, the longer one, and the least."""
_MARGINS = 0.7, 0.6
"""Inches beside and below a picture, for its ticks."""
_ROW, _ENTRY = 0.2, 1.6
"""Inches of an entry of a legend above a picture, its height and width."""


def bar_length(pixel_size: float, width: float) -> float:
    """Return the µm of a scale bar: 1, 2 or 5 times a power of ten, at most a fifth of ``width`` pixels."""
    most = width * pixel_size * _SHARE
    power = 10.0 ** np.floor(np.log10(most) + 1e-9)
    return float(max(n for n in (1, 2, 5) if n * power <= most * (1 + 1e-9)) * power)


def length_text(um: float) -> str:
    """Return a length with its unit."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def scale_bar(ax: Axes, pixel_size: float, width: float) -> None:
    """Draw a scale bar into the lower left corner.

    Parameters
    ----------
    ax
        In pixels.
    pixel_size
        µm a pixel to the right.
    width
        Pixels shown.
    """
    from matplotlib.patheffects import withStroke
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    um = bar_length(pixel_size, width)
    bottom, top = ax.get_ylim()
    bar = AnchoredSizeBar(
        ax.transData,
        um / pixel_size,
        length_text(um),
        "lower left",
        pad=0.4,
        sep=3,
        color="white",
        frameon=False,
        size_vertical=abs(bottom - top) * 0.006,
        label_top=True,
    )
    for text in bar.txt_label.get_children():
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])
    ax.add_artist(bar)


def literal(text: str) -> str:
    """Return a text that matplotlib draws as it is, where it would read formulas between dollar signs."""
    return text.replace("$", r"\$")


def drawn_in(ax: Axes, names: Iterable[str] = ()) -> list[tuple[str, Artist]]:
    """Return what is drawn in axes, with its name; of names that begin with "_", which matplotlib hides, ``names``."""
    wanted = {name for name in names if name.startswith("_")}
    hidden = [(str(c.get_label()), c) for c in ax.collections if str(c.get_label()) in wanted]
    artists, labels = ax.get_legend_handles_labels()
    return [*hidden, *zip(map(str, labels), artists, strict=True)]


def draw_legend(target: Axes | Figure, entries: Sequence[tuple[str, Artist]], **options: Any) -> Legend:
    """Draw a legend whose texts are the names, letter for letter: matplotlib gives "_" and "$" a meaning."""
    numbers = [str(i) for i in range(len(entries))]
    legend = target.legend([artist for _, artist in entries], numbers, fontsize="small", **options)
    for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(name)
        text.set_parse_math(False)
    return legend


DARK: dict[str, Any] = {"facecolor": "#202020", "labelcolor": "white", "edgecolor": "none"}
"""Of legends in which the colours are those of outlines, which are bright."""


def add_legend(
    ax: Axes, channels: Mapping[str, tuple[float, float, float]], names: Iterable[str], *, above: bool
) -> None:
    """Name channels and what is drawn, where that is more than one thing.

    ``above``: the axes are those of :func:`new_axes`, which grow by a legend above them, where it hides nothing; else
    it goes into a corner.
    """
    from matplotlib.patches import Patch

    patches = [(name, Patch(facecolor=color, edgecolor="none")) for name, color in channels.items()]
    entries: list[tuple[str, Artist]] = [*patches, *drawn_in(ax, names)]
    if len(entries) < 2:
        return
    place: dict[str, Any] = {"loc": "upper right", "framealpha": 0.75}
    if above:
        figure: Any = ax.figure
        columns = min(len(entries), max(1, int(figure.get_figwidth() / _ENTRY)))
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": columns, "borderaxespad": 0.4}
        make_room(figure, len(entries), columns)
    draw_legend(ax, entries, **DARK, **place).set_zorder(4)


def make_room(figure: Figure, entries: int, columns: int) -> None:
    """Make a figure higher by the rows of a legend, and the space around it."""
    rows = -(-entries // columns)
    figure.set_figheight(figure.get_figheight() + _ROW * (rows + 1))


def new_axes(height: float, width: float) -> Axes:
    """Return axes of a new figure that has the shape of a picture, its sides in any unit."""
    import matplotlib.pyplot as plt

    high, wide = (max(_SIDE * n / max(height, width), _LEAST) for n in (height, width))
    return plt.subplots(figsize=(wide + _MARGINS[0], high + _MARGINS[1]), layout="constrained")[1]
