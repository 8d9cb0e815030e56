"""Figures from `results/`: `feature-survival figure NAME`, its start included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from race import Case, seconds

from feature_survival.figures import FIGURES

TOP = Path(__file__).resolve().parent.parent
COMMAND = "from feature_survival.cli import main; main()"
ONE, ALL = 3.0, 15.0  # seconds


def draw(name: str, folder: Path) -> None:
    """Run the command."""
    subprocess.run([sys.executable, "-c", COMMAND, "figure", name], cwd=folder, stdout=subprocess.DEVNULL, check=True)


def cases(full: bool = False) -> Iterator[Case]:
    """All of them by one command, then the slowest by itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "results").symlink_to(TOP / "results")

        def drawn(*_: object) -> str:
            missing = [figure for figure in FIGURES if not (folder / "paper_figures" / f"{figure}.pdf").exists()]
            assert not missing, f"not drawn: {', '.join(missing)}"
            return ""

        yield Case("figures", f"all {len(FIGURES)}", lambda: draw("all", folder), drawn, limit=ALL)
        slowest = max(FIGURES, key=lambda figure: seconds(lambda: draw(figure, folder)))
        yield Case("figures", f"the slowest by itself, {slowest}", lambda: draw(slowest, folder), drawn, limit=ONE)
