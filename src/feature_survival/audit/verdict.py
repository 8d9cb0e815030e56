"""What the numbers say, in plain words, by thresholds that were fixed in advance."""

from __future__ import annotations

from typing import Any

from feature_survival.metrics.survival import OTHER_INIT
from feature_survival.thresholds import DAMAGED, KEPT, MAIN_TAU, VIABLE

FEW = 0.10  # of the alive features; where more fire differently, an SAE that reconstructs still has changed meaning
POOR = 0.5  # FVU on the base from which an SAE says too little about either model
WORKS, DIFFERS, FAILS, UNFIT, NONE = "works", "differs", "fails", "unfit", "no SAE"


def judge(report: dict[str, Any]) -> dict[str, Any]:
    """The verdict on a report: its kind, a headline, reasons, and what to bear in mind."""
    ratio = report["language"]["ratio"]
    speech = (
        f"Perplexity on this text goes from {report['language']['base']['perplexity']:.4g} to "
        f"{report['language']['compressed']['perplexity']:.4g}, {ratio:.4g} times the base's."
    )
    sparsity = (
        f"{report['weights']['achieved_sparsity']:.1%} of the prunable weights are exactly zero, "
        f"{report['weights']['changed']:.1%} differ from the base's."
    )
    if report["sae"] is None:
        return {
            "kind": NONE,
            "headline": "Nothing can be said about features without an SAE",
            "reasons": [speech, sparsity, "Give one with --sae, or train some on this text with --train-sae."],
            "caveats": _caveats(report),
        }
    kind, headline = _on_sae(report["sae"])
    return {
        "kind": kind,
        "headline": headline,
        "reasons": [*_reasons(report["sae"]), *_survival(report), speech, sparsity],
        "caveats": _caveats(report),
    }


def _on_sae(sae: dict[str, Any]) -> tuple[str, str]:
    differ = 1 - sae["fixed"]["kept"]["share"]
    if sae["on"]["base"]["fvu"] > POOR:
        return UNFIT, "This SAE describes not even the base model on this text: it cannot tell"
    if not sae["fixed"]["viable"]:
        times, left = sae["fixed"]["fvu_ratio"], sae["on"]["compressed"]["fvu"]
        much = f"{left:.1%}, where it left nothing," if times is None else f"{times:.3g} times as much"
        return FAILS, f"The SAE does not carry over to this model: it leaves {much} unexplained"
    if differ > FEW:
        return DIFFERS, f"The SAE still reconstructs this model, but {differ:.0%} of its features fire differently"
    return WORKS, "The SAE still works on this model"


def _reasons(sae: dict[str, Any]) -> list[str]:
    base, compressed, fixed = sae["on"]["base"]["fvu"], sae["on"]["compressed"]["fvu"], sae["fixed"]
    kept = fixed["kept"]
    return [
        f"It leaves {compressed:.1%} of the variance unexplained on the compressed model and {base:.1%} on the base; "
        f"it counts as viable up to {VIABLE:g} times the base's, {VIABLE * base:.1%}.",
        f"{kept['count']} of {kept['of']} alive features ({kept['share']:.0%}, 95% interval {kept['low']:.0%} to "
        f"{kept['high']:.0%}) fire alike in both models: their activations correlate above {KEPT:g}. The SAE counts "
        f"as working where at most {FEW:.0%} do not. Damaged, below {DAMAGED:g}: {fixed['damaged']['count']}.",
    ]


def _survival(report: dict[str, Any]) -> list[str]:
    """Where SAEs were trained: survival between those that share nothing, beside the most that it can be."""
    if not report["survival"]:
        return []
    found, ceiling = (
        next(row for row in report["survival"] if (row["pairing"], row["control"]) == (OTHER_INIT, is_control))
        for is_control in (False, True)
    )
    said, most = (next(of for of in row["shares"] if of["threshold"] == MAIN_TAU) for row in (found, ceiling))
    return [
        f"Trained anew on the compressed model, SAEs find {said['mean']:.1%} of the base's features again (95% "
        f"interval {said['low']:.1%} to {said['high']:.1%}; mutual nearest neighbours of cosine at least {MAIN_TAU:g}, "
        f"nothing shared). Two SAEs of the base find {most['mean']:.1%} of each other's, {most['low']:.1%} to "
        f"{most['high']:.1%}: nothing can survive better."
    ]


def _caveats(report: dict[str, Any]) -> list[str]:
    text, sae = report["text"]["evaluation"], report["sae"]
    found = [
        f"Measured on {text['tokens']:,} tokens of one text, in windows of {report['settings']['window']}: perplexity "
        "compares the two models here, not with figures published elsewhere."
    ]
    changed = [of["name"] for of in report["weights"]["others"] if of["changed"]]
    if changed:
        found.append(
            f"More than prunable weights changed ({', '.join(changed)}): "
            "what is seen here may be further training's doing."
        )
    if report["weights"]["changed"] == 0:
        found.append("Not one prunable weight differs from the base's: is this the compressed checkpoint?")
    if sae is None:
        return found
    if sae["on"]["base"]["fvu"] > POOR:
        found.append(
            f"On the base the SAE leaves {sae['on']['base']['fvu']:.0%} of the variance unexplained (over {POOR:.0%}): "
            "it is of another model, site or kind of text, or trained on too few tokens."
        )
    if sae["site"] and sae["site"] != report["settings"]["site"]:
        found.append(f"The SAE says that it reads {sae['site']}; it was measured at {report['settings']['site']}.")
    if sae["centred"]:
        found.append(
            "The SAE was trained on a model whose writing weights had been centred, as TransformerLens does; here both "
            "models are as they are, and it leaves more unexplained of either."
        )
    silent = sae["fixed"]["features"] - sae["fixed"]["alive"]
    if silent:
        found.append(
            f"{silent:,} of the SAE's {sae['fixed']['features']:,} features fire on fewer than 10 tokens of this text "
            "in the base; nothing is said about them."
        )
    if report["survival"]:
        found.append(
            "SAEs that share their starting weights look more alike than what they learned: read survival by the "
            "pairing in which they share nothing, beside its ceiling."
        )
        found.append(
            f"SAEs were trained on {report['training']['tokens']:,} tokens; after too few, SAEs that share nothing "
            "find little of each other on the base already: see the ceiling."
        )
    return found
