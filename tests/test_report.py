"""The report: contexts against planted truth, numbers against their tables, and the page as a browser shows it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from audit_models import planted_sae
from browsing import BROWSER, Tab, browser, tab
from conftest import TINY_STUDY, TOP, Ended, WriteParams, contents
from ruamel.yaml import YAML
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from feature_survival import config
from feature_survival.artifacts import Cell, read_parquet
from feature_survival.contexts import AROUND, CONTEXTS
from feature_survival.report import charts, write
from feature_survival.report.features import browser as features_of
from feature_survival.stages import contexts
from feature_survival.text import read_vocabulary, windows

MODELS, CONDITIONS = ["tiny", "tall"], ["magnitude-50", "wanda-50"]
WIDTH, WINDOWS, POSITIONS = 6, 40, 15
FEATURES = 2 * WIDTH  # the axes of the site, once up and once down
DEAD, SILENT = 11, 10  # not alive; alive, and silent in the pruned models
HOSTILE = '<script>document.title = "taken"</script> <img src="http://127.0.0.1/x"> & "quotes" '
STUDY = {
    **TINY_STUDY,
    "models.tall": TINY_STUDY["models.tiny"],
    "study.bases": MODELS,
    "study.models": MODELS,
    "variants.models": MODELS,
    "activations.evaluation_windows": WINDOWS,
    "report.conditions": CONDITIONS,
}


def drawn(seed: int) -> Tensor:
    """Activations [windows, positions, width] without ties in half precision; axis 4 is at least 0 in pruned models."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randperm(WINDOWS * POSITIONS * WIDTH, generator=generator).view(WINDOWS, POSITIONS, WIDTH)
    x = (2048 - spread % 4096).float() / 512
    return x if seed == 0 else torch.cat([x[..., :4], x[..., 4:5].abs(), x[..., 5:]], dim=-1)


def plant(root: Path, model: str, tokenizer: Tokenizer) -> None:
    """What the stages before leave of a model."""
    cells = [Cell(root, model, name) for name in ("dense", *CONDITIONS)]
    cells[0].base.mkdir(parents=True)
    tokenizer.save(str(cells[0].base / "tokenizer.json"))
    (cells[0].base / "config.json").write_text('{"bos_token_id": 0}')
    cells[0].sae.mkdir(parents=True)
    planted_sae(cells[0].sae / "init0-data0", WIDTH)
    rng = np.random.default_rng(0)
    for seed, cell in enumerate(cells):
        cell.cache.mkdir(parents=True)
        for number, part in enumerate(drawn(seed).half().split(16)):
            save_file({"activations": part.flatten(0, 1)}, cell.cache / f"evaluation-{number:05d}.safetensors")
        cell.metrics.mkdir(parents=True)
        (cell.metrics / "metrics.json").write_text(json.dumps({"tokens": WINDOWS * POSITIONS}))
        number = np.arange(FEATURES)
        table = pd.DataFrame({"dense_seed": "init0-data0", "feature": number, "alive": number != DEAD})
        table = table.assign(
            firing_rate=0.4 + number / 1000, mean_activation=1.5, max_activation=4.0, displacement=rng.random(FEATURES),
            correlation=0.9 if seed else 1.0, ce_zero=np.where(number % 2, np.nan, number / 100),
        )  # fmt: skip
        for pairing in ["same init, same order"] if seed else ["same init, other order"]:
            table[f"survival ({pairing}) 0.7"] = (number % 3 == 0).astype(float)
        other = table.assign(dense_seed="init1-data1", firing_rate=0.9)
        pd.concat([other, table]).to_parquet(cell.metrics / "features.parquet", index=False)


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Tokenizer, write_params: WriteParams
) -> Path:
    """A project with a planted SAE, text full of HTML, and the repository's own results."""
    folder = tmp_path_factory.mktemp("report")
    params = config.load(write_params(folder, STUDY))
    shutil.copytree(corpus, folder / "data")
    documents = [json.loads(line) for line in (corpus / "evaluation.jsonl").read_text().splitlines()]
    hostile = [{**of, "text": HOSTILE + of["text"]} for of in documents]
    (folder / "data" / "evaluation.jsonl").write_text("".join(f"{json.dumps(of)}\n" for of in hostile))
    shutil.copytree(TOP / "results", folder / "results")
    shutil.copy(TOP / "claims.yaml", folder)
    for model in MODELS:
        plant(folder, model, tokenizer)
        for condition in CONDITIONS:
            contexts.run(params, Cell(folder, model, condition))
    return folder


@pytest.fixture(scope="module")
def page(root: Path) -> Path:
    return write(config.load(root / "params.yaml"), root)


def embedded(page: Path, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="data-{name}">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


# ---- contexts --------------------------------------------------------------------------------------------------------


def codes(seed: int) -> np.ndarray:
    """What every feature does in a model, [windows, positions, features]."""
    x = drawn(seed).numpy()
    return np.maximum(np.concatenate([x, -x], axis=2), 0)


@pytest.mark.parametrize("by", ["dense", "compressed"])
def test_contexts_are_the_windows_of_the_highest_activations_strongest_first(root: Path, by: str) -> None:
    table = read_parquet(Cell(root, "tiny", "wanda-50").contexts)
    both = {"dense": codes(0), "compressed": codes(2)}
    tokens = windows(root / "data", "evaluation", read_vocabulary(Cell(root, "tiny", "dense").base), 16, WINDOWS)
    for feature in range(FEATURES):
        found = table[(table["feature"] == feature) & (table["by"] == by)]
        peaks = both[by][..., feature].max(axis=1)
        expected = [] if feature == DEAD else [w for w in np.argsort(-peaks, kind="stable")[:CONTEXTS] if peaks[w] > 0]
        assert len(found) == len(expected)
        for row, window in zip(found.to_dict("records"), expected, strict=True):
            at = both[by][window, :, feature].argmax()
            start, end = max(0, at - AROUND), at + AROUND + 1
            assert row["peak"] == at - start
            assert "".join(row["tokens"])[1:-1] in decode(root, tokens[window])
            for name, activations in both.items():
                np.testing.assert_allclose(row[name], activations[window, start:end, feature], atol=1e-4)


def decode(root: Path, window: Tensor) -> str:
    return read_vocabulary(Cell(root, "tiny", "dense").base).tokenizer.decode(window[1:].tolist())


def test_a_feature_that_falls_silent_has_contexts_of_the_dense_model_only(root: Path) -> None:
    table = read_parquet(Cell(root, "tiny", "wanda-50").contexts)
    assert set(table.loc[table["feature"] == SILENT, "by"]) == {"dense"}
    assert all(max(row) == 0 for row in table.loc[table["feature"] == SILENT, "compressed"])


def test_where_fewer_features_are_shown_than_live_those_with_an_effect_come_first(
    root: Path, tmp_path: Path, write_params: WriteParams
) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    params = config.load(write_params(tmp_path, {**STUDY, "report.features": 7}))
    cell = Cell(tmp_path, "tiny", "wanda-50")
    contexts.run(params, cell)
    assert sorted(read_parquet(cell.contexts)["feature"].unique()) == [0, 1, 2, 4, 6, 8, 10]


def test_contexts_made_again_have_the_same_bytes(root: Path) -> None:
    cell = Cell(root, "tiny", "wanda-50")
    first = cell.contexts.read_bytes()
    contexts.run(config.load(root / "params.yaml"), cell)
    assert cell.contexts.read_bytes() == first


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_the_browser_has_every_number_and_context_of_a_model(root: Path, page: Path) -> None:
    model = embedded(page, "features-tiny")
    assert model == json.loads(json.dumps(features_of(config.load(root / "params.yaml"), Cell(root, "tiny", "dense"))))
    assert model["feature"] == [number for number in range(FEATURES) if number != DEAD]
    assert model["dense"]["rate"] == [round(0.4 + number / 1000, 4) for number in model["feature"]]
    assert model["dense"]["effect"] == [None if number % 2 else number / 100 for number in model["feature"]]
    for name in CONDITIONS:
        assert model["conditions"][name]["same"] == [int(number % 3 == 0) for number in model["feature"]]
        assert model["conditions"][name]["other"] == [None] * len(model["feature"])
    table = read_parquet(Cell(root, "tiny", "wanda-50").contexts)
    for number, of in zip(model["feature"], model["contexts"], strict=True):
        rows = table[(table["feature"] == number) & (table["by"] == "dense")].to_dict("records")
        for (peak, text, *activations), row in zip(of["dense"], rows, strict=True):
            shown = "".join(model["pieces"][piece] for piece in model["texts"][text])
            assert peak == row["peak"] and shown == "".join(row["tokens"]).replace("\n", "\u21b5")
            for sparse, expected in zip(activations, (row["dense"], None, row["compressed"]), strict=True):
                found = np.zeros(len(row["tokens"]))
                found[sparse[::2]] = sparse[1::2]
                if expected is not None:
                    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_every_chart_draws_points_of_its_table_inside_their_intervals() -> None:
    made = {chart.name: chart for chart in charts(TOP / "results", "resid_post")}
    assert len(made) == 11
    for chart in made.values():
        points = chart.points
        assert set(points["row"]) <= set(chart.rows) and set(points["line"]) <= set(chart.looks)
        assert points[["model", "site", "n"]].notna().all(axis=None)
        told = points.dropna(subset=["low", "high"])
        assert ((told["low"] <= told["y"] + 1e-9) & (told["y"] <= told["high"] + 1e-9)).all()
    table = pd.read_csv(TOP / "results" / "survival.csv")
    main = table[(table["tau"] == 0.7) & (table["series"] != "dense")]
    assert made["survival"].points["y"].tolist() == main["survival"].tolist()
    assert made["survival"].points["n"].str.contains("at tau 0.6: ").all()


@pytest.mark.parametrize(
    ("rows", "left"), [(0, set()), (1, {"stability", "fragility", "displacement", "causal", "latents"})]
)
def test_tables_with_few_rows_or_none_give_fewer_charts(tmp_path: Path, rows: int, left: set[str]) -> None:
    for file in (TOP / "results").glob("*.csv"):
        lines = file.read_text().splitlines(keepends=True)[: 1 + rows]
        (tmp_path / file.name).write_text("".join(lines))
    # The first rows of the others are the dense model's, and not drawn.
    assert {chart.name for chart in charts(tmp_path, "resid_post")} == left


def test_claims_stand_first_each_with_its_verdict_controls_and_figure(page: Path) -> None:
    text = page.read_text()
    judged = json.loads((TOP / "results" / "claims.json").read_text())
    assert text.count('<tr id="claim-') == len(judged)
    assert text.index('<tr id="claim-') < text.index('id="view-figures"') < text.index('id="data-charts"')
    known = {chart["name"] for chart in embedded(page, "charts")}
    linked = re.findall(r'href="#figures/(\w+)"', text)
    assert len(linked) == len(judged) and set(linked) <= known


def test_nothing_is_fetched_and_only_the_pages_own_script_may_run(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r'\s(src|srcset)=|<(img|link|iframe|object|embed)\b|url\(|@import', re.sub(
        r"<script.*?</script>", "", text, flags=re.DOTALL))  # fmt: skip
    assert re.search(r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]{43}='", text)
    assert "<script>document.title" not in text


Cli = Callable[..., Ended]


def test_a_missing_artifact_is_named_and_no_page_is_touched(cli: Cli, root: Path, page: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    Cell(tmp_path, "tall", "wanda-50").contexts.unlink()
    before = contents(tmp_path)
    ended = cli(tmp_path, "report")
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "artifacts/contexts/tall/wanda-50.parquet: no such file" in ended.err
    assert contents(tmp_path) == before


# ---- in a browser ----------------------------------------------------------------------------------------------------


# Choose an option of a form, as a person does.
choose = "(() => {{ const chosen = document.querySelector('#{0} [name={1}]'); chosen.value = '{2}'; \
chosen.dispatchEvent(new Event('change', {{ bubbles: true }})); }})()"


async def use(address: str, page: Path, out: Path, by_displacement: list[int]) -> list[dict[str, Any]]:
    async with tab(address) as shown:
        await shown.show(page, 1200, "light")
        assert (
            await shown.value("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart") < 2000
        )
        assert await shown.value("document.title") == "feature-survival report"
        assert await shown.value("document.querySelector('.claims').checkVisibility()")
        await figures(shown)
        await features(shown, by_displacement)
        await shown.shoot(out / "features.png")
        for scheme in ("light", "dark"):
            await shown.show(page, 375, scheme)
            for place in ("claims", "figures/survival", "features/tall", "features/tiny/0"):
                await shown.value(f"location.hash = '{place}'")
                await asyncio.sleep(0.1)
                assert await shown.value("document.documentElement.scrollWidth <= innerWidth"), f"{place} is too wide"
            assert await shown.value("document.querySelector('dialog').scrollWidth <= innerWidth")
            assert (await shown.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
                scheme == "light"
            )
            await shown.shoot(out / f"phone-{scheme}.png", whole=False)
        return shown.complaints


async def figures(shown: Tab) -> None:
    """By a claim's link; filtered; one point told by the keyboard."""
    await shown.value("document.querySelector('#claim-rare-features-survive a').click()")
    await asyncio.sleep(0.2)
    assert await shown.value("document.activeElement.textContent") == "RQ4: do rare features survive better?"
    everything = await shown.value("document.querySelectorAll('circle.mark').length")
    model = await shown.value("document.querySelector('#filters [name=model]').options[1].value")
    await shown.value(choose.format("filters", "model", model))
    some = await shown.value("document.querySelectorAll('circle.mark').length")
    titles = await shown.value(
        "[...document.querySelectorAll('#figure-survival figcaption')].map((of) => of.firstChild.data)"
    )
    assert 0 < some < everything and set(titles) == {model}
    await shown.value(choose.format("filters", "method", "wanda"))
    keys = "[...document.querySelectorAll('#figure-survival .key li')].map((of) => of.textContent)"
    assert await shown.value(keys) == ["wanda"]
    await shown.value(choose.format("filters", "site", "mlp_out"))
    assert "Nothing of this figure" in await shown.value("document.querySelector('#figure-survival').textContent")
    await shown.value("document.querySelector('#filters button').click()")
    await asyncio.sleep(0.1)
    assert await shown.value("document.querySelectorAll('circle.mark').length") == everything
    await shown.value("document.querySelector('#figure-survival svg').focus()")
    await shown.press("ArrowRight")
    told = await shown.value("document.querySelector('#tip').textContent")
    assert re.search(r"^[\d.]+ \[[\d.]+, [\d.]+\].*features of \d dense SAEs", told), told
    await shown.press("Escape")
    assert await shown.value("document.querySelector('#tip').hidden")


async def features(shown: Tab, by_displacement: list[int]) -> None:
    """Sorted, searched, opened and closed without a mouse."""
    await shown.value("location.hash = 'features/tiny'")
    await asyncio.sleep(0.1)
    listed = "[...document.querySelectorAll('.list tbody button')].map((of) => Number(of.textContent))"
    assert await shown.value(listed) == [10, 8, 6, 4, 2, 0, 1, 3, 5, 7, 9]  # by effect; those without one last
    await shown.value("document.querySelector('th[data-key=rate] button').click()")
    assert await shown.value(listed) == list(range(10, -1, -1))
    assert await shown.value("document.querySelector('th[data-key=rate]').getAttribute('aria-sort')") == "descending"
    await shown.value("document.querySelector('th[data-key=same] button').click()")
    assert await shown.value(listed) == [0, 3, 6, 9, 1, 2, 4, 5, 7, 8, 10]  # survivors, then by number
    await shown.value("document.querySelector('th[data-key=moved] button').click()")
    assert await shown.value(listed) == by_displacement
    await shown.value(choose.format("browse", "show", "found"))
    assert set(await shown.value(listed)) == {0, 3, 6, 9}
    await shown.value(choose.format("browse", "show", "all"))
    await shown.value(choose.format("browse", "condition", "magnitude-50"))
    assert "beside magnitude-50" in await shown.value("document.querySelector('#about').textContent")
    await shown.value("document.querySelector('th[data-key=rate] button').click()")
    search = "(() => {{ const box = document.querySelector('[name=search]'); box.value = '{}'; \
box.dispatchEvent(new Event('input')); }})()"
    await shown.value(search.format("9"))
    assert await shown.value(listed) == [9]
    await shown.value(search.format("QUOTES"))
    found, holding = await shown.value(listed), set()
    for condition in CONDITIONS:  # a feature is found by what it fires on in any of the models
        await shown.value(choose.format("browse", "condition", condition))
        for feature in range(FEATURES - 1):
            await shown.value(f"location.hash = 'features/tiny/{feature}'")
            await asyncio.sleep(0.05)
            if await shown.value("document.querySelector('dialog').textContent.includes('quotes')"):
                holding.add(feature)
    assert 0 < len(found) < FEATURES - 1 and set(found) == holding
    await shown.value("location.hash = 'features/tiny'")
    await asyncio.sleep(0.1)
    await shown.value(search.format("no such text"))
    assert await shown.value(listed) == []
    await shown.value(search.format(""))
    await shown.value("document.querySelector('.list tbody button').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        await shown.press(key)
    assert await shown.value("document.activeElement.textContent") == "9"
    await shown.press("Enter")
    await asyncio.sleep(0.2)
    assert await shown.value("document.querySelector('dialog').open")
    assert await shown.value("location.hash") == "#features/tiny/9"
    pairs = await shown.value("document.querySelectorAll('dialog .pair').length")
    assert pairs == 2 * CONTEXTS
    assert await shown.value("document.querySelectorAll('dialog .pair > div').length") == 2 * pairs
    shade = await shown.value("getComputedStyle(document.querySelector('dialog .peak')).backgroundColor")
    assert shade.startswith(("rgb(", "rgba(230", "color(")) and "rgba(0, 0, 0, 0)" not in shade
    await shown.press("Escape")
    await asyncio.sleep(0.2)
    assert not await shown.value("document.querySelector('dialog').open")
    assert await shown.value("document.activeElement.textContent") == "9"


async def look(address: str, page: Path) -> tuple[float, list[dict[str, Any]]]:
    """Milliseconds until a page is there, and what its console says."""
    async with tab(address) as shown:
        await shown.show(page, 1200, "light")
        timing = "performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart"
        assert await shown.value("document.querySelectorAll('.claims tbody tr').length") > 20
        return await shown.value(timing), shown.complaints


def published_page(folder: Path) -> Path:
    """The report that store/ has, as `dvc pull` lays it."""
    (out,) = YAML(typ="safe").load(TOP / "dvc.lock")["stages"]["report"]["outs"]
    stored = TOP / "store" / "files" / "md5" / out["md5"][:2] / out["md5"][2:]
    return Path(shutil.copy(stored, folder / "index.html"))


def test_the_published_page_is_under_15_mb(tmp_path: Path) -> None:
    assert 1e6 < published_page(tmp_path).stat().st_size < 15e6


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_published_page_opens_in_two_seconds_without_a_complaint(tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as address:
        milliseconds, complaints = asyncio.run(look(address, published_page(tmp_path)))
    assert milliseconds < 2000 and complaints == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_filters_figures_and_opens_features_without_a_complaint(
    root: Path, page: Path, tmp_path: Path
) -> None:
    of_dense = read_parquet(Cell(root, "tiny", "dense").metrics / "features.parquet")
    of_first = of_dense[(of_dense["dense_seed"] == "init0-data0") & of_dense["alive"]]
    by_displacement = list(of_first.sort_values("displacement", ascending=False)["feature"])
    with browser(tmp_path / "profile") as address:
        complaints = asyncio.run(use(address, page, tmp_path, by_displacement))
    assert complaints == []
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("features", "phone-light", "phone-dark"))
