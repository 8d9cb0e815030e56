"""Stage `report`: one page that stands alone, with the claims, figures to point at, and a browser of features.

The page holds its numbers as JSON, which its script draws; nothing is fetched, and no text is taken for HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from feature_survival.artifacts import Cell, atomic_file, read_json
from feature_survival.artifacts import report as where
from feature_survival.claims import FAILS, HOLDS, UNTESTABLE
from feature_survival.claims import load as load_claims
from feature_survival.config import Params
from feature_survival.page import asset, fill
from feature_survival.report.chart import Chart
from feature_survival.report.features import browser
from feature_survival.report.first import FIRST
from feature_survival.report.second import SECOND

SCRIPTS = ("figures.js", "features.js", "page.js")  # the last one starts
MARKS = {HOLDS: "holds", FAILS: "fails", UNTESTABLE: "untestable"}  # how a verdict looks


def write(params: Params, root: Path) -> Path:
    """Write the page; InputError names a table or an artifact that is missing. Returns where it is."""
    page = render(
        judged=read_json(root / "results" / "claims.json"),
        tests={name: claim.test.table for name, claim in load_claims(root / "claims.yaml").items()},
        charts=charts(root / "results", params.study.site),
        models=[browser(params.for_model(model), Cell(root, model, "dense")) for model in params.study.models],
    )
    with atomic_file(where(root)) as path:
        path.write_text(page, encoding="utf-8")
    return where(root)


def charts(results: Path, site: str) -> list[Chart]:
    """Every figure that has points. site: where the first study reads its models."""
    made = [make(results) for make in (*FIRST, *SECOND)]
    placed = [chart._replace(points=chart.points.fillna({"site": site}).dropna(subset="y")) for chart in made]
    return [chart for chart in placed if len(chart.points)]


def render(
    judged: list[dict[str, Any]], tests: dict[str, str], charts: list[Chart], models: list[dict[str, Any]]
) -> str:
    """HTML. judged: results/claims.json; tests: the table that each claim is tested on, by the claim's name."""
    figures = {table: chart for chart in charts for table in chart.tables}
    script = "".join(['"use strict";\n', *(asset(__package__, name) for name in SCRIPTS)])
    return fill(
        __package__,
        claims=[{**claim, "chart": figures.get(tests.get(claim["name"], ""))} for claim in judged],
        marks=MARKS,
        models=[model["model"] for model in models],
        own_style=Markup(asset(__package__, "page.css")),  # noqa: S704 - our own
        script=Markup(script),  # noqa: S704 - our own
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data={"charts": _json([_plain(chart) for chart in charts])}
        | {f"features-{model['model']}": _json(model) for model in models},
    )


def _plain(chart: Chart) -> dict[str, Any]:
    points = chart.points.astype(object).where(chart.points.notna(), None)
    return {**chart._asdict(), "points": {name: points[name].tolist() for name in points}}


def _json(content: Any) -> Markup:
    """For a script element, out of which no text can break."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - nothing in it is markup now
