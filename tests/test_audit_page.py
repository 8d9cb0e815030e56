"""The audit's page: whole, harmless, and as a browser shows it."""

from __future__ import annotations

import asyncio
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import audit_models
import pytest
from audit_models import SITE, WINDOW, Bench, pruned_by_torch, save
from browsing import BROWSER, browser, tab
from tokenizers import Tokenizer

from feature_survival.audit import run
from feature_survival.audit.page import render
from feature_survival.audit.request import Request

VOID = {"meta", "br", "rect", "line"}
HOSTILE = '<script>document.title = "taken"</script> <img src="http://127.0.0.1/x"> & "quotes"'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Tokenizer) -> Path:
    """Of a pruned model, with everything a report may hold, on documents full of HTML."""
    bench: Bench = audit_models.make(tmp_path_factory.mktemp("page"), corpus, tokenizer)
    documents = [json.loads(line)["text"] for line in bench.text.read_text().splitlines()]
    hostile = [{"text": f"{HOSTILE} {text}"} for text in documents]
    bench.text.write_text("".join(f"{json.dumps(document)}\n" for document in hostile))
    asked = Request(
        base=str(bench.base), compressed=str(save(pruned_by_torch(0.5), bench.root / "<pruned>")), sae=str(bench.sae),
        train_sae=True, site=f"resid_post.{SITE}", text=bench.text, out=bench.root / "out", device="auto", dtype="auto",
        window=WINDOW, tokens=100_000, sae_tokens=11_000, batch=16, expansion=2, k=4, learning_rate=None,
    )  # fmt: skip
    return run(asked).page


class Reader(HTMLParser):
    """Collects what a page holds; asserts that every tag is closed where it has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    return reader


def test_every_tag_is_closed_in_its_place(read: Reader) -> None:
    assert read.open == []


def test_nothing_is_fetched_and_no_script_is_there(read: Reader, page: Path) -> None:
    assert not {"script", "img", "link", "iframe", "object", "embed"} & {tag for tag, _ in read.seen}
    assert not {"src", "href", "srcset"} & {name for _, attributes in read.seen for name in attributes}
    assert not any(name.startswith("on") for _, attributes in read.seen for name in attributes)
    style = re.search(r"<style>(.*?)</style>", page.read_text(), re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = next(attributes for tag, attributes in read.seen if "http-equiv" in attributes)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_html_in_documents_and_names_is_shown_as_text(read: Reader, page: Path) -> None:
    assert "<pruned>" in read.text
    assert "cript>" in read.text or "quotes" in read.text  # of a document, in a context
    assert not re.search(r"<\s*(script|img)", page.read_text())


def test_the_page_says_what_the_numbers_say(read: Reader, page: Path) -> None:
    report = json.loads((page.parent / "audit.json").read_text())
    assert render(report) == page.read_text(encoding="utf-8")
    for text in (report["verdict"]["headline"], *report["verdict"]["reasons"], *report["verdict"]["caveats"]):
        assert text in read.text
    for row in report["features"]["hit_hardest"]:
        assert f"feature {row['feature']}" in read.text
    for name, row in report["sae"]["on"].items():
        assert f"{row['fvu']:.1%}" in read.text, name
    assert f"{report['survival'][0]['shares'][1]['mean']:.1%}" in read.text
    assert f"{100 * report['weights']['tensors'][0]['zeros']:.1f}" in read.text


def test_ids_are_distinct_and_every_heading_follows_the_one_above(read: Reader) -> None:
    ids = [attributes["id"] for _, attributes in read.seen if "id" in attributes]
    assert len(set(ids)) == len(ids)
    levels = [int(tag[1]) for tag, _ in read.seen if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 or before == 1 for before, after in pairwise(levels))


# ---- in a browser ----------------------------------------------------------------------------------------------------


async def look(address: str, page: Path, out: Path) -> list[dict[str, Any]]:
    async with tab(address) as shown:
        for width, scheme in ((1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")):
            await shown.show(page, width, scheme)
            assert await shown.value("document.title") != "taken"
            assert await shown.value("document.documentElement.scrollWidth <= innerWidth"), f"too wide at {width}"
            assert not await shown.value("document.querySelector('.pair').checkVisibility()")
            await shown.value("document.querySelector('details.card summary').focus()")
            await shown.press("Enter")
            assert await shown.value("document.querySelector('details.card').open"), "a key opens a card"
            assert await shown.value("document.querySelector('.pair').checkVisibility()")
            await shown.shoot(out / f"{width}-{scheme}.png")
            dark = await shown.value("getComputedStyle(document.body).backgroundColor")
            assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
        return shown.complaints


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_opens_it_wide_narrow_light_and_dark_without_a_complaint(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as address:
        complaints = asyncio.run(look(address, page, tmp_path))
    assert complaints == []
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("1200-light", "390-dark"))
