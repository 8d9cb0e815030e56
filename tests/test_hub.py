"""Models, SAEs and documents by name and revision, against a hub of our own on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from conftest import tiny, truncate
from loopback import MODEL, REVISION, Hub, environment_of
from safetensors.torch import save_file

from feature_survival.artifacts import read_json, read_tensors
from feature_survival.catalogue import Text
from feature_survival.hub import stream_documents
from feature_survival.models import load
from feature_survival.schema import InputError

SAE_RELEASE, SAE_ID = "gemma-scope-2-1b-pt-res", "layer_13_width_16k_l0_medium"
SAE_REPOSITORY, SAE_FOLDER = "google/gemma-scope-2-1b-pt", "resid_post/layer_13_width_16k_l0_medium"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded checkpoint as hubs hold it, with files that are not wanted."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-llama"
    tiny("LlamaForCausalLM").save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("card")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    server = Hub()
    server.repositories[MODEL] = checkpoint
    yield server
    server.shutdown()
    server.server_close()


class Result(NamedTuple):
    refused: bool
    output: str  # what the call gave, or the error's line


PROGRAM = """
import json, sys, time
from pathlib import Path
from feature_survival import hub
time.sleep = lambda _: None  # huggingface_hub waits between its attempts, half a minute in all
from feature_survival.schema import InputError
results = []
for call in sys.argv[2:]:
    try:
        results.append((False, str(eval(call))))
    except InputError as error:
        results.append((True, str(error)))
Path(sys.argv[1]).write_text(json.dumps(results))
"""


def ask(hub: Hub, home: Path, *calls: str, **environment: str) -> list[Result]:
    """Make calls of the module in a process of its own: huggingface_hub reads its environment when imported."""
    answers = home.with_name(f"{home.name}-answers.json")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, answers, *calls],
        env=environment_of(hub, home, **environment),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [Result(*answer) for answer in json.loads(answers.read_text())]


def fetch(hub: Hub, home: Path, repository: str = MODEL, revision: str = REVISION, **environment: str) -> Result:
    return ask(hub, home, f"hub.fetch_model({repository!r}, {revision!r})", **environment)[0]


def refused(result: Result, *parts: str) -> None:
    """One line of InputError, with every part in it."""
    assert result.refused, result.output
    assert "\n" not in result.output
    for part in parts:
        assert part in result.output, result.output


def test_a_sharded_checkpoint_is_fetched_without_pickles_and_loads(hub: Hub, tmp_path: Path) -> None:
    folder = Path(fetch(hub, tmp_path).output)
    names = {str(file.relative_to(folder)) for file in folder.rglob("*")}
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} < names
    assert not names & {"pytorch_model.bin", "README.md", "onnx"}
    assert not any(file in request for file in ("pytorch_model.bin", "README.md", "onnx") for request in hub.asked)
    tokens = torch.arange(8)[None]
    assert torch.equal(load(folder, "auto")(tokens).logits, tiny("LlamaForCausalLM")(tokens).logits)


@pytest.mark.parametrize("revision", [REVISION, "main"])
def test_a_second_fetch_makes_no_request(hub: Hub, tmp_path: Path, revision: str) -> None:
    first = fetch(hub, tmp_path, revision=revision)
    assert not first.refused
    hub.asked.clear()
    assert fetch(hub, tmp_path, revision=revision) == first
    assert hub.asked == []


def test_a_gated_repository_says_what_to_do_without_and_with_a_token(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add(MODEL)
    refused(fetch(hub, tmp_path), MODEL, REVISION, "gated", "accept its licence", "set HF_TOKEN")
    with_token = fetch(hub, tmp_path, HF_TOKEN="hf_of-a-test")
    refused(with_token, MODEL, "gated", "with the account of HF_TOKEN")
    assert "hf_of" not in with_token.output


def test_a_missing_repository_revision_or_name_is_refused(hub: Hub, tmp_path: Path) -> None:
    refused(fetch(hub, tmp_path, "lab/other"), "lab/other", REVISION, "no such repository", "HF_TOKEN")
    refused(fetch(hub, tmp_path, "lab/other", HF_TOKEN="hf_of-a-test"), "no such repository", "HF_TOKEN may see")
    refused(fetch(hub, tmp_path, revision="f" * 40), MODEL, "f" * 40, "no such revision")
    refused(fetch(hub, tmp_path, "a/b/c"), "a/b/c", "Repo id")


def test_without_network_the_cache_serves_or_the_command_to_fill_it_is_named(hub: Hub, tmp_path: Path) -> None:
    refused(fetch(hub, tmp_path, HF_HUB_OFFLINE="1"), "not in the cache", f"hf download {MODEL} --revision {REVISION}")
    assert hub.asked == []
    whole = fetch(hub, tmp_path)
    hub.shutdown()
    hub.server_close()
    assert fetch(hub, tmp_path) == whole
    refused(fetch(hub, tmp_path / "other"), MODEL, REVISION, "not in the cache", "out of reach", "hf download")


def test_a_download_that_breaks_off_goes_on_when_run_again(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    last = max(file.name for file in checkpoint.glob("model-*.safetensors"))
    hub.cut[last] = 1000
    refused(fetch(hub, tmp_path), MODEL, REVISION, "broke off", "run it again")
    hub.cut.clear()
    hub.asked.clear()
    folder = Path(fetch(hub, tmp_path).output)
    assert (folder / last).read_bytes() == (checkpoint / last).read_bytes()
    assert [request for request in hub.asked if request.startswith("GET") and "/resolve/" in request] == [
        f"GET /{MODEL}/resolve/{REVISION}/{last}"
    ]


def test_a_shard_gone_from_the_cache_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    folder = Path(fetch(hub, tmp_path).output)
    shard = min(folder.glob("model-*.safetensors"))
    shard.resolve().unlink()
    shard.unlink()
    assert Path(fetch(hub, tmp_path).output) == folder
    load(folder, "auto")


def test_a_shard_that_is_corrupt_in_the_cache_is_fetched_again_once_deleted(hub: Hub, tmp_path: Path) -> None:
    folder = Path(fetch(hub, tmp_path).output)
    shard = min(folder.glob("model-*.safetensors"))
    truncate(shard.resolve())
    with pytest.raises(InputError, match=f"^{shard.resolve()}: not a loadable checkpoint .*; delete this file and run"):
        load(folder, "auto")
    shard.resolve().unlink()
    assert Path(fetch(hub, tmp_path).output) == folder
    load(folder, "auto")


def test_a_repository_of_pickles_only_is_refused(hub: Hub, tmp_path: Path) -> None:
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "config.json").write_text("{}")
    (pickles / "pytorch_model.bin").write_bytes(b"pickle")
    hub.repositories["lab/old"] = pickles
    refused(fetch(hub, tmp_path / "home", "lab/old"), "lab/old", "no model.safetensors", "safetensors is needed")


def test_a_folder_that_cannot_be_written_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(fetch(hub, tmp_path / "file"), MODEL, REVISION, "broke off", str(tmp_path / "file"))


@pytest.fixture
def published_sae(hub: Hub, tmp_path: Path) -> dict[str, torch.Tensor]:
    """A tiny SAE in Gemma Scope 2's own layout, at the place where sae-lens looks for a real one."""
    folder = tmp_path / "scope" / SAE_FOLDER
    folder.mkdir(parents=True)
    shapes = {"w_enc": (8, 16), "w_dec": (16, 8), "b_enc": (16,), "b_dec": (8,), "threshold": (16,)}
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()}
    save_file(tensors, folder / "params.safetensors")
    stated = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.13.output"}
    (folder / "config.json").write_text(json.dumps(stated))
    hub.repositories[SAE_REPOSITORY] = tmp_path / "scope"
    return tensors


def test_a_pretrained_sae_is_written_in_saelens_format_or_refused(
    hub: Hub, published_sae: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    asked = [
        (SAE_RELEASE, SAE_ID),
        ("gemma-scope-2-1b-pt-ress", SAE_ID),
        (SAE_RELEASE, "layer_13_width_16k_l0_medum"),
        ("gpt2-small-hook-z-kk", "blocks.6.hook_z"),
        (SAE_RELEASE, "layer_17_width_16k_l0_medium"),
        ("lab/no-saes", "layer_1"),
    ]
    calls = [f"hub.fetch_sae({release!r}, {name!r}, Path({str(tmp_path / name)!r}))" for release, name in asked]
    fetched, release, name, pickled, file, repository = ask(hub, tmp_path / "home", *calls)
    assert not fetched.refused, fetched.output
    refused(release, "did you mean 'gemma-scope-2-1b-pt-res'?", "more")
    assert len(release.output) < 400
    refused(name, f"did you mean {SAE_ID!r}?")
    refused(pickled, "gpt2-small-hook-z-kk", "could hold code")
    refused(file, "layer_17_width_16k_l0_medium", "no such file")
    refused(repository, "lab/no-saes, layer_1", "no such repository")
    assert [folder.name for folder in tmp_path.glob("*layer*")] == [SAE_ID]

    assert read_json(tmp_path / SAE_ID / "cfg.json")["architecture"] == "jumprelu"
    written = read_tensors(tmp_path / SAE_ID / "sae_weights.safetensors")
    assert torch.equal(written["W_dec"], published_sae["w_dec"])
    assert torch.equal(written["threshold"], published_sae["threshold"])


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"id": n, "text": f"document {n}"}) + "\n" for n in range(5)))
    return path


def read(dataset: str, split: str = "train", column: str = "text", **settings: Any) -> list[str]:
    return list(stream_documents(Text(dataset=dataset, split=split, column=column, **settings)))


def test_documents_of_a_local_file_or_folder_come_in_order(jsonl: Path, tmp_path: Path) -> None:
    table = tmp_path / "table" / "part.parquet"
    table.parent.mkdir()
    pd.DataFrame({"body": ["a", "b", "c"]}).to_parquet(table)
    assert read(dataset=str(jsonl)) == [f"document {n}" for n in range(5)]
    for place in (table, table.parent):
        assert read(dataset=str(place), column="body") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"column": "body"}, ["'body'", "found: id, text"]),
        ({"column": "id"}, ["no text in 'id'"]),
        ({"split": "test"}, ["test", "train"]),
    ],
)
def test_wrong_columns_and_splits_are_named(jsonl: Path, settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read(dataset=str(jsonl), **settings)
    for part in [str(jsonl), *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_and_folders_without_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("")
    with pytest.raises(InputError, match=r"found \.zip; documents are read from"):
        read(dataset=str(tmp_path / "text.zip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        read(dataset=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"revision is missing; .*absent is no folder or file here"):
        read(dataset=str(tmp_path / "absent"))
    (tmp_path / "broken.jsonl").write_text('{"text": "whole"}\n{"text": "bro')
    with pytest.raises(InputError, match=r"broken\.jsonl"):
        read(dataset=str(tmp_path / "broken.jsonl"))


def documents(dataset: str, most: int | None = None, **settings: Any) -> str:
    """The call that reads a data set of the hub, or its first documents."""
    given = {"dataset": dataset, "split": "train", "column": "text", "revision": REVISION, **settings}
    return f"[one for _, one in zip(range({most or 10**9}), hub.stream_documents(hub.Text(**{given!r})))]"


def test_documents_of_a_data_set_of_the_hub_are_streamed_or_the_reason_is_named(hub: Hub, tmp_path: Path) -> None:
    for repository in ("lab/texts", "lab/broken", "lab/gated"):
        data = tmp_path / repository / "data"
        data.mkdir(parents=True)
        for part in range(2):
            table = pd.DataFrame({"text": [f"{part}a", f"{part}b"]})
            table.to_parquet(data / f"train-0000{part}-of-00002.parquet")
        hub.repositories[repository] = data.parent
    truncate(tmp_path / "lab/broken/data/train-00001-of-00002.parquet")
    hub.gated.add("lab/gated")

    whole, few, broken, split, revision, missing, gated = ask(
        hub,
        tmp_path / "home",
        documents("lab/texts"),
        documents("lab/broken", most=2),
        documents("lab/broken"),
        documents("lab/texts", split="test"),
        documents("lab/texts", revision="f" * 40),
        documents("lab/other"),
        documents("lab/gated"),
    )
    assert whole == (False, "['0a', '0b', '1a', '1b']")
    assert few == (False, "['0a', '0b']")  # read no further than asked for
    refused(broken, f"lab/broken at {REVISION}", "arquet")
    refused(split, f"lab/texts at {REVISION}", "test", "train")
    refused(revision, f"lab/texts at {'f' * 40}", "no such revision")
    refused(missing, "lab/other", "exist on the Hub", "HF_TOKEN")
    refused(gated, "lab/gated", "gated", "accept its licence")


def test_a_data_set_of_the_hub_is_not_reached_for_when_offline(hub: Hub, tmp_path: Path) -> None:
    result = ask(hub, tmp_path, documents("lab/texts"), HF_HUB_OFFLINE="1")[0]
    refused(
        result, f"lab/texts at {REVISION}", "out of reach", "hf download lab/texts --repo-type dataset", "--local-dir"
    )
    assert hub.asked == []
