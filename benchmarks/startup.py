"""How long a stage's command takes to its first useful work: the process, its imports, the check of its names.

The command runs as a user would run it, up to the call of the stage's own `run`; that is replaced by the imports it
still has ahead: of transformers' model class, where the stage loads one. sae-lens's import is left out.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from race import Case

TOP = Path(__file__).resolve().parent.parent
LIMIT = 3.0  # seconds
MODEL, CONDITION = "mini-llama3", "wanda-50"
STAGES = {  # its arguments, and whether it loads a model
    "base": ([MODEL], True),
    "prune": ([MODEL], True),
    "cache": ([MODEL, CONDITION], True),
    "sae": ([MODEL, CONDITION], False),
    "metrics": ([MODEL, CONDITION], True),
    "variants": ([MODEL, "resid_post"], True),
}
CODE = """
import importlib
from feature_survival import cli
from feature_survival.launch import uncollected

def ready(*_):
    if {model}:
        import transformers
        transformers.LlamaForCausalLM
    print("ready")

with uncollected():
    importlib.import_module("feature_survival.stages.{stage}").run = ready
cli.main()
"""
SUMMARIZE = """
from feature_survival.cli.app import settings
settings()
import feature_survival.summarize
print("ready")
"""


def start(code: str, *arguments: str) -> str:
    """Run it; what it prints."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=TOP, stdout=subprocess.PIPE, text=True, check=True
    )
    return ended.stdout


def same(said: str) -> str:
    """It got there."""
    assert said == "ready\n", f"said {said!r}"
    return ""


def cases(full: bool = False) -> Iterator[Case]:
    """One a stage that computes, and `summarize`."""
    for stage, (arguments, model) in STAGES.items():
        code, words = CODE.format(stage=stage, model=model), (stage, *arguments)
        yield Case(
            "startup",
            stage,
            lambda code=code, words=words: start(code, *words),
            same,
            limit=LIMIT,  # type: ignore[misc]
        )
    yield Case("startup", "summarize", lambda: start(SUMMARIZE), same, limit=LIMIT)
