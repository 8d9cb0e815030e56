"""Subcommands around the stages: what the grid holds and takes, what came out, other machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from feature_survival.cli.app import ROOT, app, settings


@app.command()
def check(
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="and hash every artifact: a flipped bit is named")
    ] = False,
) -> None:
    """Check params.yaml and claims.yaml, and name what the grid holds; mends a dvc.lock that a kill cut off."""
    from feature_survival.check import check
    from feature_survival.dvclock import check_bytes, mend

    typer.echo(check(settings(), ROOT))
    if mended := mend(ROOT):
        typer.echo(mended)
    if artifacts:
        typer.echo(check_bytes(ROOT))


@app.command()
def plan(
    models: Annotated[
        str, typer.Option(help="names with commas, each planned as if both studies had it; else study.bases")
    ] = "",
    device: Annotated[str, typer.Option(help="h200, h100, a100-80, l4, rtx-4090 or cpu-2")] = "cpu-2",
    price: Annotated[float | None, typer.Option(help="of the machine, USD an hour")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="rows as JSON: bytes, seconds, USD")] = False,
) -> None:
    """What the grid would take on a device: FLOPs, disk, memory, time, cost; runs nothing, downloads nothing."""
    import json

    from rich.console import Console

    from feature_survival.plan import assumptions, estimate, warnings
    from feature_survival.plan.report import write

    rows = estimate(settings(), [name.strip() for name in models.split(",") if name.strip()], device, price)
    if as_json:
        content = {"assumed": assumptions(device), "too_large": warnings(rows, device)}
        typer.echo(json.dumps({**content, "rows": [row._asdict() for row in rows]}, indent=2))
    else:
        write(rows, device, Console(width=None if sys.stdout.isatty() else 100))


@app.command()
def verdicts() -> None:
    """Print the verdicts of results/claims.json as a table; computes nothing."""
    from rich.console import Console
    from rich.table import Table

    from feature_survival.claims import printed

    rows = printed(ROOT)
    table = Table(
        *(rows[0] if rows else []),
        show_lines=True,
        title="Published claims, what this grid says, and what a control says",
    )
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def pull(
    remote: Annotated[str | None, typer.Option(help="a DVC remote's name; the default one where left out")] = None,
) -> None:
    """Fetch what was computed elsewhere (dvc pull); a remote that refuses is one line."""
    from feature_survival.remotes import pull

    pull(ROOT, remote)


@app.command()
def grid(
    workers: Annotated[
        int | None, typer.Option(help="processes on this machine; by itself one a GPU, or one a core, 8 at most")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="or the address of a Dask scheduler, tcp://host:8786")] = "",
    threads: Annotated[
        int | None, typer.Option(help="of each stage; by itself its worker's share of the cores")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="only what changed, and what that needs and is not here")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="every stage, whatever is there")] = False,
) -> None:
    """Run what is stale on many workers (dvc repro runs one stage at a time); only the coordinator records."""
    from feature_survival.grid import run

    raise typer.Exit(run(ROOT, workers, scheduler, threads, allow_missing, force))


@app.command()
def timeline(
    logs: Annotated[
        list[Path] | None, typer.Option("--log", help="a time line, artifacts/timeline.csv by itself; a panel each")
    ] = None,
    out: Annotated[Path, typer.Option(help="the picture: .png or .pdf")] = Path("artifacts/timeline.png"),
) -> None:
    """Draw when each stage ran, and say how long each kind of stage took."""
    from feature_survival.artifacts import timeline
    from feature_survival.timeline import draw

    typer.echo(draw(logs or [timeline(ROOT)], out))


@app.command()
def quick(
    into: Annotated[Path, typer.Argument(help="folder of the scratch clone; made anew")] = Path(".quick"),
    override: Annotated[
        list[str] | None, typer.Option("--set", help="further overrides, key.path=value (value as in YAML)")
    ] = None,
) -> None:
    """A first look: the whole pipeline on a nano model, in a scratch clone (section `quick` of params.yaml)."""
    from feature_survival.quick import run

    run(ROOT, into, override or [])


@app.command()
def verify(
    cells: Annotated[
        list[str] | None,
        typer.Argument(help="model-condition or model-site, e.g. mini-llama3-wanda-50; else everything"),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="as of grid, where everything is computed again")] = None,
    spread: Annotated[
        bool, typer.Option("--spread", help="measure how far other seeds move each number: results/spread.csv")
    ] = False,
) -> None:
    """Compute published results again in .verify/ and compare; exit code 1 where seeds do not explain a difference."""
    from feature_survival.verify import measure_spread, run

    if spread:
        typer.echo(measure_spread(settings(), ROOT, cells or [], workers))
    else:
        raise typer.Exit(run(settings(), ROOT, cells or [], workers))


@app.command()
def environment() -> None:
    """Write results/environment.csv: machine, threads and versions of each stage's last run, from the time line."""
    from feature_survival.environment import write

    typer.echo(write(ROOT))
