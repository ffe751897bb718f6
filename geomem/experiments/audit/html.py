"""The few HTML elements that an audit's page is made of; all text that comes in is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

__all__ = ["code", "facts", "image", "paragraphs", "pictures", "table"]


def paragraphs(*texts: str, soft: bool = False) -> str:
    """One <p> for each text that is not empty; `soft` for what matters less."""
    start = '<p class="soft">' if soft else "<p>"
    return "".join(f"{start}{html.escape(text)}</p>" for text in texts if text)


def image(content: bytes, kind: str, description: str) -> str:
    """A picture inside the page: PNG (kind "png") or SVG ("svg+xml")."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<img src="{source}" alt="{html.escape(description)}">'


def pictures(files: Sequence[bytes], names: Sequence[str], note: str) -> str:
    """A row of small PNG pictures with their names, and a note at its end."""
    cells = [
        f"<div>{image(content, 'png', name)}<span>{html.escape(name)}</span></div>"
        for content, name in zip(files, names, strict=False)
    ]
    return f'<div class="group">{"".join(cells)}<p class="soft">{html.escape(note)}</p></div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""

    def cells(tag, row):
        numbers = (f'<{tag} class="number">{html.escape(cell)}</{tag}>' for cell in row[1:])
        return f"<tr><{tag}>{html.escape(row[0])}</{tag}>{''.join(numbers)}</tr>"

    lines = [cells("th", header), *(cells("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and texts."""
    lines = (f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f'<table class="facts">{"".join(lines)}</table>'


def code(title: str, text: str) -> str:
    """A titled block to copy from."""
    return f"<h3>{html.escape(title)}</h3><pre><code>{html.escape(text)}</code></pre>"
