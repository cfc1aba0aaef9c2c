"""Names that are spelled are names that are told apart again."""

from __future__ import annotations

import pytest

from surgery.naming import Role, classify
from surgery.spelling import FAMILIES, spell

LAYERS = {
    Role.EMBEDDING_A: "model.tok_embeddings",
    Role.EMBEDDING_B: "model.tok_embeddings",
    Role.EXPERT_A: "model.layers.0.mlp.experts.weight1",
    Role.EXPERT_B: "model.layers.0.mlp.experts.weight1",
}
ROLES = [
    *(Role.LORA_A, Role.LORA_B, Role.LORA_MAGNITUDE, Role.LORA_B_BIAS),
    *(Role.EMBEDDING_A, Role.EMBEDDING_B, Role.EXPERT_A, Role.EXPERT_B),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ROLES)
def test_what_is_spelled_is_classified_as_what_it_is(role: Role, family: str) -> None:
    layer = LAYERS.get(role, "model.layers.3.attention.wq")
    name = spell(role, layer, family)
    if name is not None:
        found = classify(name)
        assert (found.role, found.family, found.layer) == (role, family, layer)


def test_every_family_has_a_and_b() -> None:
    for family in FAMILIES:
        assert spell(Role.LORA_A, "x", family)
        assert spell(Role.LORA_B, "x", family)


def test_what_a_family_lacks_has_no_name() -> None:
    assert spell(Role.EXPERT_A, "w", "peft") is None
    assert spell(Role.LORA_MAGNITUDE, "x", "mindpet") is None


def test_plain_weights_are_the_bases_and_pefts_with_its_prefix() -> None:
    assert spell(Role.WEIGHT, "lm_head.weight", "mindpet") == "lm_head.weight"
    assert spell(Role.WEIGHT, "lm_head.weight", "peft") == "base_model.model.lm_head.weight"
    assert classify("base_model.model.lm_head.weight").base == "lm_head.weight"


def test_a_network_that_is_one_layer_has_no_name_before_the_dot() -> None:
    assert spell(Role.LORA_A, "", "mindpet") == "mindpet_delta_lora_a"
