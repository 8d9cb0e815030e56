"""`feature-survival audit`: a model of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from feature_survival.cli.app import app
from feature_survival.launch import computing


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
    k: Annotated[
        int | None,
        typer.Option(help="of trained SAEs: active features a token; by itself that of --sae, or 32"),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of trained SAEs; by itself from their width")] = None,
) -> None:
    """Audit a user's own compressed model; without a grid, without params.yaml."""
    options = dict(locals())
    from feature_survival.audit import run
    from feature_survival.audit.request import Request
    from feature_survival.schema import validate

    request = validate(options, "audit", Request)
    with computing("audit", request.device, f"lower --batch ({request.batch})"):
        found = run(request)
    verdict = found.report["verdict"]
    typer.echo("\n".join([verdict["headline"], *verdict["reasons"], "", *map(str, found[1:])]))
