"""The application that the subcommands join, and where it is started."""

from __future__ import annotations

from pathlib import Path

import typer

from feature_survival.config import Params, load

app = typer.Typer(
    help=(
        "What pruning does to the features inside a language model.\n\n"
        "Stages run in this order, each on the artifacts of those before: data, base, prune, cache, sae, metrics, "
        "variants, contexts, release, summarize, figure, tables, claims, report; verdicts prints what came out. DVC "
        "runs them for you (dvc repro); run one by hand to look closer. The grid, catalogues of models and conditions, "
        "every setting: params.yaml."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ROOT = Path()  # stages are started at the repository's top, as DVC does


def settings() -> Params:
    """The settings of this checkout."""
    return load(ROOT / "params.yaml")
