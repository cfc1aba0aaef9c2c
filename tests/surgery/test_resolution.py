"""One rule finds an adapter's weights in a base, or it is said that several do."""

from __future__ import annotations

import pytest

from surgery.errors import MismatchError
from surgery.resolution import resolve_names

HF = {
    "q": ("model.layers.0.self_attn.q_proj.weight",),
    "up": ("model.layers.0.mlp.up_proj.weight",),
    "embed": ("model.embed_tokens.weight",),
}
MINDFORMERS = {
    "q": ("model.layers.0.attention.wq.weight",),
    "up": ("model.layers.0.feed_forward.w3.weight",),
    "embed": ("model.tok_embeddings.embedding_weight",),
}


def names(wanted: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {key: candidates[0] for key, candidates in wanted.items()}


def behind(prefix: str, base: dict[str, str]) -> list[str]:
    return [f"{prefix}.{name}" for name in base.values()]


def test_names_that_are_spelled_alike_need_no_rule() -> None:
    resolution = resolve_names(HF, [*names(HF).values(), "lm_head.weight"])
    assert resolution.found == names(HF)
    assert resolution.rule == ""
    assert resolution.apply("any.name") == "any.name"


@pytest.mark.parametrize(
    ("wanted", "base", "naming"), [(HF, MINDFORMERS, "mindformers"), (MINDFORMERS, HF, "huggingface")]
)
def test_names_are_translated_to_those_of_the_base(
    wanted: dict[str, tuple[str, ...]], base: dict[str, tuple[str, ...]], naming: str
) -> None:
    resolution = resolve_names(wanted, list(names(base).values()))
    assert resolution.found == names(base)
    assert resolution.rule == f"translated to {naming} names"
    assert resolution.apply(wanted["q"][0]) == base["q"][0]


def test_the_first_component_is_left_out_where_the_base_lacks_it() -> None:
    base = {key: name.partition(".")[2] for key, name in names(HF).items()}
    resolution = resolve_names(HF, list(base.values()))
    assert resolution.found == base
    assert resolution.rule == "without their first component"
    assert resolution.apply("model.x") == "x"


def test_a_prefix_of_the_base_is_put_in_front() -> None:
    base = behind("net", names(HF))
    resolution = resolve_names(HF, base)
    assert list(resolution.found.values()) == base
    assert resolution.rule == "behind 'net.'"
    assert resolution.apply("x") == "net.x"


@pytest.mark.parametrize(("wanted", "base"), [(HF, MINDFORMERS), (MINDFORMERS, HF)])
def test_a_translation_and_a_prefix_go_together(
    wanted: dict[str, tuple[str, ...]], base: dict[str, tuple[str, ...]]
) -> None:
    shorter = {key: name.removeprefix("model.") for key, name in names(base).items()}
    resolution = resolve_names(wanted, list(shorter.values()))
    assert resolution.found == shorter
    assert resolution.rule.endswith(" and without their first component")
    longer = behind("net", names(base))
    resolution = resolve_names(wanted, longer)
    assert list(resolution.found.values()) == longer
    assert resolution.rule.endswith(" and behind 'net.'")


def test_the_first_name_that_the_base_has_is_taken() -> None:
    wanted = {"x": ("layer.weight", "layer", "layer.base_layer.weight")}
    assert resolve_names(wanted, ["layer", "layer.base_layer.weight"]).found == {"x": "layer"}


def test_names_as_they_are_spelled_come_before_others_under_a_prefix() -> None:
    base = [*names(HF).values(), *behind("ema", names(HF))]
    assert resolve_names(HF, base).found == names(HF)


def test_names_as_they_are_translated_come_before_others_under_a_prefix() -> None:
    base = [*names(MINDFORMERS).values(), *behind("ema", names(MINDFORMERS))]
    assert resolve_names(HF, base).found == names(MINDFORMERS)


def test_several_prefixes_that_fit_are_no_guess() -> None:
    base = [*behind("student", names(HF)), *behind("teacher", names(HF))]
    with pytest.raises(MismatchError, match=r"several ways: behind 'student\.', or behind 'teacher\.'"):
        resolve_names(HF, base)


def test_several_prefixes_that_fit_a_part_are_no_guess_either() -> None:
    base = [*behind("student", names(HF)), *behind("teacher", names(HF))]
    with pytest.raises(MismatchError, match="several ways"):
        resolve_names(HF | {"other": ("not.there",)}, base)


def test_a_prefix_that_fits_all_beats_one_that_fits_a_part() -> None:
    base = [*behind("draft", names(HF))[:2], *behind("net", names(HF))]
    assert resolve_names(HF, base).rule == "behind 'net.'"


def test_rules_that_find_the_same_are_no_contradiction() -> None:
    # "model.a.b" without its first component, and behind the prefix that it has then lost.
    resolution = resolve_names({"x": ("model.a.b",), "y": ("model.a.c",)}, ["a.b", "a.c"])
    assert resolution.found == {"x": "a.b", "y": "a.c"}


def test_as_many_names_as_can_be_are_found_by_one_rule_and_the_rest_is_left_out() -> None:
    wanted = HF | {"other": ("not.there",)}
    base = [*names(HF).values(), "net.not.there"]
    resolution = resolve_names(wanted, base)
    assert resolution.found == names(HF), "no rule for each key"
    assert resolution.rule == ""


def test_a_prefix_that_finds_no_more_than_the_plain_names_is_not_taken() -> None:
    wanted = {"a": ("x.a",), "b": ("x.b",)}
    assert resolve_names(wanted, ["x.a", "net.x.b"]).found == {"a": "x.a"}


def test_nothing_found_is_no_rule() -> None:
    for base in ([], ["other.weight"]):
        resolution = resolve_names(HF, base)
        assert (resolution.found, resolution.rule) == ({}, "")
        assert resolution.apply("x") == "x"


def test_nothing_wanted_is_found() -> None:
    assert resolve_names({}, ["a.b"]).found == {}


def test_a_base_of_very_many_first_components_is_searched_in_bounded_time() -> None:
    """Each of them in front of each name would be 10^9 names."""
    wanted = {str(number): (f"x.{number}.weight",) for number in range(30_000)}
    assert resolve_names(wanted, {f"p{number}.y.weight" for number in range(30_000)}).found == {}
