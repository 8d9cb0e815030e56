"""The command line: errors of the input end in one line and exit code 2."""

from __future__ import annotations

import os
import sys

import typer

from feature_survival.cli import audit, stages, study
from feature_survival.cli.app import app
from feature_survival.schema import InputError

__all__ = ["app", "audit", "main", "stages", "study"]


def main() -> None:
    """Entry point: input errors end in one line and exit code 2."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a hub's refusal is one line, not one an attempt
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
