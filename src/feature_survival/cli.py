"""The command line: one subcommand a stage. Heavy imports wait until their stage runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

from feature_survival.config import Params, load
from feature_survival.figures import FIGURES, draw
from feature_survival.launch import deterministic, run_stage, uncollected
from feature_survival.schema import InputError
from feature_survival.timeline import record

app = typer.Typer(
    help=(
        "What pruning does to the features inside a language model.\n\n"
        "Stages run in this order, each on the artifacts of those before: data, base, prune, cache, sae, metrics, "
        "variants, contexts, summarize, figure, tables, claims, report; verdicts prints what came out. DVC runs them "
        "for you (dvc repro); run one by hand to look closer. The grid, catalogues of models and conditions, every "
        "setting: params.yaml."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelName = Annotated[str, typer.Argument(help="a model of the catalogue in params.yaml, e.g. mini-llama3")]
ConditionName = Annotated[str, typer.Argument(help="a condition in params.yaml, e.g. wanda-50")]
STARTED = time.time() - time.process_time()  # of the process, but for what it waited for the disk
ROOT = Path()  # stages are started at the repository's top, as DVC does


def _params() -> Params:
    return load(ROOT / "params.yaml")


def _stage(command: Callable[..., None]) -> Callable[..., None]:
    """A subcommand that is a stage: once it has ended well, the time line has a line of it."""

    @app.command()
    @wraps(command)
    def timed(*positional: object, **named: object) -> None:
        command(*positional, **named)
        record(ROOT, " ".join(sys.argv[1:]), STARTED)

    return timed


@app.command()
def check() -> None:
    """Check params.yaml and claims.yaml, and name what the grid holds; changes nothing."""
    from feature_survival.check import check

    typer.echo(check(_params(), ROOT))


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

    rows = estimate(_params(), [name.strip() for name in models.split(",") if name.strip()], device, price)
    if as_json:
        content = {"assumed": assumptions(device), "too_large": warnings(rows, device)}
        typer.echo(json.dumps({**content, "rows": [row._asdict() for row in rows]}, indent=2))
    else:
        write(rows, device, Console(width=None if sys.stdout.isatty() else 100))


@_stage
def data(
    force: Annotated[bool, typer.Option(help="rebuild even where data/ is what params.yaml asks for")] = False,
) -> None:
    """Extract the corpus from the pinned packages' docstrings into data/ (about 15 s)."""
    from feature_survival.artifacts import read_json
    from feature_survival.corpus import SOURCE, build_corpus, corpus_source

    corpus, lock, out = _params().corpus, ROOT / "requirements.lock", ROOT / "data"
    if not force and (out / SOURCE).exists() and read_json(out / SOURCE) == corpus_source(corpus, lock):
        typer.echo("data/: up to date with requirements.lock and params.yaml")
        return
    for split, (documents, characters) in build_corpus(corpus, lock, out).items():
        typer.echo(f"{split:12} {documents:5} documents {characters / 1e6:6.2f} MB")


@_stage
def base(model: ModelName) -> None:
    """Make a model's tokenizer and dense weights, or fetch those a hub has published."""
    _model_stage("base", model)


def _model_stage(stage: str, model: str) -> None:
    """Check the name, then run one of the stages that work on a model."""
    run_stage(stage, model, _params().for_model(model), ROOT, model)


def _cell_stage(stage: str, model: str, condition: str) -> None:
    """Check the names, then run one of the stages that work on a cell."""
    from feature_survival.artifacts import Cell

    params = _params().for_model(model)
    params.recipe(condition)
    run_stage(stage, model, params, Cell(ROOT, model, condition))


@_stage
def prune(model: ModelName) -> None:
    """Compress a model in every way params.yaml asks for: masks, quantized or low-rank weights."""
    _model_stage("prune", model)


@_stage
def cache(model: ModelName, condition: ConditionName) -> None:
    """Cache a cell's activations at the model's site."""
    _cell_stage("cache", model, condition)


@_stage
def sae(model: ModelName, condition: ConditionName) -> None:
    """Train a cell's SAEs, one for each pair of seeds."""
    _cell_stage("sae", model, condition)


@_stage
def metrics(model: ModelName, condition: ConditionName) -> None:
    """Measure a cell: perplexity, SAEs' quality, transfer, survival; causal effects in the dense cell."""
    _cell_stage("metrics", model, condition)


@_stage
def variants(
    model: ModelName, site: Annotated[str, typer.Argument(help="one of the model's sites, e.g. mlp_out")]
) -> None:
    """Measure which SAE explains a compressed model at a site: the dense model's, a retrained one, a pruned one."""
    from feature_survival.artifacts import Place

    params = _params().for_model(model)
    params.model(model).site(site)
    run_stage("variants", model, params, Place(ROOT, model, site))


@_stage
def contexts(model: ModelName, condition: ConditionName) -> None:
    """Find where the features of a model's dense SAE fire most, in it and in a cell, for the report."""
    _cell_stage("contexts", model, condition)


@_stage
def summarize() -> None:
    """Gather all cells' metrics into the tables of results/."""
    from feature_survival.summarize import run

    run(_params(), ROOT)


@_stage
def figure(
    name: Annotated[str, typer.Argument(help=f"all, or one of {', '.join(FIGURES)}")],
) -> None:
    """Draw one figure, or all of them, from results/ into paper_figures/ (PDF and PNG)."""
    with uncollected():
        for one in FIGURES if name == "all" else [name]:
            for path in draw(one, ROOT / "results", ROOT / "paper_figures"):
                typer.echo(path)


@_stage
def tables() -> None:
    """Write the printed tables from results/ into paper_figures/ (Markdown and LaTeX)."""
    with uncollected():
        from feature_survival.tables import write

        write(ROOT / "results", ROOT / "paper_figures")


@_stage
def claims() -> None:
    """Hold the published claims of claims.yaml against results/; verdicts in results/claims.json and a table."""
    with uncollected():
        from feature_survival.claims import run

        run(ROOT)


@_stage
def report() -> None:
    """Write artifacts/report/index.html: the claims, figures that answer, every feature with its text."""
    with uncollected():
        from feature_survival.report import write

        typer.echo(write(_params(), ROOT))


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
    workers: Annotated[int, typer.Option(help="processes on this machine; one GPU each where there are any")] = 2,
    scheduler: Annotated[str, typer.Option(help="or the address of a Dask scheduler, tcp://host:8786")] = "",
    threads: Annotated[
        int | None, typer.Option(help="of each stage; by itself its worker's share of the cores")
    ] = None,
) -> None:
    """Run what is stale on many workers (dvc repro runs one stage at a time); only the coordinator records."""
    from feature_survival.grid import run

    raise typer.Exit(run(ROOT, workers, scheduler, threads))


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


@app.command(
    help=(
        "Ask of YOUR compressed model what the studies asked: does an SAE of the base still work on it?\n\n"
        "Any checkpoint of the base's architecture and shapes will do: dense weights with zeros, or quantized ones "
        "that transformers can dequantize. Both models are held in memory at once.\n\n"
        "Without an SAE: sparsity of every tensor, perplexity. With --sae: what it leaves of both models, which "
        "features fire differently, and on what. With --train-sae (five SAEs, kept in the folder saes): survival, "
        "beside what two SAEs of the base reach, and chance. Both may be given.\n\n"
        "Example: feature-survival audit --base models/llama --compressed models/llama-50 --sae saes/llama-6 "
        "--site resid_post.6 --text news.jsonl --out report"
    )
)
def audit(
    base: Annotated[str, typer.Option(help="the model before: a folder in hub layout, or repository@revision")],
    compressed: Annotated[str, typer.Option(help="the model after, made by any tool: likewise")],
    site: Annotated[str, typer.Option(help="where it is read: resid_post.L, mlp_out.L, attn_out.L or attn_z.L")],
    text: Annotated[Path, typer.Option(help=".txt (blank lines between documents) or .jsonl (with `text`), UTF-8")],
    out: Annotated[Path, typer.Option(help="folder for audit.html and audit.json")],
    sae: Annotated[
        str | None, typer.Option(help="an SAE of the base at that site: a folder in SAELens's format, release:sae_id")
    ] = None,
    train_sae: Annotated[
        bool, typer.Option("--train-sae", help="train SAEs on both models: survival, with its controls")
    ] = False,
    tokens: Annotated[int, typer.Option(help="the most tokens that are measured on")] = 100_000,
    sae_tokens: Annotated[int, typer.Option(help="the most tokens that SAEs are trained on")] = 2_000_000,
    window: Annotated[int, typer.Option(help="tokens a window, <bos> included")] = 128,
    batch: Annotated[int, typer.Option(help="windows through a model at a time; lower it if memory is short")] = 8,
    device: Annotated[str, typer.Option(help="auto (the GPU where there is one), cpu, cuda, cuda:1")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="in which both models run: auto (the base checkpoint's own), float32, bfloat16, float16")
    ] = "auto",
    expansion: Annotated[int, typer.Option(help="of trained SAEs: features, in multiples of the site's width")] = 8,
    k: Annotated[int, typer.Option(help="of trained SAEs: active features a token")] = 32,
    learning_rate: Annotated[float | None, typer.Option(help="of trained SAEs; by itself from their width")] = None,
) -> None:
    """Audit a user's own compressed model; without a grid, without params.yaml."""
    options = dict(locals())
    from feature_survival.audit import run
    from feature_survival.audit.request import Request
    from feature_survival.models import use_device
    from feature_survival.schema import validate

    request = validate(options, "audit", Request)
    deterministic()
    use_device(request.device)
    found = run(request)
    verdict = found.report["verdict"]
    typer.echo("\n".join([verdict["headline"], *verdict["reasons"], "", *map(str, found[1:])]))


def main() -> None:
    """Entry point: input errors end in one line and exit code 2."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # also quietens the bars of libraries
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a read-only folder
        typer.echo(f"error: {error.filename or 'writing'}: {error.strerror or error}", err=True)
        sys.exit(2)
