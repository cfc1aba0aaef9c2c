"""Every key of every input is used, carried over, or dropped for a reason that the report gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from merge_cases import (
    RANK,
    TARGETS,
    Arrays,
    assert_all_merged,
    factors,
    hugging_face,
    llama,
    mindpet,
    peft,
    random,
    read,
    updates,
    write,
    write_peft,
)

from ckpt_tools import MergeReport, merge
from surgery.errors import CorruptInputError, InputMissingError, MismatchError, UsageError


def states_of(names: Arrays) -> Arrays:
    """What MindFormers' training saves beside the parameters."""
    states = {
        f"{state}.{name}": np.zeros_like(array) for name, array in names.items() for state in ("adam_m", "adam_v")
    }
    scalars = {"global_step": np.array(7, np.int32), "epoch_num": np.array(1), "loss_scale": np.array(1.0, np.float32)}
    return {**states, **scalars, "learning_rate": np.array(1e-4, np.float32), "step_num": np.array(7)}


def test_a_combined_checkpoint_loses_its_adapter_and_states_and_the_report_says_why(tmp_path: Path) -> None:
    base, pairs = llama(), factors()
    states = states_of(mindpet(pairs))
    write(tmp_path / "trained.ckpt", {**base, **mindpet(pairs), **states})
    report = merge(tmp_path / "trained.ckpt", output=tmp_path / "out.ckpt", alpha=8)
    assert_all_merged(tmp_path / "out.ckpt", base, updates(pairs, 2.0))
    reasons = {entry.name: entry.reason for entry in report.dropped}
    assert set(reasons) == set(states)
    assert {reasons[name] for name in states if name.startswith("adam")} == {"optimizer state"}
    assert {reasons[name] for name in states if not name.startswith("adam")} == {"training scalar"}
    assert len(report.dropped) == len(states)


def test_weights_that_are_named_like_states_are_kept(tmp_path: Path) -> None:
    alike = {
        name: random(0, 3)
        for name in (
            "momentum.weight",
            "router.learning_rate",
            "stat.bias",
            "linear.bias",
            "moment.weight",
            "best.bias",
        )
    }
    base, pairs = {**llama(), **alike}, factors()
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8)
    assert_all_merged(tmp_path / "out.ckpt", base, updates(pairs, 2.0))
    assert report.dropped == ()


def test_states_beside_a_base_and_beside_an_adapter_are_dropped_and_reported(tmp_path: Path) -> None:
    base, pairs = llama(), factors()
    write(tmp_path / "base.ckpt", {**base, **states_of(base)})
    write(tmp_path / "lora.ckpt", {**mindpet(pairs), **states_of(mindpet(pairs))})
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8)
    assert_all_merged(tmp_path / "out.ckpt", base, updates(pairs, 2.0))
    dropped = {(entry.name, Path(entry.source).name) for entry in report.dropped}
    assert dropped == {(name, "base.ckpt") for name in states_of(base)} | {
        (name, "lora.ckpt") for name in states_of(mindpet(pairs))
    }


def test_the_report_has_each_key_of_the_inputs_in_one_place(tmp_path: Path) -> None:
    base, pairs = llama(), factors()
    write(tmp_path / "trained.ckpt", {**base, **mindpet(pairs), **states_of(mindpet(pairs))})
    report = merge(tmp_path / "trained.ckpt", output=tmp_path / "out.ckpt", alpha=8, dtype="fp32")
    used = [key for weight in report.weights for use in weight.adapters for key in use.keys]
    names = [weight.base_name for weight in report.weights]
    everything = used + names + [*report.copied, *report.cast] + [entry.name for entry in report.dropped]
    assert sorted(everything) == sorted(read(tmp_path / "trained.ckpt"))
    assert set(report.cast) == set(base) - set(names)


def refused(tmp_path: Path, base: Arrays, lora: Arrays, **options: object) -> MismatchError:
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", lora)
    with pytest.raises(MismatchError) as caught:
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8, **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.ckpt", "lora.ckpt"]
    return caught.value


def test_each_key_without_a_home_is_a_problem_of_its_own_with_near_names(tmp_path: Path) -> None:
    pairs = factors([*TARGETS, "model.layers.0.attention.wqq", "model.layers.9.attention.wk"])
    problems = refused(tmp_path, llama(), mindpet(pairs)).problems
    assert [problem.found for problem in problems] == [
        "no model.layers.0.attention.wqq.weight in the base",
        "no model.layers.9.attention.wk.weight in the base",
    ]
    assert "model.layers.0.attention.wq.weight" in problems[0].remedy
    assert problems[0].where.endswith("lora.ckpt, model.layers.0.attention.wqq.mindpet_delta_lora_a")


def test_keys_may_stay_unused_where_the_user_says_so(tmp_path: Path) -> None:
    base, pairs = llama(), factors([*TARGETS, "model.layers.9.attention.wk"])
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    report = merge(
        tmp_path / "base.ckpt",
        tmp_path / "lora.ckpt",
        output=tmp_path / "out.ckpt",
        alpha=8,
        allow_unused=["*layers.9*"],
    )
    assert_all_merged(tmp_path / "out.ckpt", base, {k: v for k, v in updates(pairs, 2.0).items() if k in base})
    assert {entry.name for entry in report.dropped} == {name for name in mindpet(pairs) if "layers.9" in name}
    assert all("--allow-unused" in entry.reason for entry in report.dropped)


def test_an_adapter_of_which_all_is_allowed_to_stay_unused_changes_nothing(tmp_path: Path) -> None:
    base = llama()
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "prefix.ckpt", {"mindpet_delta_ptuning2_embedding.embedding_table": random(0, 4, 4)})
    report = merge(
        tmp_path / "base.ckpt", tmp_path / "prefix.ckpt", output=tmp_path / "out.ckpt", allow_unused=["*ptuning2*"]
    )
    assert (tmp_path / "out.ckpt").read_bytes() == (tmp_path / "base.ckpt").read_bytes()
    assert [entry.name for entry in report.dropped] == ["mindpet_delta_ptuning2_embedding.embedding_table"]
    assert any("nothing" in warning for warning in report.warnings)


def test_half_a_pair_that_may_stay_unused_is_dropped_and_told(tmp_path: Path) -> None:
    pairs = {**mindpet(factors()), "model.layers.9.attention.wk.mindpet_delta_lora_a": random(0, RANK, 16)}
    write(tmp_path / "base.ckpt", llama())
    write(tmp_path / "lora.ckpt", pairs)
    report = merge(
        tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8, allow_unused=["*.wk.*"]
    )
    assert [entry.name for entry in report.dropped] == ["model.layers.9.attention.wk.mindpet_delta_lora_a"]


def test_all_problems_of_all_adapters_are_reported_at_once(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", llama())
    pairs = mindpet(factors(TARGETS[:1]))
    pairs["model.layers.1.attention.wv.mindpet_delta_lora_a"] = random(0, RANK, 16)
    write(tmp_path / "one.ckpt", pairs)
    write(tmp_path / "two.ckpt", mindpet(factors(["model.layers.7.attention.wq"])))
    with pytest.raises(MismatchError) as caught:
        merge(
            tmp_path / "base.ckpt", tmp_path / "one.ckpt", tmp_path / "two.ckpt", output=tmp_path / "out.ckpt", alpha=8
        )
    text = [str(problem) for problem in caught.value.problems]
    assert len(text) == 2
    assert "no B for layer model.layers.1.attention.wv" in text[0]
    assert "layers.7" in text[1]
    assert [problem.where.partition(", ")[0] for problem in caught.value.problems] == [
        str(tmp_path / name) for name in ("one.ckpt", "two.ckpt")
    ]


def test_shapes_that_do_not_fit_name_the_adapter_and_the_layer(tmp_path: Path) -> None:
    lora = {"lm_head.lora_a": random(0, RANK, 7), "lm_head.lora_b": random(1, 9, RANK)}
    (problem,) = refused(tmp_path, llama(), lora).problems
    assert problem.where == f"{tmp_path / 'lora.ckpt'}, lm_head"


def test_a_combined_base_with_an_adapter_beside_it_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, {**llama(), **mindpet(factors())}, mindpet(factors(seed=5)))
    assert "Merge the combined checkpoint by itself first" in str(error)


def test_a_combined_file_in_the_place_of_an_adapter_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, llama(), {**llama(), **mindpet(factors())})
    assert "this file holds base and adapter" in str(error)


def scale(report: MergeReport) -> set[tuple[float | None, float | None]]:
    return {(use.alpha, use.scaling) for weight in report.weights for use in weight.adapters}


@pytest.mark.parametrize("option", [{"alpha": 8}, {"scaling": 2}])
def test_no_file_is_named_as_the_origin_of_a_scale_that_was_given(option: dict[str, float], tmp_path: Path) -> None:
    base = write(tmp_path / "base.safetensors", hugging_face(llama()))
    write_peft(tmp_path / "lora", peft(factors()))
    report = merge(base, tmp_path / "lora", output=tmp_path / "out.safetensors", **option)  # type: ignore[arg-type]
    assert report.adapters[0].config == ""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.safetensors", hugging_face(llama()))


PEFT_CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
MANIFEST = {
    "format": "mindformers_pynative_lora_adapter_v1",
    "lora_config": {"lora_rank": RANK, "lora_alpha": 12, "target_modules": ".*"},
}
RUN_YAMLS = {
    "new": """
model:
  model_config:
    pet_config: {pet_type: lora, lora_rank: 4, lora_alpha: 20, target_modules: '.*wq|.*wv'}
""",
    "old": """
model:
  arch:
    pet:
      pet_type: lora
      pet_config: {lora_rank: 4, lora_alpha: 20, reg_rules: '.*wq|.*wv'}
""",
}


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize(
    ("name", "config", "alpha"),
    [("adapter_config.json", PEFT_CONFIG, 6), ("mindformers_adapter_config.json", MANIFEST, 12)],
)
def test_alpha_is_found_beside_the_adapter_and_up_to_three_folders_above(
    tmp_path: Path, base: Path, name: str, config: dict[str, object], alpha: float, depth: int
) -> None:
    folder = tmp_path / "run" / Path(*"abc"[:depth])
    folder.mkdir(parents=True)
    (tmp_path / "run" / name).write_text(json.dumps(config))
    write(folder / "lora.safetensors", peft(factors()))
    report = merge(base, folder / "lora.safetensors", output=tmp_path / "out.safetensors")
    assert scale(report) == {(alpha, alpha / RANK)}
    assert report.adapters[0].config == str(tmp_path / "run" / name)


def test_a_configuration_four_folders_above_is_not_looked_for_and_the_error_names_every_place(
    tmp_path: Path, base: Path
) -> None:
    folder = tmp_path / "a" / "b" / "c" / "d"
    folder.mkdir(parents=True)
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT_CONFIG))
    write(folder / "lora.safetensors", peft(factors()))
    with pytest.raises(MismatchError) as caught:
        merge(base, folder / "lora.safetensors", output=tmp_path / "out.safetensors")
    (problem,) = caught.value.problems
    for place in (folder, *list(folder.parents)[:3]):
        assert str(place / "adapter_config.json") in problem.found
        assert str(place / "mindformers_adapter_config.json") in problem.found
    assert str(tmp_path / "adapter_config.json") not in problem.found
    for option in ("--alpha", "--scaling", "--config"):
        assert option in problem.found
    assert "Give --alpha" in problem.remedy


@pytest.mark.parametrize("generation", RUN_YAMLS)
def test_alpha_is_read_from_the_yaml_of_a_run(tmp_path: Path, base: Path, generation: str) -> None:
    (tmp_path / "run.yaml").write_text(RUN_YAMLS[generation])
    write(tmp_path / "lora.safetensors", mindpet(factors()))
    report = merge(
        base, tmp_path / "lora.safetensors", output=tmp_path / "out.safetensors", config=tmp_path / "run.yaml"
    )
    assert scale(report) == {(20, 5.0)}
    assert report.adapters[0].config == str(tmp_path / "run.yaml")


def test_the_command_line_wins_over_the_configuration_named_and_that_over_the_one_found(
    tmp_path: Path, base: Path
) -> None:
    lora = write(tmp_path / "lora.safetensors", mindpet(factors()))
    (tmp_path / "mindformers_adapter_config.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "run.yaml").write_text(RUN_YAMLS["new"])

    def merged(**options: object) -> set[tuple[float | None, float | None]]:
        return scale(merge(base, lora, output=tmp_path / "out.safetensors", force=True, **options))  # type: ignore[arg-type]

    assert merged() == {(12, 3.0)}
    assert merged(config=tmp_path / "run.yaml") == {(20, 5.0)}
    assert merged(config=tmp_path / "run.yaml", alpha=16) == {(16, 4.0)}
    assert merged(config=tmp_path / "run.yaml", scaling=0.25) == {(None, 0.25)}


def test_an_alpha_from_the_command_line_still_obeys_the_configuration_on_rslora(tmp_path: Path, base: Path) -> None:
    lora = write_peft(tmp_path / "lora", peft(factors()), lora_alpha=6, use_rslora=True)
    assert scale(merge(base, lora, output=tmp_path / "out.safetensors", alpha=16)) == {(16, 8.0)}


def test_each_adapter_has_the_scale_of_its_own_configuration(tmp_path: Path, base: Path) -> None:
    one = write_peft(tmp_path / "one", peft(factors()), lora_alpha=6)
    two = write_peft(tmp_path / "two", peft(factors(seed=3, rank=2)), lora_alpha=5, r=2)
    assert scale(merge(base, one, two, output=tmp_path / "out.safetensors")) == {(6, 1.5), (5, 2.5)}


def test_a_rank_that_contradicts_the_shapes_is_refused(tmp_path: Path, base: Path) -> None:
    lora = write_peft(tmp_path / "lora", peft(factors()), r=8)
    with pytest.raises(MismatchError, match="rank 4, as the shapes of A and B have it"):
        merge(base, lora, output=tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 8, "scaling": 1}, UsageError, "one of the two"),
        ({"alpha": [8, 8, 8]}, UsageError, "3 values"),
        ({"alpha": 0}, MismatchError, "a finite number other than 0"),
        ({"alpha": float("nan")}, MismatchError, "a finite number other than 0"),
        ({"scaling": float("inf")}, MismatchError, "a finite number other than 0"),
        ({"dtype": "int8"}, UsageError, "bf16, fp16, fp32"),
        ({"config": "missing.yaml"}, InputMissingError, "missing.yaml"),
        ({"alpha": 8, "names": "missing.json"}, InputMissingError, "missing.json"),
        ({"alpha": 8, "max_memory": "much"}, UsageError, "much"),
        ({"alpha": 8, "max_shard_size": "5XB"}, UsageError, "5XB"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    tmp_path: Path, base: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    lora = write(tmp_path / "lora.safetensors", mindpet(factors()))
    with pytest.raises(error, match=message):
        merge(base, lora, output=tmp_path / "out.safetensors", **options)  # type: ignore[arg-type]


def test_a_configuration_that_is_no_configuration_is_corrupt(tmp_path: Path, base: Path) -> None:
    lora = write(tmp_path / "lora.safetensors", mindpet(factors()))
    (tmp_path / "run.yaml").write_text("model: [")
    with pytest.raises(CorruptInputError, match=r"run\.yaml"):
        merge(base, lora, output=tmp_path / "out.safetensors", config=tmp_path / "run.yaml")
