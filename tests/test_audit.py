"""The audit of a user's own model: numbers against independent computations, planted truths, bad input in one line."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import audit_models
import numpy as np
import pytest
import torch
from audit_models import SHRUNK, SITE, WINDOW, Bench, planted_sae, pruned_by_torch, save, without_axis
from conftest import FAMILIES, Ended, contents, tiny, truncate
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from feature_survival import audit
from feature_survival.audit import checkpoint, run
from feature_survival.audit import text as audit_text
from feature_survival.audit.checkpoint import check_alike, load_dense, outline, shapes
from feature_survival.audit.features import Ranked, describe
from feature_survival.audit.page import render
from feature_survival.audit.request import Request
from feature_survival.audit.training import Trained, survival
from feature_survival.audit.training import settings as training_settings
from feature_survival.audit.verdict import judge
from feature_survival.audit.weights import compare
from feature_survival.catalogue import Site, site_named
from feature_survival.config import Seed
from feature_survival.config import load as load_params
from feature_survival.contexts import pieces
from feature_survival.forward import read_site
from feature_survival.models import blocks, prunable_weights, site_width
from feature_survival.sae import Dictionary
from feature_survival.schema import InputError
from feature_survival.text import read_vocabulary
from feature_survival.thresholds import DAMAGED, KEPT

Cli = Callable[..., Ended]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Tokenizer) -> Bench:
    return audit_models.make(tmp_path_factory.mktemp("audit"), corpus, tokenizer)


@pytest.fixture(scope="module")
def pruned(bench: Bench) -> Path:
    return save(pruned_by_torch(0.5), bench.root / "pruned", max_shard_size="40KB")


def audited(cli: Cli, bench: Bench, compressed: Path, out: Path, *more: str, **changes: Any) -> dict[str, Any]:
    ended = cli(out.parent, *bench.options(compressed, out, *more, **changes))
    assert ended.code == 0, ended.err
    return json.loads((out / "audit.json").read_text())


def request(bench: Bench, compressed: Path, out: Path, **changes: Any) -> Request:
    """Without the command line, whose defaults are these but for what makes it quick."""
    options = {"base": str(bench.base), "compressed": str(compressed), "sae": None, "train_sae": False,
               "site": f"resid_post.{SITE}", "text": bench.text, "out": out, "device": "auto", "dtype": "auto",
               "window": WINDOW, "tokens": 100_000, "sae_tokens": 2_000_000, "batch": 16, "expansion": 8, "k": None,
               "learning_rate": None}  # fmt: skip
    return Request(**{**options, **changes})


@pytest.fixture(scope="module")
def report(bench: Bench, pruned: Path) -> dict[str, Any]:
    run(request(bench, pruned, bench.root / "report", sae=str(bench.sae)))
    return json.loads((bench.root / "report" / "audit.json").read_text())


def windows_by_hand(bench: Bench) -> torch.Tensor:
    """Documents in order, a newline after each, cut, <bos> before every window."""
    tokenizer = Tokenizer.from_file(str(bench.base / "tokenizer.json"))
    texts = dict.fromkeys(json.loads(line)["text"].strip() for line in bench.text.read_text().splitlines())
    ids = [token for text in texts for token in tokenizer.encode(text + "\n").ids]
    count = len(ids) // (WINDOW - 1)
    body = torch.tensor(ids[: count * (WINDOW - 1)]).view(count, -1)
    return torch.cat([torch.zeros(count, 1, dtype=torch.long), body], dim=1)


def activations_by_hand(folder: Path, tokens: torch.Tensor) -> np.ndarray:
    """[tokens, width], first positions dropped, in the half precision in which they are kept."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states[SITE + 1]
    return states[:, 1:].flatten(0, 1).half().double().numpy()


def test_the_shards_of_the_pruned_model_are_several(pruned: Path) -> None:
    assert len(list(pruned.glob("*.safetensors"))) > 2


def test_sparsity_is_what_counting_in_the_files_gives(report: dict[str, Any], bench: Bench, pruned: Path) -> None:
    weights = {name: tensor for file in pruned.glob("*.safetensors") for name, tensor in load_file(file).items()}
    base = load_file(bench.base / "model.safetensors")
    assert len(report["weights"]["tensors"]) == 7 * 3
    for row in report["weights"]["tensors"]:
        name = f"model.layers.{row['block']}.{row['name']}.weight"
        assert row["zeros"] == (weights[name] == 0).double().mean().item()
        assert row["changed"] == (weights[name] != base[name]).double().mean().item()
    assert report["weights"]["achieved_sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert report["weights"]["base_sparsity"] == 0
    assert {of["name"]: of["changed"] for of in report["weights"]["others"]} == {"embeddings": 0, "norms and biases": 0}


def test_perplexity_is_that_of_a_plain_forward_pass(report: dict[str, Any], bench: Bench, pruned: Path) -> None:
    tokens = windows_by_hand(bench)
    for name, folder in (("base", bench.base), ("compressed", pruned)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            loss = model(tokens, labels=tokens).loss.item()
        assert report["language"][name]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert report["language"]["tokens"] == tokens[:, 1:].numel() == report["text"]["evaluation"]["tokens"]
    ratio = report["language"]["compressed"]["perplexity"] / report["language"]["base"]["perplexity"]
    assert report["language"]["ratio"] == pytest.approx(ratio)


def test_transfer_is_what_numpy_makes_of_the_hidden_states(report: dict[str, Any], bench: Bench, pruned: Path) -> None:
    tokens = windows_by_hand(bench)
    x, y = (activations_by_hand(folder, tokens) for folder in (bench.base, pruned))
    codes = {}
    for name, of in (("base", x), ("compressed", y)):
        codes[name] = np.concatenate([np.maximum(of, 0), np.maximum(-of, 0)], axis=1)
        fvu = ((1 - SHRUNK) ** 2) * (of**2).sum() / ((of - of.mean(0)) ** 2).sum()
        assert report["sae"]["on"][name]["fvu"] == pytest.approx(fvu, rel=1e-3)
        assert report["sae"]["on"][name]["l0"] == pytest.approx((codes[name] > 0).sum(1).mean(), rel=1e-3)
        assert report["sae"]["on"][name]["share_dead"] == (codes[name] == 0).all(0).mean()
    alive = (codes["base"] > 0).sum(0) >= 10
    correlation = np.array(
        [np.corrcoef(codes["base"][:, n], codes["compressed"][:, n])[0, 1] if codes["compressed"][:, n].any() else 0
         for n in np.flatnonzero(alive)]
    )  # fmt: skip
    fixed = report["sae"]["fixed"]
    assert fixed["alive"] == alive.sum()
    assert fixed["kept"]["count"] == (correlation > KEPT).sum()
    assert fixed["damaged"]["count"] == (correlation < DAMAGED).sum()
    assert (
        sum(fixed["histogram"])
        == fixed["alive"]
        == sum(fixed[name]["count"] for name in ("kept", "changed", "damaged"))
    )
    assert fixed["viable"] == (report["sae"]["on"]["compressed"]["fvu"] <= 1.25 * report["sae"]["on"]["base"]["fvu"])
    listed = {row["feature"]: row for row in report["features"]["hit_hardest"]}
    numbers = np.flatnonzero(alive)
    for feature, row in listed.items():
        assert row["correlation"] == pytest.approx(correlation[numbers == feature][0], abs=2e-3)
        fired = codes["compressed"][:, feature] > 0
        assert row["compressed"]["firing_rate"] == pytest.approx(fired.mean(), abs=2e-3)
    assert len(listed) == 20
    assert [row["correlation"] for row in listed.values()] == sorted(row["correlation"] for row in listed.values())
    assert max(row["correlation"] for row in listed.values()) <= min(
        row["correlation"] for row in report["features"]["kept_best"]
    )


def test_a_context_shows_what_the_feature_does_on_the_same_tokens_in_both_models(
    report: dict[str, Any], bench: Bench, pruned: Path
) -> None:
    tokens = windows_by_hand(bench)
    acts = {
        name: activations_by_hand(folder, tokens).reshape(len(tokens), -1, 32)
        for name, folder in (("base", bench.base), ("compressed", pruned))
    }
    row = next(row for row in report["features"]["hit_hardest"] if row["feature"] < 32)
    for side in ("base", "compressed"):
        strongest = row[side]["contexts"][0]
        window, place = np.unravel_index(acts[side][..., row["feature"]].argmax(), acts[side].shape[:2])
        assert strongest[side][strongest["peak"]] == pytest.approx(acts[side][window, place, row["feature"]], rel=1e-2)
        assert strongest[side][strongest["peak"]] == pytest.approx(row[side]["max_activation"], rel=1e-2)
        other = {"base": "compressed", "compressed": "base"}[side]
        expected = max(0, acts[other][window, place, row["feature"]])
        assert strongest[other][strongest["peak"]] == pytest.approx(expected, abs=2e-2)
        assert len(strongest["tokens"]) == len(strongest["base"]) == len(strongest["compressed"])
        peaks = [context[side][context["peak"]] for context in row[side]["contexts"]]
        assert peaks == sorted(peaks, reverse=True)


def test_without_an_sae_weights_and_perplexity_are_told_and_a_hint_given(
    cli: Cli, bench: Bench, pruned: Path, tmp_path: Path
) -> None:
    report = audited(cli, bench, pruned, tmp_path / "out")
    assert report["sae"] is report["survival"] is report["features"] is None
    assert "without an SAE" in report["verdict"]["headline"]
    assert any("--train-sae" in reason for reason in report["verdict"]["reasons"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.html", "audit.json"]


def test_a_model_beside_itself_works_and_loses_nothing(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    report = audited(cli, bench, bench.base, tmp_path / "out", "--sae", str(bench.sae))
    assert report["verdict"]["kind"] == "works"
    assert report["language"]["ratio"] == 1 == report["sae"]["fixed"]["fvu_ratio"]
    assert report["sae"]["fixed"]["damaged"]["count"] == 0 == report["weights"]["changed"]
    assert report["sae"]["fixed"]["kept"]["share"] == 1 == report["sae"]["fixed"]["jaccard"]
    assert report["features"]["hit_hardest"] == []
    assert any("Not one prunable weight differs" in caveat for caveat in report["verdict"]["caveats"])


def test_a_direction_that_was_cut_out_is_the_feature_hit_hardest(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    compressed = save(without_axis(7), tmp_path / "cut")
    report = audited(cli, bench, compressed, tmp_path / "out", "--sae", str(bench.sae))
    first, second = report["features"]["hit_hardest"][:2]
    assert {first["feature"], second["feature"]} == {7, 7 + 32}
    for row in (first, second):
        assert row["state"] == "damaged" and row["correlation"] == 0 and row["displacement"] == -1
        assert row["compressed"] == {"firing_rate": 0, "mean_activation": 0, "max_activation": 0, "contexts": []}
        assert row["base"]["contexts"]
    assert {of["name"]: of["changed"] > 0 for of in report["weights"]["others"]}["embeddings"]


def test_two_audits_write_the_same_numbers_and_leave_nothing_else(
    cli: Cli, bench: Bench, pruned: Path, tmp_path: Path
) -> None:
    first = audited(cli, bench, pruned, tmp_path / "out", "--sae", str(bench.sae))
    before = contents(tmp_path / "out")
    assert audited(cli, bench, pruned, tmp_path / "out", "--sae", str(bench.sae)) == first
    assert contents(tmp_path / "out") == before
    assert set(before) == {"audit.html", "audit.json"}


@pytest.fixture(scope="module")
def trained(bench: Bench, pruned: Path) -> Path:
    return run(request(bench, pruned, bench.root / "trained", train_sae=True, expansion=4, k=4)).page.parent


def test_trained_saes_give_survival_in_every_pairing_with_its_controls(trained: Path) -> None:
    report = json.loads((trained / "audit.json").read_text())
    rows = {(row["pairing"], row["control"]): row for row in report["survival"]}
    assert set(rows) == {
        ("same init, same order", False), ("same init, other order", False), ("other init, other order", False),
        ("same init, other order", True), ("other init, other order", True),
        ("random dictionary", True), ("fixed dictionary", False),
    }  # fmt: skip
    assert (trained / "audit.html").exists()
    for row in rows.values():
        shares = [of["mean"] for of in row["shares"]]
        assert shares == sorted(shares, reverse=True) and shares[-1] >= 0 and shares[0] <= 1
        assert all(of["low"] <= of["mean"] <= of["high"] for of in row["shares"])
    assert rows["same init, same order", False]["saes"] == 2
    assert {"base", "compressed", "retrained"} == set(report["sae"]["on"])
    assert report["text"]["sae"]["tokens"] >= 10_000
    said = next(reason for reason in report["verdict"]["reasons"] if reason.startswith("Trained anew"))
    for is_control in (False, True):
        main = rows["other init, other order", is_control]["shares"][1]
        assert f"{main['mean']:.1%}" in said and f"{main['low']:.1%} to {main['high']:.1%}" in said
    assert any(f"trained on {report['text']['sae']['tokens']:,} tokens" in of for of in report["verdict"]["caveats"])


def test_survival_is_that_of_the_saes_it_leaves(trained: Path) -> None:
    report = json.loads((trained / "audit.json").read_text())
    a, b = (Dictionary.read(trained / "saes" / of / "init0-data0", 32) for of in ("base", "compressed"))
    assert {path.name for path in (trained / "saes" / "base").iterdir()} == {
        "init0-data0",
        "init1-data1",
        "init0-data1",
    }
    cosine = torch.nn.functional.normalize(a.W_dec, dim=1) @ torch.nn.functional.normalize(b.W_dec, dim=1).T
    best, partner = cosine.max(1)
    found = (cosine.argmax(0)[partner] == torch.arange(len(best))) & (best >= 0.7)
    row = next(row for row in report["survival"] if row["pairing"] == "same init, same order")
    # The mean over two SAEs and alive features only; this is one of them and all features.
    assert row["shares"][1]["mean"] == pytest.approx(found.double().mean().item(), abs=0.25)


def test_a_trained_sae_is_audited_again_by_its_folder(
    cli: Cli, bench: Bench, pruned: Path, trained: Path, tmp_path: Path
) -> None:
    report = audited(
        cli, bench, pruned, tmp_path / "out", "--sae", str(trained / "saes" / "base" / "init0-data0")
    )  # fmt: skip
    assert report["sae"]["site"] == f"resid_post.{SITE}"
    assert not any("The SAE says" in caveat for caveat in report["verdict"]["caveats"])


def test_saes_trained_beside_one_that_is_given_keep_as_many_features_active(
    bench: Bench, pruned: Path, trained: Path, tmp_path: Path
) -> None:
    given = str(trained / "saes" / "base" / "init0-data0")
    asked = request(bench, pruned, tmp_path / "out", sae=given, train_sae=True, expansion=2, sae_tokens=10_000)
    report = run(asked).report
    assert report["training"]["k"] == 4
    assert report["sae"]["on"]["retrained"]["l0"] <= 4


def test_an_sae_of_another_site_is_said_to_be_one(cli: Cli, bench: Bench, pruned: Path, tmp_path: Path) -> None:
    elsewhere = planted_sae(tmp_path / "sae", 32, hook="blocks.0.hook_mlp_out")
    report = audited(cli, bench, pruned, tmp_path / "out", "--sae", str(elsewhere))
    assert any("it reads mlp_out.0; it was measured at resid_post.1" in text for text in report["verdict"]["caveats"])


@pytest.mark.parametrize(
    ("hook", "site"),
    [("blocks.20.hook_resid_post", "resid_post.20"), ("blocks.3.attn.hook_z", "attn_z.3"), ("mlp_out.2", "mlp_out.2"),
     ("blocks.3.hook_resid_pre", "resid_post.2"),
     ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre"), (None, None), ("something", None)],
)  # fmt: skip
def test_the_site_of_an_sae_is_read_in_either_spelling(hook: object, site: str | None) -> None:
    assert site_named(hook) == site


def test_a_text_of_blank_lines_between_documents_gives_the_windows_that_json_lines_give(
    cli: Cli, bench: Bench, pruned: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "text.txt"
    plain.write_text("\n \n\n".join(json.loads(line)["text"] for line in bench.text.read_text().splitlines()))
    found = audited(cli, bench, pruned, tmp_path / "out", text=plain)
    assert found["language"] == audited(cli, bench, pruned, tmp_path / "other")["language"]


def test_no_document_stands_in_both_splits(bench: Bench, tmp_path: Path) -> None:
    texts = {text: audit_text.split_of(text, audit_text.SHARES) for text in audit_text.documents(bench.text)}
    assert set(texts.values()) == {"sae", "evaluation"}


def test_a_budget_of_tokens_is_kept(cli: Cli, bench: Bench, pruned: Path, tmp_path: Path) -> None:
    report = audited(cli, bench, pruned, tmp_path / "out", tokens=3_000)
    assert report["text"]["evaluation"]["tokens"] == 3_000 // (WINDOW - 1) * (WINDOW - 1)


def test_pieces_of_a_text_join_to_it_even_where_characters_are_split(tokenizer: Tokenizer) -> None:
    text = "matrix é 漢字 <script> shape"
    ids = tokenizer.encode(text).ids
    assert len(pieces(tokenizer, ids)) == len(ids)
    assert "".join(pieces(tokenizer, ids)) == text


def test_training_at_the_scale_of_the_studies_is_set_as_theirs(
    tmp_path: Path, write_params: Callable[..., Path]
) -> None:
    asked = request(Bench(*[tmp_path] * 4), tmp_path, tmp_path)
    mini, theirs = training_settings(asked, 16, 487_680, 128), load_params(write_params(tmp_path, {})).sae
    assert mini.batch_tokens == theirs.batch_tokens
    assert mini.learning_rate == pytest.approx(theirs.learning_rate, rel=0.05)
    assert (mini.warmup_steps, mini.dead_after_steps) == pytest.approx(
        (theirs.warmup_steps, theirs.dead_after_steps), rel=0.2
    )


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_is_like_itself_and_has_the_width_that_is_read(architecture: str, tmp_path: Path) -> None:
    model = tiny(architecture)
    save(model, tmp_path / "a")
    save(model, tmp_path / "b", max_shard_size="30KB")
    made = outline(tmp_path / "a")
    check_alike(tmp_path / "a", tmp_path / "b", made)
    for point in ("resid_post.1", "mlp_out.2", "attn_z.0"):
        read = read_site(model, Site.parse(point), torch.zeros(1, 3, dtype=torch.long))
        assert site_width(made, Site.parse(point)) == read.shape[-1]


def test_a_checkpoint_of_the_bare_model_and_one_with_an_untied_head_are_alike(
    gpt2: PreTrainedModel, tmp_path: Path
) -> None:
    save(gpt2, tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    for name, changed in (
        ("bare", {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}),
        ("untied", {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}),
    ):
        save(gpt2, tmp_path / name)
        save_file(changed, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        check_alike(tmp_path / "base", tmp_path / name, outline(tmp_path / "base"))


def test_a_mask_that_was_not_made_permanent_is_told_from_a_missing_tensor(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    save(llama, tmp_path / "base")
    for module in blocks(llama).modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.utils.prune.l1_unstructured(module, "weight", 0.5)
    save(llama, tmp_path / "masked")
    with pytest.raises(InputError, match=r"an original and a mask; make the pruning permanent"):
        check_alike(tmp_path / "base", tmp_path / "masked", outline(tmp_path / "base"))


def quantized(llama: PreTrainedModel, folder: Path, described: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Save with 8-bit floating-point weights and one scale a matrix; returns what they stand for."""
    save(llama, folder)
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name, weight in prunable_weights(llama).items():
        key, scale = f"model.layers.{name}.weight", weight.abs().max() / 448
        tensors[key] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{key}_scale_inv"] = scale.view(1, 1)
        meant[name] = tensors[key].float() * scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": described}))
    return meant


def test_fp8_weights_are_dequantized_and_audited(llama: PreTrainedModel, tmp_path: Path) -> None:
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    meant = quantized(llama, tmp_path / "fp8", fp8)
    found = load_dense(tmp_path / "fp8", "float32")
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    for name, weight in prunable_weights(found).items():
        torch.testing.assert_close(weight, meant[name], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("method", ["gptq", "no-such-method"])
def test_a_quantization_that_cannot_be_undone_is_named(llama: PreTrainedModel, tmp_path: Path, method: str) -> None:
    quantized(llama, tmp_path / "odd", {"quant_method": method, "bits": 4})
    with pytest.raises(InputError, match=rf"is quantized \({method}\).*save a dequantized checkpoint") as error:
        load_dense(tmp_path / "odd", "float32")
    assert "\n" not in str(error.value)


# ---- bad input -------------------------------------------------------------------------------------------------------


def narrower(root: Path) -> Path:
    """A model whose second tensor differs."""
    model = tiny("LlamaForCausalLM")
    weights = {**model.state_dict()}
    del weights["lm_head.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(24, 32)
    weights["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(24, 32)
    return altered(root / "narrower", weights)


def lacking(root: Path) -> Path:
    model = tiny("LlamaForCausalLM")
    weights = {name: weight for name, weight in model.state_dict().items() if "layers.2.mlp" not in name}
    return altered(root / "lacking", {name: of for name, of in weights.items() if name != "lm_head.weight"})


def altered(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    save(tiny("LlamaForCausalLM"), folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def torn(root: Path) -> Path:
    save(tiny("LlamaForCausalLM"), root / "torn", max_shard_size="40KB")
    truncate(sorted((root / "torn").glob("*.safetensors"))[1])
    return root / "torn"


def bereft(root: Path) -> Path:
    save(tiny("LlamaForCausalLM"), root / "bereft", max_shard_size="40KB")
    sorted((root / "bereft").glob("*.safetensors"))[1].unlink()
    return root / "bereft"


def deeper(root: Path) -> Path:
    """The base with its last block twice: whatever the base has, this has too."""
    model = tiny("LlamaForCausalLM")
    last = len(blocks(model)) - 1
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    again = {
        name.replace(f"layers.{last}.", f"layers.{last + 1}."): weight.clone()
        for name, weight in weights.items()
        if f"layers.{last}." in name
    }
    folder = altered(root / "deeper", weights | again)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": last + 2}))
    return folder


def of_another_family(root: Path) -> Path:
    return save(tiny("MistralForCausalLM"), root / "mistral")


def written(root: Path, name: str, content: bytes) -> Path:
    (root / name).write_bytes(content)
    return root / name


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("base folder missing", {"base": "nowhere"}, "--base: nowhere: no such folder; allowed: a folder in hub"),
    ("base not a model", {"base": "."}, "--base: .: holds no config.json"),
    ("compressed missing", {"compressed": "x/y"}, "--compressed: x/y: no such folder"),
    ("another family", {"compressed": of_another_family}, "mistral is a MistralForCausalLM; allowed: the base's"),
    ("another shape", {"compressed": narrower}, "tensor 'model.layers.0.self_attn.q_proj.weight' of"),
    ("a tensor missing", {"compressed": lacking}, "lacks tensor 'model.layers.2.mlp.gate_proj.weight', which the base"),
    ("a block more", {"compressed": deeper}, "weight '3.self_attn.q_proj' is [32, 32], the base has none of that name"),
    ("a torn shard", {"compressed": torn}, "not a whole safetensors file"),
    ("a shard missing", {"compressed": bereft}, "no such file; allowed: a checkpoint in safetensors"),
    ("SAE of other width", {"sae": lambda root: planted_sae(root / "wide", 48)}, "the SAE reads 48 inputs, the site"),
    ("SAE missing", {"sae": "nowhere"}, "--sae: nowhere: no such folder; allowed: a folder in SAELens's"),
    ("site beyond", {"site": "resid_post.3"}, "site resid_post.3 is beyond the last block; allowed: resid_post.0"),
    ("site unknown", {"site": "resid_pre.1"}, "audit: site: site 'resid_pre.1' is not one of resid_post.L, mlp_out.L"),
    ("text missing", {"text": "nowhere.txt"}, "--text: nowhere.txt: no such file"),
    ("text a folder", {"text": "."}, "--text: .: is a folder"),
    ("text empty", {"text": lambda root: written(root, "a.txt", b" \n\n ")}, "holds no text; at least 2,000 tokens"),
    ("text short", {"text": lambda root: written(root, "a.txt", b"the matrix\n\nof it")}, "2,000 are needed"),
    ("text not UTF-8", {"text": lambda root: written(root, "a.txt", b"\xff\xfea")}, "not UTF-8 text (invalid start"),
    ("text not JSON", {"text": lambda root: written(root, "a.jsonl", b'{"txt": "a"}\n')}, "line 1: not a JSON object"),
    ("window too long", {"window": 64}, "--window: 64 asked, the model has 32 positions"),
    ("window too short", {"window": 2}, "audit: window: input should be greater than or equal to 3, found 2"),
    ("tokens too few", {"tokens": 100}, "audit: tokens: input should be greater than or equal to 2000, found 100"),
    ("dtype unknown", {"dtype": "int4"}, "audit: dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
    ("device absent", {"device": "cuda:7"}, "device: 'cuda:7' asked, this machine has"),
    ("device unknown", {"device": "tpu"}, "audit: device: 'tpu' is no device; allowed: auto, cpu, cuda, cuda:N"),
    ("out a file", {"out": lambda root: written(root, "file", b"")}, "not a folder that can be written"),
]  # fmt: skip


def test_what_no_text_can_mend_is_refused_before_anything_is_measured(
    bench: Bench, pruned: Path, tmp_path: Path
) -> None:
    vocabulary = read_vocabulary(bench.base)
    with pytest.raises(InputError, match=r"--window: 4096 asked, --tokens is 2,000: not one window; lower --window"):
        audit_text.read(request(bench, pruned, tmp_path, window=4096, tokens=2000), vocabulary, tmp_path)
    with pytest.raises(InputError, match=r"--k: 400 asked, the SAE has 256 features \(--expansion x 32\)"):
        run(request(bench, pruned, tmp_path / "out", train_sae=True, k=400))
    silent: Any = SimpleNamespace(dense=SimpleNamespace(firing_rate=torch.zeros(8)))
    with pytest.raises(InputError, match=r"no feature of the base's SAE init0-data0 fires on 10 of the 2,000 tokens"):
        survival(Trained({}, {}, {Seed(0, 0): silent}, cast(Any, None)), 2000)


@pytest.mark.parametrize(("changes", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    cli: Cli, bench: Bench, pruned: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = {key: value(tmp_path) if callable(value) else value for key, value in changes.items()}
    before = contents(tmp_path)
    ended = cli(tmp_path, *bench.options(given.pop("compressed", pruned), given.pop("out", tmp_path / "out"), **given))
    assert ended.code == 2
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert message in ended.err
    assert ended.out == ""
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_first_differing_tensor_is_named_with_both_shapes(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[24, 32\], the base's is \[32, 32\]"):
        check_alike(bench.base, narrower(tmp_path), outline(bench.base))


def test_too_few_tokens_to_train_on_are_counted_and_the_way_out_is_told(
    cli: Cli, bench: Bench, pruned: Path, tmp_path: Path
) -> None:
    text = tmp_path / "half.jsonl"
    text.write_text("".join(bench.text.read_text().splitlines(keepends=True)[:60]))
    ended = cli(tmp_path, *bench.options(pruned, tmp_path / "out", "--train-sae", text=text))
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "are needed; documents are set apart by blank lines" in ended.err


def test_an_sae_that_never_fires_is_refused(cli: Cli, bench: Bench, pruned: Path, tmp_path: Path) -> None:
    folder = planted_sae(tmp_path / "sae", 32)
    weights = load_file(folder / "sae_weights.safetensors")
    save_file({**weights, "b_enc": weights["b_enc"] - 1e6}, folder / "sae_weights.safetensors")
    ended = cli(tmp_path, *bench.options(pruned, tmp_path / "out", "--sae", str(folder)))
    assert ended.code == 2 and "none of its 64 features fires on 10 of the" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_failed_audit_leaves_the_last_one_as_it_was(cli: Cli, bench: Bench, pruned: Path, tmp_path: Path) -> None:
    audited(cli, bench, pruned, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert cli(tmp_path, *bench.options(pruned, tmp_path / "out", site="resid_post.9")).code == 2
    assert contents(tmp_path / "out") == before


def test_memory_that_runs_out_is_told_in_one_line_with_what_to_lower(
    cli: Cli, bench: Bench, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(audit, "load", full)
    ended = cli(tmp_path, *bench.options(pruned, tmp_path / "out"))
    told = "audit, loading both models: out of memory on cpu; take --dtype bfloat16, or --device cpu"
    assert ended.code == 2 and ended.err == f"error: {told}\n"
    monkeypatch.undo()
    monkeypatch.setattr(audit, "language", full)
    ended = cli(tmp_path, *bench.options(pruned, tmp_path / "out"))
    assert ended.code == 2 and ended.err == "error: audit: out of memory on cpu; lower --batch (16)\n"
    assert not (tmp_path / "out").exists()


def test_what_a_kill_left_is_cleared_away(cli: Cli, bench: Bench, pruned: Path, tmp_path: Path) -> None:
    for owner in (2**22 + 1, os.getppid()):  # more than there can be; another that still runs
        (tmp_path / "out" / f".audit-{owner}-folder" / "base").mkdir(parents=True)
    audited(cli, bench, pruned, tmp_path / "out")
    left = [f".audit-{os.getppid()}-folder", "audit.html", "audit.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == left


def test_a_tokenizer_of_another_model_is_refused(cli: Cli, bench: Bench, pruned: Path, tmp_path: Path) -> None:
    other = tmp_path / "base"
    shutil.copytree(bench.base, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {piece: number + 50 if number else 0 for piece, number in vocabulary.items()}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    ended = cli(tmp_path, *bench.options(pruned, tmp_path / "out", base=other))
    assert ended.code == 2 and "its model has 300" in ended.err


def test_names_of_a_hub_are_taken_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(checkpoint, "fetch_model", lambda *name: asked.append(name) or tmp_path)
    monkeypatch.setattr(audit, "fetch_sae", lambda *name: asked.append(name[:2]))
    assert checkpoint.locate("base", "google/gemma-2-2b@c5ebcd4") == tmp_path
    assert checkpoint.locate("base", "gpt2@main") == tmp_path
    audit._sae_folder("gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82", tmp_path)
    assert asked == [
        ("google/gemma-2-2b", "c5ebcd4"),
        ("gpt2", "main"),
        ("gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82"),
    ]


def test_gpt2_is_audited_at_the_heads_outputs(cli: Cli, bench: Bench, gpt2: PreTrainedModel, tmp_path: Path) -> None:
    shutil.copytree(bench.base, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    save(gpt2, tmp_path / "base")
    for weight in prunable_weights(gpt2).values():
        weight[weight.abs() < weight.abs().median()] = 0
    report = audited(
        cli, bench, save(gpt2, tmp_path / "pruned"), tmp_path / "out", base=tmp_path / "base", site="attn_z.1",
        sae=planted_sae(tmp_path / "sae", 32, hook="blocks.1.attn.hook_z"),
    )  # fmt: skip
    assert report["weights"]["achieved_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert report["sae"]["on"]["base"]["fvu"] < 0.05 and report["sae"]["site"] == "attn_z.1"


def test_shapes_are_those_of_the_tensors(pruned: Path) -> None:
    weights = {name: tuple(of.shape) for file in pruned.glob("*.safetensors") for name, of in load_file(file).items()}
    assert shapes(pruned) == weights


# ---- the verdict -----------------------------------------------------------------------------------------------------


def planted_report(report: dict[str, Any], fvu: tuple[float, float], kept: float) -> dict[str, Any]:
    """A report with other numbers where the verdict looks."""
    found = json.loads(json.dumps(report))
    found["sae"]["on"]["base"]["fvu"], found["sae"]["on"]["compressed"]["fvu"] = fvu
    found["sae"]["fixed"]["viable"] = fvu[1] <= 1.25 * fvu[0]
    found["sae"]["fixed"]["fvu_ratio"] = fvu[1] / fvu[0] if fvu[0] else None
    found["sae"]["fixed"]["kept"]["share"] = kept
    return found


def test_the_verdict_follows_its_thresholds(report: dict[str, Any]) -> None:
    for fvu, kept, kind, words in (
        ((0.10, 0.125), 0.95, "works", "The SAE still works on this model"),
        ((0.10, 0.125), 0.70, "differs", "but 30% of its features fire differently"),
        ((0.10, 0.13), 0.95, "fails", "it leaves 1.3 times as much unexplained"),
        ((0.00, 0.13), 0.95, "fails", "it leaves 13.0%, where it left nothing, unexplained"),
        ((0.60, 0.61), 0.95, "unfit", "not even the base model"),
    ):
        verdict = judge(planted_report(report, fvu, kept))
        assert verdict["kind"] == kind
        assert words in verdict["headline"]
        assert any("1.25" in reason for reason in verdict["reasons"])
    assert any("leaves 60% of the variance" in caveat for caveat in verdict["caveats"])


@pytest.mark.parametrize("fvu", [(0.1, 0.2), (0.0, 0.2), (0.0, 0.0)])
def test_a_page_is_written_whatever_is_unexplained_and_though_no_feature_fires_often(
    report: dict[str, Any], fvu: tuple[float, float]
) -> None:
    none = torch.tensor([], dtype=torch.long)
    found = planted_report(report, fvu, 0.95)
    found["features"] = describe(Ranked(none, none, 0), *[None] * 2, [None] * 2, *[None] * 2)
    assert found["features"] == {"hit_hardest": [], "kept_best": [], "candidates": 0, "fewest_firings": 30}
    assert judge(found)["headline"] in render(found | {"verdict": judge(found)})


def test_an_sae_of_a_centred_model_is_said_to_be_one(cli: Cli, bench: Bench, pruned: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bench.sae, tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (folder / "cfg.json").write_text(json.dumps(config))
    found = audited(cli, bench, pruned, tmp_path / "out", "--sae", str(folder))
    assert any("writing weights had been centred" in caveat for caveat in found["verdict"]["caveats"])


def test_half_precision_changes_no_weight_and_a_head_that_was_untied_is_a_change() -> None:
    base, stored = tiny("LlamaForCausalLM"), tiny("LlamaForCausalLM").bfloat16().float()
    found = compare(base, stored)
    assert found["changed"] == 0 and not any(of["changed"] for of in found["others"])
    assert [of["name"] for of in found["others"]] == ["embeddings", "norms and biases"]
    stored.lm_head.weight = torch.nn.Parameter(stored.lm_head.weight + 1)
    assert [of["name"] for of in compare(base, stored)["others"] if of["changed"]] == ["head"]
    stored.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert compare(base, stored)["changed"] * found["prunable"] == pytest.approx(1)
