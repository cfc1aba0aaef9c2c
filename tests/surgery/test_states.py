"""Optimizer states and training scalars, told from weights."""

from __future__ import annotations

import pytest

from surgery.states import is_training_scalar, split_optimizer_state

WEIGHT = "model.layers.0.attention.wq.weight"


STATES = (
    *("adam_m", "adam_v", "moment1", "moment2", "moments", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    *("accu_grads", "lamb_m", "muon_m", "vhat", "pma_weight_ema"),
)


@pytest.mark.parametrize("state", STATES)
def test_an_unmistakable_prefix_makes_a_state(state: str) -> None:
    assert split_optimizer_state(f"{state}.{WEIGHT}") == (state, WEIGHT)


@pytest.mark.parametrize("state", ["exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq", "exp_avg_insta_row"])
def test_adafactors_states_are_glued_with_an_underscore(state: str) -> None:
    assert split_optimizer_state(f"{state}_{WEIGHT}") == (state, WEIGHT)


@pytest.mark.parametrize("name", [f"linear.{WEIGHT}", f"stat.{WEIGHT}", f"moment.{WEIGHT}", f"mu_{WEIGHT}"])
def test_an_ambiguous_prefix_makes_a_state_only_beside_its_parameter(name: str) -> None:
    assert split_optimizer_state(name, {name, WEIGHT}) is not None
    assert split_optimizer_state(name, {name}) is None


@pytest.mark.parametrize("name", ["adam_m", "adam_m.", WEIGHT, "model.adam_m.weight", "linear.weight"])
def test_a_weight_is_no_state(name: str) -> None:
    assert split_optimizer_state(name, {name}) is None


@pytest.mark.parametrize("name", ["global_step", "scale_sense", "learning_rate_group_3", "beta1_power", "epoch_num"])
def test_scalars_are_known(name: str) -> None:
    assert is_training_scalar(name)


@pytest.mark.parametrize("name", ["model.global_step", "learning_rate.weight", "learning_rate_group_x", "step", ""])
def test_other_names_are_no_scalars(name: str) -> None:
    assert not is_training_scalar(name)
