"""One look for all figures: paper column widths, colour-blind-safe, telling apart in grey."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

COLUMN_WIDTH = 3.5  # inches
FULL_WIDTH = 7.0  # two columns

STYLE: Any = {  # matplotlib's own type lists every key
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,
    "svg.hashsalt": "feature-survival",
}

# Okabe-Ito colours of clearly different lightness; marker and dash repeat what colour says.
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "wanda": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
}
FLOOR: dict[str, Any] = {"color": "0.35", "linewidth": 0.9}


def legend_below(canvas: Figure, columns: int) -> None:
    """One legend for all panels: methods first, then thin lines, then ceilings and floors."""
    entries: dict[str, Any] = {}
    for axis in canvas.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    last = ("two dense", "ceiling", "floor")
    order = sorted(entries, key=lambda label: (label.startswith(last), label.startswith("thin"), label))
    canvas.legend([entries[label] for label in order], order, ncols=columns, frameon=False, loc="outside lower center")
