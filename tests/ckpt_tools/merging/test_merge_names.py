"""The names of an output: kept, translated, or from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merge_cases import (
    BASE,
    HF_TERMS,
    PAIRS,
    TERMS,
    Merge,
    assert_all_merged,
    hf_folder,
    hugging_face,
    mindpet,
    random,
    save,
    write,
)

from ckpt_tools import merge
from surgery.errors import CorruptInputError, MismatchError


def test_names_are_translated_to_hugging_face_and_back(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    report = merged("base.ckpt", output="hf.safetensors", names="hf")
    assert_all_merged(Path("hf.safetensors"), hugging_face(BASE), HF_TERMS)
    assert {weight.name for weight in report.weights} == set(HF_TERMS)
    assert {weight.base_name for weight in report.weights} == set(TERMS)
    assert all(weight.relative_delta for weight in report.weights)
    save(tmp_path / "hf.safetensors", hugging_face(BASE))
    merged("hf.safetensors", output="mf.ckpt", names="mindformers")
    assert_all_merged(Path("mf.ckpt"), BASE, TERMS)


def test_names_that_are_right_already_are_kept(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    merged("base.ckpt", output="same.ckpt", names="mindformers")
    merged("base.ckpt", output="kept.ckpt")
    assert Path("same.ckpt").read_bytes() == Path("kept.ckpt").read_bytes()


def test_names_come_from_a_file_and_shards_keep_what_they_held(tmp_path: Path, merged: Merge) -> None:
    base = hf_folder(tmp_path / "base")
    table = {"lm_head.weight": "head.weight", "model.layers.0.self_attn.q_proj.weight": "first.q"}
    (tmp_path / "names.json").write_text(json.dumps(table))
    merged("base", output="out", names=str(tmp_path / "names.json"))
    renamed = {table.get(name, name): array for name, array in hugging_face(BASE).items()}
    assert_all_merged(Path("out"), renamed, {table.get(name, name): term for name, term in HF_TERMS.items()})
    before, after = (json.loads((p / "model.safetensors.index.json").read_text()) for p in (base, Path("out")))
    assert after["weight_map"] == {table.get(name, name): file for name, file in before["weight_map"].items()}


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"missing": "x"}, MismatchError, "a name that the checkpoint does not have"),
        ({"lm_head.weight": "model.norm_out.weight"}, MismatchError, "the new name of several tensors"),
        ({"lm_head.weight": 3}, CorruptInputError, "a name of at least one character"),
        (["lm_head.weight"], CorruptInputError, "object"),
    ],
)
def test_a_table_of_names_that_does_not_fit_is_refused(
    tmp_path: Path, merged: Merge, table: object, error: type[Exception], message: str
) -> None:
    write(tmp_path / "base.ckpt", BASE)
    (tmp_path / "names.json").write_text(json.dumps(table))
    with pytest.raises(error, match=message):
        merged("base.ckpt", names=str(tmp_path / "names.json"))


@pytest.mark.parametrize("names", ["hf", "mindformers"])
def test_names_of_an_unknown_network_are_not_translated(tmp_path: Path, names: str) -> None:
    write(tmp_path / "base.ckpt", {"dense.weight": random(0, 8, 8)})
    write(tmp_path / "lora.ckpt", {"dense.lora_a": random(1, 2, 8), "dense.lora_b": random(2, 8, 2)})
    with pytest.raises(MismatchError, match="a network whose names are not known"):
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, names=names, output=tmp_path / "out.ckpt")


def test_fused_weights_have_no_name_in_hugging_face(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", {**BASE, "model.layers.0.attention.w_qkv.weight": random(0, 48, 16)})
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    with pytest.raises(MismatchError, match="fused"):
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, names="hf", output=tmp_path / "out.ckpt")
