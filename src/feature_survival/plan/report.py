"""A plan as tables of 100 columns."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from feature_survival.plan import GIB, TOTAL, Row, assumptions, total, warnings

COLUMNS = ("model", "stage", "FLOPs", "read", "written", "kept", "device", "host", "time", "cost")


def write(rows: list[Row], device: str, console: Console) -> None:
    """One row a model and stage, totals, what the figures rest on, and what does not fit."""
    priced = any(row.cost is not None for row in rows)
    sums = [row for row in rows if row.stage == TOTAL]
    title = "Disk in GB; peak memory of device and host in GiB" + "; cost in USD" * priced
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS[: None if priced else -1]:
        table.add_column(column, justify="left" if column in ("model", "stage") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row, priced), end_section=row.stage == TOTAL)
    if len(sums) > 1:
        table.add_row(*cells(total("all", sums), priced))
    console.print(table)
    console.print(f"Assumed: {assumptions(device)}.", soft_wrap=False, highlight=False)
    for line in warnings(rows, device):
        console.print(f"Too large: {line}", style="bold red", highlight=False)


def cells(row: Row, priced: bool) -> list[str]:
    """A row as text."""
    disk = [f"{value / 1e9:,.1f}" for value in (row.read, row.written, row.kept)]
    memory = [f"{value / GIB:.1f}" for value in (row.device_memory, row.host_memory)]
    cost = [f"{row.cost:,.2f}"] if priced and row.cost is not None else []
    return [row.model, row.stage, f"{row.flops:.1e}", *disk, *memory, duration(row.seconds), *cost]


def duration(seconds: float) -> str:
    """In minutes up to an hour and a half, in hours up to two days, then in days."""
    for size, unit, most in ((60, "min", 90), (3600, "h", 48)):
        if seconds < size * most:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} d"
