"""Figures read `results/` and lay out what they find; one file a figure, named after the table it is drawn from.

A figure is a function from the results folder to a matplotlib Figure. Those of `study.figures` are stages.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from feature_survival.artifacts import atomic_file
from feature_survival.schema import unknown

FIGURES = [module.name for module in iter_modules(__path__) if module.name != "style"]


def draw(name: str, results: Path, folder: Path) -> list[Path]:
    """Draw one figure as PDF and PNG; InputError lists the known names. Returns the files written."""
    name = name.replace("-", "_")
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    from matplotlib import rc_context

    from feature_survival.figures.style import STYLE

    with rc_context(STYLE):
        figure = import_module(f"{__name__}.{name}").figure(results)
        written = []
        for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {"Software": None})):
            with atomic_file(folder / f"{name}{suffix}") as path:
                figure.savefig(path, metadata=metadata)  # no dates: the same results give the same bytes
            written.append(folder / f"{name}{suffix}")
    return written
