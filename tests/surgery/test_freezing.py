"""What is trained and what is frozen. `tests/mindspore/network` compares with MindPet on real networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgery.errors import CorruptInputError, MismatchError, UsageError
from surgery.freezing import (
    FreezeReport,
    FreezeRules,
    ParameterFacts,
    decide_freezing,
    parse_freeze_rules,
    read_freeze_rules,
)
from surgery.methods import method_of

NAMES = ("dense.weight", "dense.bias", "norm.gamma", "dense.mindpet_delta_lora_a", "dense.mindpet_delta_lora_b")


def freeze(
    include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), pet_type: str = "", trained: bool = True
) -> FreezeReport:
    parameters = [ParameterFacts(name, trained) for name in NAMES]
    return decide_freezing(parameters, FreezeRules(include, exclude), method_of(pet_type) if pet_type else None)


@pytest.mark.parametrize(
    ("pet_type", "trained"), [("lora", NAMES[3:]), ("LoRA", NAMES[3:]), ("bitfit", ("dense.bias",))]
)
def test_a_method_trains_its_own_parameters_and_no_other(pet_type: str, trained: tuple[str, ...]) -> None:
    assert freeze(pet_type=pet_type).trained == trained
    assert freeze(pet_type=pet_type, trained=False).trained == trained


def test_include_freezes_and_exclude_trains() -> None:
    assert freeze(include=("*weight", "norm*")).trained == ("dense.bias", *NAMES[3:])
    assert freeze(exclude=("*bias",), trained=False).trained == ("dense.bias",)


def test_what_both_lists_match_stays_as_it_was_and_is_reported() -> None:
    report = freeze(include=("*",), exclude=("*bias",))
    assert report.trained == ("dense.bias",)
    assert [decision.name for decision in report.conflicts] == ["dense.bias"]
    assert "both match" in report.conflicts[0].reason


def test_a_conflict_on_what_has_no_gradient_is_reported_too() -> None:
    parameters = (ParameterFacts("steps", False, "int64"), ParameterFacts("dense.bias"))
    report = decide_freezing(parameters, FreezeRules(("step*",), ("*steps",)))
    assert [decision.name for decision in report.conflicts] == ["steps"]
    assert report.frozen == ("steps",)


def test_lists_are_applied_on_top_of_a_method() -> None:
    assert freeze(exclude=("norm*",), pet_type="lora").trained == ("norm.gamma", *NAMES[3:])
    assert freeze(include=("*lora_a",), pet_type="lora").trained == NAMES[4:]


def test_a_glob_in_both_lists_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"'\*bias' in both"):
        freeze(include=("*bias",), exclude=("*bias",))


def test_a_glob_that_matches_nothing_is_refused_with_near_names() -> None:
    with pytest.raises(MismatchError, match=r"'\*dence\.bias' matches no parameter.*dense\.bias"):
        freeze(include=("*dence.bias",))


def test_upper_and_lower_case_differ() -> None:
    with pytest.raises(MismatchError, match="matches no parameter"):
        freeze(include=("*Bias",))


def test_a_network_in_which_nothing_is_trained_is_refused() -> None:
    with pytest.raises(MismatchError, match="nothing is left to train"):
        freeze(include=("*",))
    with pytest.raises(MismatchError, match="nothing is left to train"):
        freeze(include=("*",), pet_type="lora")


def test_a_method_that_is_not_in_the_network_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"no parameter of P-Tuning v2 .*Add the method to the network first"):
        freeze(pet_type="ptuning2")


def test_freezing_by_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="neither a method nor globs"):
        freeze()


def test_whole_numbers_are_never_trained() -> None:
    names = ("mindpet_delta_ptuning2_prefix", "mindpet_delta_ptuning2_embedding.embedding_table")
    parameters = [ParameterFacts(names[0], dtype="int64"), ParameterFacts(names[1], dtype="fp16")]
    report = decide_freezing(parameters, method=method_of("ptuning2"))
    assert report.trained == names[1:]
    assert report.decisions[0].reason == "int64 has no gradient"


def test_a_report_tells_what_changed() -> None:
    report = freeze(pet_type="lora")
    assert report.changed == report.frozen == NAMES[:3]
    assert str(report) == "2 parameters trained, 3 frozen"


def test_rules_are_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "freeze.yaml"
    path.write_text("freeze:\n  include: ['*']\n  exclude: ['*.dense.*.bias']\n")
    assert read_freeze_rules(path) == FreezeRules(("*",), ("*.dense.*.bias",))


@pytest.mark.parametrize(
    ("section", "found"),
    [("include: '*'", "include"), ("include: [3]", "include"), ("inclde: ['*']", "unknown key")],
)
def test_a_section_that_says_something_else_is_refused(tmp_path: Path, section: str, found: str) -> None:
    path = tmp_path / "freeze.yaml"
    path.write_text(f"freeze:\n  {section}\n")
    with pytest.raises(CorruptInputError, match=found):
        read_freeze_rules(path)


def test_a_yaml_without_the_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "freeze.yaml"
    path.write_text("model: {}\n")
    with pytest.raises(CorruptInputError, match="no section `freeze`"):
        read_freeze_rules(path)


def test_a_mapping_is_read_likewise() -> None:
    assert parse_freeze_rules({"exclude": ["*bias"]}) == FreezeRules((), ("*bias",))
