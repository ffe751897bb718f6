"""The style of all figures, sized for one column of a two-column paper.

Colors are from the Okabe-Ito palette, which color-blind readers can distinguish. Line styles differ
too, for printing in gray.
"""

import contextlib
import importlib
import io
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from geomem import paths

__all__ = [
    "COLORS",
    "COLUMN",
    "ZONE",
    "import_in_background",
    "legend",
    "noise_axis",
    "plain",
    "save",
    "sheet",
    "svg",
]

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
    "black": "#000000",
}
ZONE: dict[str, Any] = {"color": COLORS["yellow"], "alpha": 0.35, "lw": 0, "label": "danger zone"}
_BACKENDS = ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf")
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 7,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "pdf.fonttype": 42,
}


def import_in_background() -> None:
    """Import matplotlib while other work goes on; a figure then starts half a second earlier."""
    # Not a daemon: Python must not end in the middle of an import.
    threading.Thread(target=lambda: [importlib.import_module(name) for name in _BACKENDS]).start()


@contextlib.contextmanager
def sheet(width: float = COLUMN, height: float = 2.7) -> Iterator:
    """Yield a new matplotlib Figure that is drawn in this style inside the `with` block.

    Args:
      width, height: size in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def plain(text: str) -> str:
    """Return a user's text so that matplotlib does not read formulas between dollar signs."""
    return text.replace("$", r"\$")


def noise_axis(axes, low: float, high: float) -> None:
    """Make the horizontal axis one of noise levels from `low` to `high`, in their logarithm."""
    axes.set(xscale="log", xlim=(low, high), xlabel=r"noise level $\sigma$")
    axes.xaxis.set_major_formatter("{x:g}")


def legend(figure, axes, columns: int = 2, title: str | None = None) -> None:
    """Put a legend below the whole figure, with each label of `axes` once."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    place = {"loc": "outside lower center", "ncols": columns, "title": title}
    box = figure.legend(entries.values(), entries.keys(), **place)
    box.get_title().set_multialignment("center")


def save(figure, folder: paths.AnyPath, name: str = "figure") -> list[pathlib.Path]:
    """Write NAME.png (300 dpi) and NAME.pdf to `folder` and return their paths."""
    files = [paths.as_path(folder) / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    for path in files:
        # Without a creation date, the same figure always gives the same bytes.
        # geomem does not take a PNG with this mark for an image of a data set.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": "geomem"}
        with paths.open_whole(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=300, metadata=metadata)
        figure.set_layout_engine("none")  # keep the layout: to find it again takes half the time
    return files


def svg(figure) -> bytes:
    """Return the figure as SVG with text as outlines, so that it does not depend on fonts."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "geomem"}):  # the same ids in each file
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
