"""One subcommand a stage. Heavy imports wait until their stage runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Annotated

import typer

from feature_survival.cli.app import ROOT, app, settings
from feature_survival.dvclock import keep as keep_lock
from feature_survival.figures import FIGURES, draw
from feature_survival.inputs import unchanged
from feature_survival.launch import run_stage, uncollected
from feature_survival.timeline import record

ModelName = Annotated[str, typer.Argument(help="a model of the catalogue in params.yaml, e.g. mini-llama3")]
ConditionName = Annotated[str, typer.Argument(help="a condition in params.yaml, e.g. wanda-50")]
STARTED = time.time() - time.process_time()  # of the process, but for what it waited for the disk


def _stage(command: Callable[..., None]) -> Callable[..., None]:
    """A subcommand that is a stage: once it has ended well, the time line has a line of it."""

    @app.command()
    @wraps(command)
    def timed(*positional: object, **named: object) -> None:
        keep_lock(ROOT)
        with unchanged(ROOT, command.__name__, named):
            command(*positional, **named)
        record(ROOT, " ".join(sys.argv[1:]), STARTED)

    return timed


@_stage
def data(
    force: Annotated[bool, typer.Option(help="rebuild even where data/ is what params.yaml asks for")] = False,
) -> None:
    """Extract the corpus from the pinned packages' docstrings into data/ (about 15 s)."""
    from feature_survival.artifacts import read_json
    from feature_survival.corpus import SOURCE, build_corpus, corpus_source

    corpus, lock, out = settings().corpus, ROOT / "requirements.lock", ROOT / "data"
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
    run_stage(stage, model, settings().for_model(model), ROOT, model)


def _cell_stage(stage: str, model: str, condition: str) -> None:
    """Check the names, then run one of the stages that work on a cell."""
    from feature_survival.artifacts import Cell

    params = settings().for_model(model)
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

    params = settings().for_model(model)
    params.model(model).site(site)
    run_stage("variants", model, params, Place(ROOT, model, site))


@_stage
def contexts(model: ModelName, condition: ConditionName) -> None:
    """Find where the features of a model's dense SAE fire most, in it and in a cell, for the report."""
    _cell_stage("contexts", model, condition)


@_stage
def release(model: ModelName, condition: ConditionName) -> None:
    """Put a cell's SAEs among those that are pushed to a remote."""
    _cell_stage("release", model, condition)


@_stage
def summarize() -> None:
    """Gather all cells' metrics into the tables of results/."""
    from feature_survival.summarize import run

    run(settings(), ROOT)


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

        typer.echo(write(settings(), ROOT))
