"""When each stage ran: every stage appends a line to `artifacts/timeline.csv`, whatever started it; and its picture."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_survival.artifacts import atomic_file, read_csv, timeline
from feature_survival.environment import FIELDS, describe
from feature_survival.schema import InputError

if TYPE_CHECKING:
    import pandas as pd

TIMES = ("stage", "worker", "start", "end", "threads")  # times: seconds since the epoch
COLUMNS = (*TIMES, *FIELDS)
WORKER = "FEATURE_SURVIVAL_WORKER"  # in the environment of a stage: by which of a grid's workers it is run
KINDS = ("base", "prune", "cache", "sae", "metrics", "variants")  # the others take seconds
OTHERS = "others"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.35")
ROUNDING = 0.05  # seconds by which two stages that ran one after the other may seem to overlap


def record(root: Path, command: str, start: float) -> None:
    """Append a line on this process, which is about to end well; where that cannot be written it is left out.

    command: the stage's name where DVC, or the grid, did not give it in DVC_STAGE. start: seconds since the epoch.
    """
    values = {
        "stage": os.environ.get("DVC_STAGE") or command,
        "worker": os.environ.get(WORKER, ""),
        "start": f"{start:.2f}",
        "end": f"{time.time():.2f}",
        "threads": os.environ.get("OMP_NUM_THREADS") or os.cpu_count(),
        **describe(),
    }
    with contextlib.suppress(OSError):
        timeline(root).parent.mkdir(exist_ok=True)
        with timeline(root).open("a+", newline="") as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # or two that find it new would both begin it
            log.seek(0)
            header, *lines = log.read().splitlines() or [""]
            if header != ",".join(COLUMNS):  # new, or of an earlier release with fewer columns
                log.truncate(0)
                log.write("\n".join([",".join(COLUMNS), *lines, ""]))
            csv.DictWriter(log, COLUMNS, lineterminator="\n").writerow(values)


def read(log: Path) -> pd.DataFrame:
    """The last line of each stage, in order of time, with its `kind` and `lane`; times in minutes from the first start.

    Lanes: a worker of the grid each; otherwise the first in which nothing else ran. InputError where there is no line.
    """
    rows = read_csv(log, TIMES).drop_duplicates("stage", keep="last").sort_values("start", kind="stable")
    if rows.empty:
        raise InputError(f"{log}: no stage stands there")
    kinds = rows["stage"].str.split("[@ ]", n=1, regex=True).str[0]
    rows = rows.assign(kind=kinds.where(kinds.isin(KINDS), OTHERS), lane=_lanes(rows))
    first = rows["start"].min()
    return rows.assign(start=(rows["start"] - first) / 60, end=(rows["end"] - first) / 60)


def _lanes(rows: pd.DataFrame) -> list[str]:
    """Of rows in order of start."""
    free: list[float] = []  # when each lane's last stage ended
    lanes = []
    for worker, start, end in zip(rows["worker"], rows["start"], rows["end"], strict=True):
        if worker == worker:  # not NaN: one of a grid's; a number, which NaN beside it makes a float, or an address
            lanes.append(f"worker {worker:g}" if isinstance(worker, float) else f"worker {worker}")
            continue
        number = next((lane for lane, ended in enumerate(free) if ended <= start + ROUNDING), len(free))
        free[number : number + 1] = [end]
        lanes.append(f"lane {number + 1}")
    return lanes


def draw(logs: list[Path], out: Path) -> str:
    """A panel a log on one axis of minutes, to a PNG or PDF. Returns a line a log: wall time, work, idle time.

    A bar a stage, a colour a kind; what is white between bars is time in which a lane ran no stage.
    """
    if out.suffix not in (".png", ".pdf"):
        raise InputError(f"--out: {out}: allowed: .png, .pdf")
    tables = [read(log) for log in logs]
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from feature_survival.figures.style import FULL_WIDTH, STYLE

    said = []
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        heights = [1.1 + 0.28 * table["lane"].nunique() for table in tables]
        figure = Figure(figsize=(FULL_WIDTH, sum(heights)), layout="constrained")
        axes = figure.subplots(len(logs), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axis, log, table in zip(axes, logs, tables, strict=True):
            title = f"{log}: {_summary(table)}"
            said.append(title)
            _panel(axis, table, title)
        with atomic_file(out) as path:
            figure.savefig(path)
    return "\n".join([*said, str(out)])


def _summary(table: pd.DataFrame) -> str:
    work, wall = (table["end"] - table["start"]).sum(), table["end"].max()
    return f"{len(table)} stages, {wall:.1f} minutes, {work:.1f} of work, {wall - _busy(table):.1f} idle"


def _busy(table: pd.DataFrame) -> float:
    """Minutes in which some stage ran; rows in order of start."""
    busy, reached = 0.0, 0.0
    for start, end in zip(table["start"], table["end"], strict=True):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy


def _panel(axis: Any, table: pd.DataFrame, title: str) -> None:
    lanes = sorted(set(table["lane"]), key=lambda name: int(name.split()[1]) if name.split()[1].isdigit() else 0)
    for kind, colour in zip((*KINDS, OTHERS), COLOURS, strict=True):
        rows = table[table["kind"] == kind]
        if len(rows):
            minutes = rows["end"] - rows["start"]
            label = f"{kind} ({len(rows)}): {minutes.sum():.1f} min"
            places = [lanes.index(lane) for lane in rows["lane"]]
            axis.barh(places, minutes, left=rows["start"], color=colour, edgecolor="white", linewidth=0.3, label=label)
    axis.set_yticks(range(len(lanes)), lanes)
    axis.set_ylim(len(lanes) - 0.4, -0.6)
    axis.set_title(title, loc="left")
    axis.xaxis.set_major_formatter("{x:g} min")
    axis.tick_params(labelbottom=True)
    axis.legend(ncols=4, frameon=False, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=2.5, fontsize=6.5)
