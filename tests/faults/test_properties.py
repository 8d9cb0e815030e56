"""Properties of params.yaml and of masks, on drawn examples. More of masks: test_masks."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import TOP
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from ruamel.yaml import YAML

from feature_survival.compression.forms import pack, unpack
from feature_survival.compression.masks import masks_in_groups, masks_over_model
from feature_survival.config import Params
from feature_survival.schema import InputError, set_key, validate

SHIPPED: dict[str, Any] = json.loads(json.dumps(YAML(typ="safe").load(TOP / "params.yaml")))
PROPERTY = settings(max_examples=40, deadline=None)


def keys_of(content: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The ways to all keys of nested mappings that our schema knows; what transformers is given has its own."""
    if isinstance(content, dict) and way[:1] != ("quick",) and not {"config", "budget"} & set(way):
        for key, value in content.items():
            yield (*way, key)
            yield from keys_of(value, (*way, key))


OPEN = {("models",), ("conditions",), ("variants", "redundancy"), ("models", "*", "sites")}  # any name is allowed there
ALL_KEYS = list(keys_of(SHIPPED))
FIXED = [
    way
    for way in ALL_KEYS
    if tuple("*" if i == 1 and way[0] == "models" else part for i, part in enumerate(way[:-1])) not in OPEN
]
NUMBERS = [way for way in FIXED if len(way) == 2 and way[0] in ("prune", "activations", "metrics", "sae")]


@st.composite
def grids(draw: st.DrawFn) -> dict[str, Any]:
    """Valid params: any part of the models and conditions, other sizes."""
    content = copy.deepcopy(SHIPPED)
    names = [name for name, model in SHIPPED["models"].items() if "training" in model["weights"]]
    models = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    shared = set.intersection(*(set(SHIPPED["models"][name]["sites"]) for name in models))
    others = draw(st.lists(st.sampled_from(["wanda-50", "magnitude-50", "random-50"]), min_size=1, unique=True))
    site = draw(st.sampled_from(sorted(shared)))
    content["study"].update(bases=models, models=models, conditions=["dense", *others], site=site)
    content["variants"].update(models=models, sites=[site], condition=others[0])
    content["report"]["conditions"] = others[:1]
    content["release"]["conditions"] = ["dense"]
    content["sae"].update(k=draw(st.integers(1, 500)), learning_rate=draw(st.floats(1e-6, 1.0)))
    content["window"] = draw(st.integers(3, 128))
    content["activations"]["sae_windows"] = draw(st.integers(1, 10**6))
    content["seeds"]["dense"] += [[draw(st.integers(10, 99)), 7]]
    return content


@PROPERTY
@given(content=grids())
def test_a_valid_grid_comes_back_as_it_was_by_way_of_json(content: dict[str, Any]) -> None:
    params = validate(content, "params.yaml", Params)
    again = validate(json.loads(params.model_dump_json()), "params.yaml", Params)
    assert again == params
    assert params.study.models == content["study"]["models"] and params.sae.k == content["sae"]["k"]
    assert len(params.seeds.dense) == len(content["seeds"]["dense"])


@PROPERTY
@given(way=st.sampled_from(FIXED), data=st.data())
def test_any_misspelt_key_is_refused_by_its_name(way: tuple[str, ...], data: st.DataObject) -> None:
    *above, key = way
    cut = data.draw(st.integers(0, len(key) - 1))
    misspelt = data.draw(st.sampled_from([key[:cut] + key[cut + 1 :], key[:cut] + "q" + key[cut:]]))
    content = copy.deepcopy(SHIPPED)
    place = content
    for part in above:
        place = place[part]
    if not misspelt or misspelt in place:
        return
    place[misspelt] = place.pop(key)
    with pytest.raises(InputError) as refused:
        validate(content, "params.yaml", Params)
    said = str(refused.value)
    assert "\n" not in said and said.startswith("params.yaml: ")
    missing = ".".join(map(str, way))  # the right one
    assert repr(misspelt) in said or missing in said, said


@PROPERTY
@given(way=st.sampled_from(NUMBERS), value=st.integers(-5, 10**6))
def test_a_key_that_is_changed_and_set_back_changes_nothing(way: tuple[str, ...], value: int) -> None:
    content, key = copy.deepcopy(SHIPPED), ".".join(way)
    old = SHIPPED[way[0]][way[1]]
    set_key(content, key, value, "params.yaml")
    assert content[way[0]][way[1]] == value
    set_key(content, key, old, "params.yaml")
    assert content == SHIPPED
    assert isinstance(validate(content, "params.yaml", Params), BaseModel)


shapes = st.lists(st.integers(1, 7), min_size=1, max_size=2).flatmap(
    lambda leading: st.integers(1, 70).map(lambda width: (*leading, width))
)


@PROPERTY
@given(shape=shapes, kind=st.sampled_from([torch.bool, torch.float32, torch.float16, torch.int64]), seed=st.integers())
def test_masks_of_any_shape_and_type_survive_packing(shape: tuple[int, ...], kind: torch.dtype, seed: int) -> None:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed % 2**32)) < 0.5
    mask = drawn.to(kind).bool()
    assert torch.equal(unpack(pack(mask), shape[-1]), drawn)


@PROPERTY
@given(rows=st.integers(1, 6), width=st.integers(1, 40), parts=st.integers(0, 1000), seed=st.integers(0, 999))
def test_the_sparsity_reached_is_that_asked_for_to_the_last_weight(
    rows: int, width: int, parts: int, seed: int
) -> None:
    scores = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed))
    sparsity = min(parts, 999) / 1000
    for group, of in (("row", width), ("matrix", rows * width)):
        pruned = int((~masks_in_groups(scores, sparsity, group)).sum())
        assert pruned == rows * width // of * (of * min(parts, 999) // 1000)
    over_model = masks_over_model({"a": scores, "b": 2 * scores}, sparsity)
    assert sum(int((~mask).sum()) for mask in over_model.values()) == 2 * rows * width * min(parts, 999) // 1000


@PROPERTY
@given(seed=st.integers(0, 999), sparsities=st.lists(st.integers(0, 999), min_size=2, max_size=5).map(sorted))
@pytest.mark.parametrize("group", ["row", "matrix", "model"])
def test_of_the_same_scores_a_higher_sparsity_prunes_what_a_lower_one_does_and_more(
    group: str, seed: int, sparsities: list[int]
) -> None:
    scores = torch.rand(5, 24, generator=torch.Generator().manual_seed(seed))
    masks = [
        masks_over_model({"a": scores}, part / 1000)["a"]
        if group == "model"
        else masks_in_groups(scores, part / 1000, group)
        for part in sparsities
    ]
    for fewer, more in pairwise(masks):
        assert (~more | fewer).all()
