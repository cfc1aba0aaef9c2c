"""New names for all tensors, in their order, or the reason why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.renaming import rename_tensors
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.views import Constant
from surgery.errors import CorruptInputError, InputMissingError, MismatchError

HF = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"]
MINDFORMERS = [
    "model.tok_embeddings.embedding_weight",
    "model.layers.0.attention.wq.weight",
    "model.norm_out.weight",
    "lm_head.weight",
]


def tensors(names: list[str]) -> list[NamedTensor]:
    return [(name, Constant(np.float32([number]), BY_NAME["fp32"])) for number, name in enumerate(names)]


def table(folder: Path, names: object) -> str:
    (folder / "names.json").write_text(json.dumps(names))
    return str(folder / "names.json")


def test_names_are_kept_unless_others_are_asked_for() -> None:
    given = tensors(HF)
    assert rename_tensors(given, "keep") == (given, {})


@pytest.mark.parametrize(("names", "before", "behind"), [("hf", MINDFORMERS, HF), ("mindformers", HF, MINDFORMERS)])
def test_names_are_translated_and_the_order_and_the_tensors_stay(
    names: str, before: list[str], behind: list[str]
) -> None:
    given = tensors(before)
    renamed, changed = rename_tensors(given, names)
    assert [name for name, _ in renamed] == behind
    assert [tensor for _, tensor in renamed] == [tensor for _, tensor in given]
    assert changed == {old: new for old, new in zip(before, behind, strict=True) if old != new}


@pytest.mark.parametrize(("names", "given"), [("hf", HF), ("mindformers", MINDFORMERS)])
def test_names_that_are_right_already_stay(names: str, given: list[str]) -> None:
    before = tensors(given)
    assert rename_tensors(before, names) == (before, {})


def test_a_table_may_exchange_names(tmp_path: Path) -> None:
    renamed, changed = rename_tensors(tensors(["a", "b", "c"]), table(tmp_path, {"a": "b", "b": "a", "c": "c"}))
    assert [name for name, _ in renamed] == ["b", "a", "c"]
    assert changed == {"a": "b", "b": "a"}


def test_all_that_is_wrong_with_a_table_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(MismatchError) as caught:
        rename_tensors(tensors(["a"]), table(tmp_path, {"x": "1", "a": "2", "y": "3"}))
    assert [problem.where.rpartition(", ")[2] for problem in caught.value.problems] == ["x", "y"]


def test_two_tensors_never_share_a_name(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="b: the new name of several tensors"):
        rename_tensors(tensors(["a", "b"]), table(tmp_path, {"a": "b"}))
    with pytest.raises(MismatchError, match="several tensors"):
        rename_tensors(tensors([HF[1], MINDFORMERS[1]]), "hf")


@pytest.mark.parametrize("names", ["hf", "mindformers"])
def test_a_network_that_is_not_known_is_not_translated(names: str) -> None:
    with pytest.raises(MismatchError, match="a network whose names are not known"):
        rename_tensors(tensors(["conv1.weight", "fc.bias"]), names)


def test_fused_weights_are_not_translated_to_hugging_face() -> None:
    with pytest.raises(MismatchError, match=r"w_qkv.*fused in an order"):
        rename_tensors(tensors([*MINDFORMERS, "model.layers.0.attention.w_qkv.weight"]), "hf")


def test_a_table_that_is_not_there_or_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        rename_tensors(tensors(["a"]), str(tmp_path / "names.json"))
    with pytest.raises(CorruptInputError):
        rename_tensors(tensors(["a"]), table(tmp_path, ["a"]))


def test_a_large_table_is_looked_up_and_not_searched(tmp_path: Path) -> None:
    names = [f"layer.{number}.weight" for number in range(20_000)]
    renamed, changed = rename_tensors(tensors(names), table(tmp_path, {name: f"new.{name}" for name in names}))
    assert len(changed) == len(renamed) == 20_000
