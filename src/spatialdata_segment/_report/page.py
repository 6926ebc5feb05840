"""The page: HTML around what others computed. All text that comes from outside is escaped here."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """Return the whole file.

    Parameters
    ----------
    title, subtitle
        Text.
    sections
        Id, heading, HTML.
    """
    own = files("spatialdata_segment._report")
    style, script = (own.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    links = "".join(f'<a href="#{i}">{escape(heading)}</a>' for i, heading, _ in sections)
    body = "".join(
        f'<section id="{i}" aria-labelledby="{i}-h"><h2 id="{i}-h">{escape(heading)}</h2>{html}</section>'
        for i, heading, html in sections
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>'
        f'<nav aria-label="Sections">{links}</nav></header>\n<main>\n{body}\n</main>\n{_VIEW}\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


_VIEW = (
    '<dialog id="view" aria-label="Enlarged picture"><div id="stage"></div><div id="bar"><span></span>'
    '<button id="farther" aria-label="Zoom out">−</button><button id="closer" aria-label="Zoom in">+</button>'
    '<button id="whole">Fit</button><button id="close">Close</button></div></dialog>'
)


def switches(names: Mapping[str, str]) -> str:
    """Return the boxes that hide what is drawn, by class and what it is called."""
    boxes = "".join(
        f'<label><input type="checkbox" value="{name}" checked> {escape(text)}</label>' for name, text in names.items()
    )
    return f'<div class="show" role="group" aria-label="Outlines shown">{boxes}</div>'


def figure(picture: str, text: str, caption: str, *, zooms: bool = True) -> str:
    """Return a picture with its caption; ``text`` names the button that enlarges it."""
    shown = f'<button class="zoom" aria-label="Enlarge: {escape(text)}">{picture}</button>' if zooms else picture
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str, *, swatches: Sequence[str] = ()) -> str:
    """Return a table; numbers stand to the right.

    ``swatches``: colours before the first column, one a row.
    """
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]
    ends = [' class="n"' if n else "" for n in numeric]
    top = "".join(f'<th scope="col"{end}>{escape(h)}</th>' for h, end in zip(head, ends, strict=True))
    lines = []
    for at, row in enumerate(rows):
        mark = f'<span class="swatch" style="background:{swatches[at]}"></span>' if swatches else ""
        first = f'<th scope="row"{ends[0]}>{mark}{_cell(row[0])}</th>'
        rest = "".join(f"<td{end}>{_cell(v)}</td>" for v, end in zip(row[1:], ends[1:], strict=True))
        lines.append(f"<tr>{first}{rest}</tr>")
    named = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{named}"><table><caption>{named}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def tiles(numbers: Iterable[tuple[str, str]]) -> str:
    """Return numbers that stand out: value and what it is."""
    return f'<ul class="tiles">{"".join(f"<li><b>{escape(v)}</b>{escape(t)}</li>" for v, t in numbers)}</ul>'


def bullets(lines: Sequence[str], kind: str) -> str:
    """Return a list."""
    return f'<ul class="{kind}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def details(summary: str, text: str) -> str:
    """Return text that is hidden until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "–" if value != value else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return escape(str(value))
