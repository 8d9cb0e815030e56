"""How a model may be compressed: the methods by name, the settings each takes, and what they must keep to."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from feature_survival.schema import Section, unknown

GROUPS = ("row", "matrix", "model")  # what a weight is compared within; or a pattern N:M of consecutive inputs
PRUNING, QUANTIZATION, LOW_RANK = {"sparsity", "group"}, {"bits", "quantization_group"}, {"sparsity", "rank"}
# Which settings a method takes.
METHOD_KEYS: dict[str, set[str]] = {
    "dense": set(),
    "magnitude": PRUNING,
    "wanda": PRUNING,
    "random": PRUNING,
    "sparsegpt": PRUNING,
    "rtn": QUANTIZATION,
    "awq": QUANTIZATION,
    "svd": LOW_RANK,
    "activation-svd": LOW_RANK,
}


def pattern(group: str) -> tuple[int, int]:
    """A comparison group `N:M` as (N, M): of every M consecutive inputs of a row, N stay. ValueError otherwise."""
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", group)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"group {group!r} is not one of {', '.join(GROUPS)} or a pattern N:M with N < M, e.g. 2:4")
    return int(found[1]), int(found[2])


def _known_group(group: str) -> str:
    if group not in GROUPS:
        pattern(group)
    return group


Group = Annotated[str, AfterValidator(_known_group)]


class Recipe(NamedTuple):
    """A condition with every default filled in."""

    method: str
    sparsity: float = 0.0  # share of weights removed; for low rank, of parameters
    group: str = "row"
    sequential: bool = True
    bits: int = 0  # of a quantized weight
    quantization_group: int = 0  # consecutive inputs of a row that share a scale
    rank: int = 0  # 0: that of equal parameter count at `sparsity`


class Condition(Section):
    """One compression of a model. What is left open comes from section `prune`."""

    method: str
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    group: Group | None = None
    sequential: bool | None = None
    bits: Annotated[int, Field(ge=2, le=8)] | None = None
    quantization_group: PositiveInt | None = None
    rank: PositiveInt | None = None

    @model_validator(mode="after")
    def _settings_fit_the_method(self) -> Condition:
        if self.method not in METHOD_KEYS:
            raise ValueError(str(unknown("method", self.method, list(METHOD_KEYS))))
        takes = METHOD_KEYS[self.method]
        given = {key for key in self.model_fields_set - {"method", "sequential"} if getattr(self, key) is not None}
        if given - takes:
            odd = sorted(given - takes)[0]
            allowed = ", ".join(sorted(takes)) or "no setting"
            raise ValueError(f"method {self.method} takes no {odd}, found {getattr(self, odd)}; allowed: {allowed}")
        by_pattern = self.group is not None and self.group not in GROUPS
        if by_pattern and self.sparsity is not None:
            raise ValueError(f"group {self.group} says which share goes; leave sparsity {self.sparsity:g} out")
        if takes == LOW_RANK and len(given) != 1:
            raise ValueError(f"method {self.method} takes either sparsity or rank, found {sorted(given) or 'neither'}")
        if takes == PRUNING and self.sparsity is None and not by_pattern:
            raise ValueError(f"sparsity is missing; method {self.method} needs one in [0, 1), or a pattern as group")
        if takes == QUANTIZATION and self.bits is None:
            raise ValueError(f"bits is missing; method {self.method} needs 2 to 8")
        return self
