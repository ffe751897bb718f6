"""The look of every figure: sized for one column of a two-column paper.

Colours come from the Okabe-Ito palette, which colour-blind readers can tell apart, with line styles
that survive a gray print.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Iterator

from geomem import paths

__all__ = ["COLORS", "COLUMN", "save", "sheet", "svg"]

COLUMN = 3.4  # inches
COLORS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "yellow": "#F0E442",
    "green": "#009E73",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "gray": "#666666",
}
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def sheet(width: float = COLUMN, height: float = 2.7) -> Iterator:
    """A new matplotlib Figure in this style, to be drawn on inside the `with` block.

    Args:
      width, height: in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure, folder: paths.AnyPath, name: str = "figure") -> list[pathlib.Path]:
    """Write NAME.png (300 dpi) and NAME.pdf; returns their paths."""
    files = [paths.as_path(folder) / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    for path in files:
        # No creation date: the same numbers give the same bytes.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        with paths.open_whole(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=300, metadata=metadata)
    return files


def svg(figure) -> bytes:
    """The figure as SVG, its text as outlines: looks the same anywhere, without a font."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
