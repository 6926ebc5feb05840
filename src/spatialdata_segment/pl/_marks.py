"""What pictures have besides pixels and outlines: a scale bar, a legend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

_SHARE = 0.2
"""Of the width of a picture: the length of its scale bar, at most."""


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


def add_legend(ax: Axes, channels: Mapping[str, tuple[float, float, float]]) -> None:
    """Name channels and what is drawn, where that is more than one thing."""
    from matplotlib.patches import Patch

    drawn, names = ax.get_legend_handles_labels()
    patches = [Patch(facecolor=color, edgecolor="none", label=name) for name, color in channels.items()]
    if len(drawn) + len(patches) < 2:
        return
    legend = ax.legend(
        handles=[*patches, *drawn],
        labels=[*channels, *names],
        loc="upper right",
        fontsize="small",
        facecolor="#202020",
        labelcolor="white",
        edgecolor="none",
        framealpha=0.75,
    )
    legend.set_zorder(4)
