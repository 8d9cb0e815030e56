"""What a user asks of an audit, checked before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from feature_survival.catalogue import Device, Dtype, Site
from feature_survival.schema import Section


def _is_site(text: str) -> str:
    Site.parse(text)
    return text


NEEDED = {"evaluation": 2_000, "sae": 10_000}  # tokens; fewer say little
K = 32  # active features a token of SAEs trained


class Request(Section):
    """The options of `feature-survival audit`."""

    base: str  # a folder, or repository@revision
    compressed: str  # likewise
    sae: str | None  # a folder, or release:sae_id
    train_sae: bool
    site: Annotated[str, AfterValidator(_is_site)]
    text: Path
    out: Path
    device: Device
    dtype: Dtype  # in which both models run; auto: that of the base checkpoint
    window: Annotated[int, Field(ge=3)]  # tokens, <bos> included
    tokens: Annotated[int, Field(ge=NEEDED["evaluation"])]  # the most that are measured on
    sae_tokens: Annotated[int, Field(ge=NEEDED["sae"])]  # the most that SAEs are trained on
    batch: PositiveInt  # windows through a model at a time
    expansion: PositiveInt  # of the SAEs trained
    k: PositiveInt | None  # None: as many as the SAE given keeps active, else K
    learning_rate: PositiveFloat | None  # None: by the SAE's width, see `training.settings`
