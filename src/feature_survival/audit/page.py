"""The report as one page that stands alone: no script, nothing fetched, every text escaped."""

from __future__ import annotations

from typing import Any

from feature_survival.audit.measure import BINS
from feature_survival.page import fill
from feature_survival.thresholds import DAMAGED, KEPT

HOT = 0.65  # share of the strongest shade from which text turns black: below it, on dark paper, light text is legible


def render(report: dict[str, Any]) -> str:
    """HTML of what `audit.run` measured; the same numbers as in `audit.json`."""
    return fill(__package__, r=report, maps=_maps(report), bars=_bars(report), shade=_shade, hot=HOT)


def _shade(activation: float, most: float) -> float:
    """Opacity of a token's shade, 0-1."""
    return round(min(1.0, activation / most), 2) if most > 0 else 0.0


def _maps(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Weights as tables of a row a kind of tensor and a column a block: that which says more first."""
    tensors = report["weights"]["tensors"]
    blocks = sorted({of["block"] for of in tensors})
    names = list(dict.fromkeys(of["name"] for of in tensors))
    found = []
    for key, title in (("zeros", "Exact zeros"), ("changed", "Changed from the base")):
        share = {(of["name"], of["block"]): of[key] for of in tensors}
        rows = [(name, [share.get((name, block)) for block in blocks]) for name in names]
        found.append({"title": title, "blocks": blocks, "rows": rows})
    return found if report["weights"]["achieved_sparsity"] > 0.005 else found[::-1]


def _bars(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The histogram of correlations: a bar a bin with its edges, height 0-1, and what becomes of its features."""
    if report["sae"] is None:
        return []
    counts = report["sae"]["fixed"]["histogram"]
    found = []
    for number, count in enumerate(counts):
        low, high = number / BINS, (number + 1) / BINS
        state = "kept" if low >= KEPT - 1e-9 else "damaged" if high <= DAMAGED + 1e-9 else "changed"
        found.append({"low": low, "high": high, "count": count, "height": count / max(counts), "state": state})
    return found
