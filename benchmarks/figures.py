"""Figures from `results/`, each a command of its own: `feature-survival figure NAME`, its start included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from race import Case, Seconds

from feature_survival.figures import FIGURES

TOP = Path(__file__).resolve().parent.parent
COMMAND = "from feature_survival.cli import main; main()"
ONE, ALL = 3.0, 15.0  # seconds


def draw(name: str, folder: Path) -> float:
    """Seconds of the command."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", COMMAND, "figure", name], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def cases(full: bool = False) -> Iterator[Case]:
    """All of them one after the other, then the slowest of those by itself."""
    with tempfile.TemporaryDirectory() as name:
        folder, taken = Path(name), {figure: 0.0 for figure in FIGURES}
        (folder / "results").symlink_to(TOP / "results")

        def everything() -> Seconds:
            for figure in FIGURES:
                taken[figure] = draw(figure, folder)
            return Seconds(sum(taken.values()))

        def drawn(*_: object) -> str:
            missing = [figure for figure in FIGURES if not (folder / "paper_figures" / f"{figure}.pdf").exists()]
            assert not missing, f"not drawn: {', '.join(missing)}"
            return ""

        yield Case("figures", f"all {len(FIGURES)}, a process each, in turn", everything, drawn, limit=ALL)
        slowest = max(taken, key=taken.__getitem__)
        yield Case("figures", f"the slowest, {slowest}", lambda: draw(slowest, folder), drawn, limit=ONE)
