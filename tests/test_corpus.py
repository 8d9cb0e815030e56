"""From docstrings to token windows."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import TOP, VOCABULARY, contents
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from feature_survival.config import Corpus, Shares
from feature_survival.corpus import SOURCE, SPLITS, build_corpus, prose, read_lock, split_of
from feature_survival.schema import InputError
from feature_survival.text import Vocabulary, documents, read_vocabulary, strided_windows, token_texts, windows

LOCK = TOP / "requirements.lock"
SHARES = {"lm": 0.7, "calibration": 0.03, "sae": 0.17, "evaluation": 0.1}
SENTENCE = "Returns the sum of all the elements along the given axis of an array."


def settings_for(*packages: str) -> Corpus:
    shares = Shares(lm=0.4, calibration=0.2, sae=0.2, evaluation=0.2)
    return Corpus(packages=list(packages), shortest_document=100, shares=shares)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "data"
    build_corpus(settings_for("mpmath"), LOCK, folder)
    return folder


def records(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {split: [json.loads(line) for line in (folder / f"{split}.jsonl").open()] for split in SPLITS}


def test_prose_keeps_paragraphs_as_one_line_each() -> None:
    wrapped = SENTENCE.replace(" all ", "\n    all\t ")
    assert prose(f"{wrapped}\n\n{SENTENCE}") == [SENTENCE, SENTENCE]


@pytest.mark.parametrize(
    "dropped",
    [
        ">>> np.sum([1, 2, 3])\n" + SENTENCE,
        SENTENCE + "\n    ... continued input of an example",
        "In [1]: the session of an interactive shell with a good many words in it",
        "name     dtype     meaning of the column\nfirst    float     the first column of all\n" + SENTENCE,
        "only seven words stand in this one",
        "x = [[1, 0, 0], [0, 1, 0], [0, 0, 1]] is the same as an eye of size three by three = 1 0 0",
    ],
)
def test_prose_drops_what_does_not_read_as_prose(dropped: str) -> None:
    assert prose(f"{dropped}\n\n{SENTENCE}") == [SENTENCE]


def test_prose_drops_underlines_but_keeps_the_paragraph_around_them() -> None:
    assert prose(f"Notes\n-----\n{SENTENCE}") == [f"Notes {SENTENCE}"]


def test_one_wide_gap_or_a_single_table_row_is_not_a_table() -> None:
    assert len(prose(f"axis :   the axis\ndtype :   the type\n{SENTENCE}")) == 1
    assert len(prose(f"name    dtype    meaning\n{SENTENCE}")) == 1


def test_the_splits_share_no_document_and_no_paragraph(built: Path) -> None:
    by_split = records(built)
    assert all(by_split.values())
    ids = [record["id"] for split in SPLITS for record in by_split[split]]
    assert len(ids) == len(set(ids))
    folded = [
        re.sub(r"\d+", "0", paragraph.lower())
        for split in SPLITS
        for record in by_split[split]
        for paragraph in record["text"].split("\n")
    ]
    assert len(folded) == len(set(folded))


def test_documents_are_modules_in_the_split_their_id_hashes_to(built: Path) -> None:
    shares = settings_for("mpmath").shares.model_dump()
    for split, found in records(built).items():
        assert len(found) == len({record["id"] for record in found})
        for record in found:
            assert record["id"].startswith("mpmath/")
            assert "/tests/" not in record["id"]
            assert len(record["text"]) >= 100
            assert split_of(record["id"], shares) == split


def test_building_twice_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    build_corpus(settings_for("mpmath"), LOCK, tmp_path / "data")
    assert contents(tmp_path / "data") == contents(built)
    assert json.loads((built / SOURCE).read_text())["packages"] == {"mpmath": importlib.metadata.version("mpmath")}


def test_split_shares_are_kept_over_many_documents() -> None:
    found = [split_of(f"package/module_{number}.py", SHARES) for number in range(10_000)]
    for split in SPLITS:
        assert found.count(split) / len(found) == pytest.approx(SHARES[split], abs=0.015)


@pytest.mark.parametrize(
    ("lock", "package", "message"),
    [
        ("mpmath==0.0.1\n", "mpmath", r"mpmath \S+ is installed, 0\.0\.1 is pinned; run: make env"),
        ("numpy==1.0\n", "mpmath", r"mpmath \S+ is installed, no version is pinned"),
        ("mpmath==1.3.0\n", "no-such-package", r"corpus\.packages: 'no-such-package' is not installed"),
        (None, "mpmath", r"requirements\.lock: no such file"),
    ],
)
def test_a_package_other_than_the_pinned_one_is_refused_and_nothing_is_written(
    tmp_path: Path, lock: str | None, package: str, message: str
) -> None:
    path = tmp_path / "requirements.lock"
    if lock:
        path.write_text(lock)
    with pytest.raises(InputError, match=message):
        build_corpus(settings_for(package), path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_lock_is_read_by_lower_case_name(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("# comment\nGitPython==3.2.1\nflufl.lock==9.2.0 ; python_version > '3'\n")
    assert read_lock(tmp_path / "lock") == {"gitpython": "3.2.1", "flufl.lock": "9.2.0"}


def test_windows_hold_the_stream_of_documents_line_by_line_with_bos_at_their_start_alone(
    corpus: Path, tokenizer: Tokenizer
) -> None:
    stream = []
    for text in documents(corpus / "sae.jsonl"):
        stream += tokenizer.encode(f"{text}\n", add_special_tokens=False).ids
    found = windows(corpus, "sae", Vocabulary(tokenizer, 0), 16, None)
    assert found.dtype == torch.int64
    assert found.shape == (len(stream) // 15, 16)
    assert (found[:, 0] == 0).all() and (found[:, 1:] != 0).all()
    assert found[:, 1:].flatten().tolist() == stream[: len(stream) // 15 * 15]


@pytest.mark.parametrize("count", [1, 7, 100])
def test_the_first_windows_asked_for_are_a_prefix_of_all(corpus: Path, tokenizer: Tokenizer, count: int) -> None:
    found = windows(corpus, "sae", Vocabulary(tokenizer, 0), 16, count)
    assert torch.equal(found, windows(corpus, "sae", Vocabulary(tokenizer, 0), 16, None)[:count])


def test_tokens_read_as_inside_a_text_even_where_a_decoder_strips_its_first_space(tokenizer: Tokenizer) -> None:
    stripping = Tokenizer.from_str(tokenizer.to_str())
    stripping.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(content=" ", left=1)])
    expected = [None, *(tokenizer.decode([token]) for token in range(1, tokenizer.get_vocab_size()))]
    assert " the" in expected
    for each in (tokenizer, stripping):
        assert token_texts(Vocabulary(each, 0)) == expected


@pytest.mark.parametrize(("length", "stride"), [(16, 5), (16, 15), (9, 1), (30, 28)])
def test_strided_windows_predict_every_token_once_with_at_least_the_context_asked_for(
    corpus: Path, tokenizer: Tokenizer, length: int, stride: int
) -> None:
    stream: list[int] = []
    for text in documents(corpus / "sae.jsonl"):
        stream += tokenizer.encode(text, add_special_tokens=False).ids
    found = strided_windows(corpus, "sae", Vocabulary(tokenizer, 0), length, stride)
    assert (found.tokens[:, 0] == 0).all()
    counted = [window[-new:] for window, new in zip(found.tokens, found.new.tolist(), strict=True)]
    assert torch.cat(counted).tolist() == stream
    assert found.new[0] == length - 1
    assert (found.new[1:-1] == stride).all() and 0 < found.new[-1] <= stride


def test_a_text_shorter_than_a_strided_window_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "perplexity.jsonl").write_text('{"id": "a", "text": "array"}\n')
    with pytest.raises(InputError, match=r"split 'perplexity' of .* holds \d+ tokens; a window needs 999"):
        strided_windows(tmp_path, "perplexity", Vocabulary(tokenizer, 0), 1000, 10)


@pytest.mark.parametrize("config", ["{}", '{"bos_token_id": null}', '{"bos_token_id": [1, 2]}'])
def test_a_checkpoint_that_names_no_first_token_is_refused(tmp_path: Path, tokenizer: Tokenizer, config: str) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config\.json: bos_token_id is .*; allowed: the number of a token"):
        read_vocabulary(tmp_path)


def test_more_windows_than_the_split_has_are_refused_and_exactly_all_are_not(
    corpus: Path, tokenizer: Tokenizer
) -> None:
    available = len(windows(corpus, "evaluation", Vocabulary(tokenizer, 0), 16, None))
    assert len(windows(corpus, "evaluation", Vocabulary(tokenizer, 0), 16, available)) == available
    message = rf"split 'evaluation' of .* holds {available} windows of 16 tokens; {available + 1} were asked for"
    with pytest.raises(InputError, match=message):
        windows(corpus, "evaluation", Vocabulary(tokenizer, 0), 16, available + 1)


def test_a_missing_split_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"lm\.jsonl: no such file; run: make data"):
        windows(tmp_path, "lm", Vocabulary(tokenizer, 0), 16, 1)


@pytest.mark.parametrize("line", ["not json", '{"id": "a.py"}', '{"id": "a.py", "te', "[]"])
def test_a_foreign_or_truncated_split_is_refused(tmp_path: Path, tokenizer: Tokenizer, line: str) -> None:
    (tmp_path / "lm.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"lm\.jsonl"):
        windows(tmp_path, "lm", Vocabulary(tokenizer, 0), 16, 1)


@pytest.mark.parametrize("content", ["", '{"id": "a.py", "text": "short"}\n'])
def test_a_split_without_a_whole_window_is_refused(tmp_path: Path, tokenizer: Tokenizer, content: str) -> None:
    (tmp_path / "lm.jsonl").write_text(content)
    with pytest.raises(InputError, match="lm"):
        windows(tmp_path, "lm", Vocabulary(tokenizer, 0), 16, None)


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_the_tokenizer_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "<bos>" in text or tokenizer.decode(ids) == text
    assert all(0 <= token < VOCABULARY for token in ids)


def test_bos_is_token_zero_and_the_only_special_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id("<bos>") == 0
    assert [token.content for token in tokenizer.get_added_tokens_decoder().values()] == ["<bos>"]
