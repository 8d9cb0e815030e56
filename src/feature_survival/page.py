"""Pages that stand alone: a template filled in, every text escaped, the look of all of them inlined."""

from __future__ import annotations

from importlib.resources import files


def fill(package: str, **values: object) -> str:
    """HTML of a package's `page.html`; `style` is the look that all pages share, to be trusted as it is."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"pct": percent, "sig": significant, "token": visible}
    environment.globals |= {"max": max, "min": min, "style": Markup(asset("feature_survival", "page.css"))}  # noqa: S704 - our own
    return environment.from_string(asset(package, "page.html")).render(values)


def asset(package: str, name: str) -> str:
    """A text file that lies beside a package's modules."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def percent(share: float | None, digits: int = 1) -> str:
    """For print."""
    return "n/a" if share is None else f"{share:.{digits}%}"


def significant(value: float | None, digits: int = 3) -> str:
    """For print."""
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def visible(piece: str) -> str:
    """A piece as it is shown: line breaks and tabs as signs."""
    return piece.replace("\r", "").replace("\n", "\u21b5").replace("\t", "\u21e5")
