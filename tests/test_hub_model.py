"""A published model through the whole pipeline: fetched by stage base, and no network after it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import FAMILIES, TINY_STUDY, VOCABULARY, Ended, WriteParams, contents, tiny
from loopback import MODEL, REVISION, Hub, environment_of
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from feature_survival.artifacts import read_json
from feature_survival.models import load
from feature_survival.text import documents, read_vocabulary

SAES = "lab/tiny-saes"
STAGES = ["prune tiny", *(f"{stage} tiny {condition}" for stage in ("cache", "sae", "metrics")
                          for condition in ("dense", "wanda-50")), "variants tiny resid_post"]  # fmt: skip
WINDOW, STRIDE = 12, 5


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Iterator[Hub]:
    """A hub with a bfloat16 model and a JumpReLU SAE of it."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    top = tmp_path_factory.mktemp("published")
    tiny("LlamaForCausalLM").to(torch.bfloat16).save_pretrained(top / "model", max_shard_size="30KB")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>").save_pretrained(top / "model")
    torch.manual_seed(0)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=32, d_sae=48, apply_b_dec_to_input=False))
    with torch.no_grad():
        sae.threshold.fill_(0.1)
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    sae.save_model(top / "saes" / "resid_post")
    hub = Hub()
    hub.repositories |= {MODEL: top / "model", SAES: top / "saes"}
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def study(corpus: Path) -> dict[str, Any]:
    """Parameters of a project whose one model is the hub's; its documents are files here."""

    def text(split: str, **settings: Any) -> dict[str, Any]:
        return {"dataset": str(corpus / f"{split}.jsonl"), "split": "train", "column": "text", **settings}

    hub = {
        "repository": MODEL,
        "revision": REVISION,
        "text": {
            "calibration": text("calibration", documents=9),
            "evaluation": text("sae", documents=20),
            "sae": text("sae", documents=30),
            "perplexity": text("evaluation"),
        },
        "saes": {"resid_post": {"release": SAES, "sae_id": "resid_post"}},
    }
    of_model = {"window": 16, "metrics.perplexity": {"window": WINDOW, "stride": STRIDE}}
    model = {
        "architecture": "LlamaForCausalLM",
        "vocabulary": VOCABULARY,
        "config": FAMILIES["LlamaForCausalLM"],
        "weights": {"hub": hub},
        "dtype": "bfloat16",
        "sites": {"resid_post": "resid_post.1", "mlp_out": "mlp_out.1"},
        "budget": of_model,
    }
    return {**TINY_STUDY, "window": 99, "models.tiny": model, "variants.sites": ["resid_post"]}


PROGRAM = """
import sys, time
from feature_survival.cli import main
time.sleep = lambda _: None  # huggingface_hub waits between its attempts
for command in sys.argv[1:]:
    sys.argv = ["feature-survival", *command.split()]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


def run(project: Path, hub: Hub, *commands: str, **environment: str) -> Ended:
    """Commands one after another in a process of their own, up to the first that fails."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *commands],
        cwd=project,
        env=environment_of(hub, project.parent / "home", **environment),
        capture_output=True,
        text=True,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def project_of(tmp_path: Path, write_params: WriteParams, study: dict[str, Any]) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    write_params(folder, study)
    return folder


def test_a_published_model_goes_through_every_stage_with_no_network_after_the_first(
    tmp_path: Path, write_params: WriteParams, study: dict[str, Any], published: Hub, corpus: Path
) -> None:
    project = project_of(tmp_path, write_params, study)
    fetched = run(project, published, "base tiny")
    assert fetched == Ended(0, "", ""), fetched.err
    base = project / "artifacts" / "tiny" / "base"
    assert not list(base.glob("*.safetensors"))  # the hub's cache has them
    assert read_json(base / "hub.json") == {"repository": MODEL, "revision": REVISION}
    texts = {split: list(documents(base / "text" / f"{split}.jsonl")) for split in ("evaluation", "sae", "perplexity")}
    assert texts["evaluation"] + texts["sae"] == list(documents(corpus / "sae.jsonl"))[:50]
    assert texts["perplexity"] == ["\n\n".join(documents(corpus / "evaluation.jsonl"))]

    asked = len(published.asked)
    ended = run(project, published, *STAGES, HF_HUB_OFFLINE="1")
    assert ended.code == 0, ended.err
    assert len(published.asked) == asked

    metrics = project / "artifacts" / "metrics" / "tiny"
    found = {condition: read_json(metrics / condition / "metrics.json") for condition in ("dense", "wanda-50")}
    assert found["wanda-50"]["achieved_sparsity"] == 0.5
    assert found["dense"]["tokens"] == 8 * 15  # of the budget's window
    model = load(published.repositories[MODEL], "bfloat16")
    ids = read_vocabulary(base).tokenizer.encode(texts["perplexity"][0], add_special_tokens=False).ids
    assert found["dense"]["text_perplexity"] == pytest.approx(slow_perplexity(model, ids), rel=1e-2)

    variants = pd.read_parquet(project / "artifacts" / "variants" / "tiny" / "resid_post" / "variants.parquet")
    released = variants[(variants["sae"] == "released") & (variants["condition"] == "wanda-50")]
    assert set(released["kind"]) == {"pretrained", "pruned"}
    assert released["l0"].between(0.1, 48).all() and released["fvu"].notna().all()


def slow_perplexity(model: Any, ids: list[int]) -> float:
    """Token by token: each is predicted in the first window, led by token 0, that has it."""
    body, total, done = WINDOW - 1, 0.0, 0
    for start in [*range(0, len(ids) - body, STRIDE), len(ids) - body]:
        window = torch.tensor([[0, *ids[start : start + body]]])
        logits = model(window).logits.float().log_softmax(-1)[0]
        for position in range(body):
            if start + position >= done:
                total -= logits[position, window[0, position + 1]].item()
        done = start + body
    return float(torch.tensor(total / len(ids)).exp())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {**FAMILIES["LlamaForCausalLM"], "hidden_size": 48}}, "hidden_size is 48 in the catalogue, 32 in"),
        ({"vocabulary": 301}, "vocab_size is 301 in the catalogue, 300 in what is published"),
        ({"architecture": "Qwen3ForCausalLM"}, "architectures is ['Qwen3ForCausalLM'] in the catalogue"),
    ],
)
def test_a_published_configuration_that_is_not_the_catalogues_is_refused(
    tmp_path: Path, write_params: WriteParams, study: dict[str, Any], published: Hub, change: Any, message: str
) -> None:
    project = project_of(tmp_path, write_params, {**study, "models.tiny": {**study["models.tiny"], **change}})
    before = contents(project)
    ended = run(project, published, "base tiny")
    assert ended.code == 2 and len(ended.err.splitlines()) == 1, ended.err
    assert f"models.tiny: {message}" in ended.err
    assert contents(project) == before


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("revision",), "f" * 40, "the repository has no such revision"),
        (("repository",), "lab/none", "no such repository; if private, set HF_TOKEN"),
        (("text", "sae", "documents"), 41, "text.sae: 41 documents asked"),
        (("saes", "resid_post", "sae_id"), "nowhere", f"SAE {SAES}, nowhere"),
        (
            ("saes",),
            {"mlp_out": {"release": SAES, "sae_id": "resid_post"}},
            "models.tiny.weights.hub.saes.mlp_out: the SAE reads resid_post.1, the site is mlp_out.1",
        ),
    ],
)
def test_what_a_hub_does_not_have_is_named_and_nothing_half_written(
    tmp_path: Path,
    write_params: WriteParams,
    study: dict[str, Any],
    published: Hub,
    place: Any,
    value: Any,
    message: str,
) -> None:
    changed = json.loads(json.dumps(study))
    of = changed["models.tiny"]["weights"]["hub"]
    for part in place[:-1]:
        of = of[part]
    of[place[-1]] = value
    project = project_of(tmp_path, write_params, changed)
    before = contents(project)
    ended = run(project, published, "base tiny")
    assert ended.code == 2 and len(ended.err.splitlines()) == 1, ended.err
    assert message in ended.err
    assert contents(project) == before


def test_a_download_that_breaks_off_is_one_line_and_goes_on_when_run_again(
    tmp_path: Path, write_params: WriteParams, study: dict[str, Any], published: Hub
) -> None:
    project = project_of(tmp_path, write_params, study)
    before, cut = contents(project), min(of.name for of in published.repositories[MODEL].glob("*.safetensors"))
    published.cut[cut] = 1000
    try:
        ended = run(project, published, "base tiny")
    finally:
        del published.cut[cut]
    assert ended.code == 2 and len(ended.err.splitlines()) == 1, ended.err
    assert "the download broke off" in ended.err
    assert contents(project) == before
    assert run(project, published, "base tiny") == Ended(0, "", "")


def test_a_hub_that_is_down_is_one_line_with_the_command_that_fills_the_cache(
    tmp_path: Path, write_params: WriteParams, study: dict[str, Any]
) -> None:
    project = project_of(tmp_path, write_params, study)
    before, nobody = contents(project), Hub()
    nobody.shutdown()
    nobody.server_close()
    ended = run(project, nobody, "base tiny")
    assert ended.code == 2 and len(ended.err.splitlines()) == 1, ended.err
    assert "the hub is out of reach" in ended.err and f"hf download {MODEL} --revision {REVISION}" in ended.err
    assert contents(project) == before
