"""Small pieces of HTML that the chapters of the demo's page share; texts go through `crest.page.text`."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from crest.page import scroll, text


def slug(name: str) -> str:
    """A chapter's name as an anchor."""
    return name.lower().replace(" ", "-")


def title(name: str, heading: str, lead: str) -> str:
    """A chapter's heading and its leading sentence, which is HTML."""
    return f'<h2 id="{slug(name)}-title">{text(heading)}</h2><p class="lead">{lead}</p>'


def image(path: Path, alt: str, css: str = "") -> str:
    """An <img> with the PNG file inside."""
    data = base64.b64encode(path.read_bytes()).decode()
    return inline_image(data, alt, css)


def inline_image(data: str, alt: str, css: str = "") -> str:
    """An <img> of a PNG in base64."""
    return (
        f'<img src="data:image/png;base64,{data}" alt="{text(alt)}" width="64" height="64"'
        f"{f' class={css!r}' if css else ''}>"
    )


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table whose cells are HTML, in a box that scrolls sideways; the first cell of a row is its header.

    Args:
        words: columns that hold words; the others hold figures and are set to the right.
    """

    def place(column: int) -> str:
        return " class='number'" if column >= words else ""

    cells = "".join(f"<th scope='col'{place(column)}>{cell}</th>" for column, cell in enumerate(head))
    lines = ""
    for row in rows:
        others = "".join(f"<td{place(column)}>{cell}</td>" for column, cell in enumerate(row[1:], start=1))
        lines += f"<tr><th scope='row'>{row[0]}</th>{others}</tr>"
    return scroll(
        f"<table class='plain'><caption>{text(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{lines}</tbody></table>",
        caption,
    )
