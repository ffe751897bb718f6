"""The HTML elements of the pages that commands write; all texts are escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

__all__ = ["code", "facts", "image", "paragraphs", "pictures", "steps", "table"]


def paragraphs(*texts: str) -> str:
    """Return one <p> for each text that is not empty."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts if text)


def steps(items: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a numbered list of (bold lead, paragraphs)."""
    lines = (f"<li><b>{html.escape(lead)}</b>{paragraphs(*texts)}</li>" for lead, texts in items)
    return f"<ol>{''.join(lines)}</ol>"


def image(content: bytes, kind: str, description: str) -> str:
    """Return an embedded picture, PNG (kind "png") or SVG (kind "svg+xml")."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<img src="{source}" alt="{html.escape(description)}">'


def pictures(files: Sequence[bytes], names: Sequence[str], note: str) -> str:
    """Return a row of small PNG pictures, beside a note and one name per line."""
    row = "".join(image(file, "png", name) for file, name in zip(files, names, strict=False))
    lines = "".join(f"<span>{html.escape(name)}</span>" for name in names)
    text = f'<div class="names"><p>{html.escape(note)}</p>{lines}</div>'
    return f'<div class="group"><div>{row}</div>{text}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: text in the first column, numbers in the others."""

    def cells(tag, row):
        numbers = (f'<{tag} class="number">{html.escape(cell)}</{tag}>' for cell in row[1:])
        return f"<tr><{tag}>{html.escape(row[0])}</{tag}>{''.join(numbers)}</tr>"

    lines = [cells("th", header), *(cells("td", row) for row in rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and texts."""
    lines = (f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f'<table class="facts">{"".join(lines)}</table>'


def code(title: str, text: str) -> str:
    """Return a titled block of code."""
    return f"<h3>{html.escape(title)}</h3><pre><code>{html.escape(text)}</code></pre>"
