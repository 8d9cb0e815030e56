"""Under what a result was made: processor, device, versions. Every line of the time line says it, and beside the
published results `results/environment.csv` does, one row a stage.
"""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from feature_survival.artifacts import atomic_file, read_csv, timeline

PACKAGES = ("torch", "numpy", "transformers", "sae-lens")  # whose version a number may depend on
FIELDS = ("cpu", "instructions", "device", "python", *(package.replace("-", "_") for package in PACKAGES))
STAGES = (
    "data",
    "base",
    "prune",
    "cache",
    "sae",
    "metrics",
    "variants",
    "contexts",
    "release",
    "summarize",
)  # that make numbers
Environment = dict[str, str]  # by field; what is not known is left out


def describe() -> Environment:
    """This process's environment, by FIELDS; instruction set and GPU only where torch is loaded."""
    found = {"cpu": _processor(), "python": platform.python_version()}
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu"
    for package in PACKAGES:
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's model name."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # no Linux
        named = None
    return named.group(1) if named else platform.processor() or platform.machine()


def address(stage: str) -> str:
    """A stage as DVC names it, whether it was run by DVC or by hand: `metrics tiny dense` is `metrics@tiny-dense`."""
    return stage.replace(" ", "@", 1).replace(" ", "-")


def published(root: Path) -> Path:
    """Where the published results' environments stand."""
    return root / "results" / "environment.csv"


def write(root: Path) -> Path:
    """Write `results/environment.csv` from the time line: the last run of each stage. Returns its path.

    Columns: stage, finished (UTC), threads, and FIELDS. InputError where there is no time line.
    """
    import pandas as pd

    rows = read_csv(timeline(root), ["stage", "end", "threads"])
    rows = rows.assign(stage=rows["stage"].map(address)).drop_duplicates("stage", keep="last")
    rows = rows[rows["stage"].str.split("@").str[0].isin(STAGES)].sort_values("end", kind="stable")
    finished = pd.to_datetime(rows["end"], unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    table = rows.assign(finished=finished).reindex(columns=["stage", "finished", "threads", *FIELDS])
    with atomic_file(published(root)) as path:
        table.to_csv(path, index=False, lineterminator="\n")
    return published(root)


def read(path: Path) -> dict[str, Environment]:
    """Each stage's last environment, `threads` included, of a time line or of `results/environment.csv`."""
    rows = read_csv(path, ["stage", "threads"]).drop_duplicates("stage", keep="last")
    found = {}
    for row in rows.reindex(columns=["stage", "threads", *FIELDS]).astype(object).itertuples(index=False):
        values = {field: value for field, value in zip(("threads", *FIELDS), row[1:], strict=True) if value == value}
        # A count beside a gap is read as a float.
        found[address(row[0])] = {
            field: f"{value:g}" if isinstance(value, float) else str(value) for field, value in values.items()
        }
    return found


def differences(there: dict[str, Environment], here: dict[str, Environment], stages: list[str]) -> list[str]:
    """What differs between two records of the same stages: a line a field and pair of values, with the stages."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        one, other = there.get(stage, {}), here.get(stage, {})
        for field in ("threads", *FIELDS):
            if field in one and field in other and one[field] != other[field]:
                found.setdefault(f"{field}: {one[field]} published, {other[field]} here", []).append(stage)
    return [f"{line} ({few(of)})" for line, of in found.items()]


def few(names: list[str]) -> str:
    """The first two of some names, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
