"""What is said of a checkpoint, and that headers are all that is read for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ckpt_bytes import field, varint
from hostile import file_bytes
from merge_cases import factors, llama, mindpet, save
from rank_folders import strategy_of, write_ranks
from transform_cases import SOURCE, TENSORS, write_case, write_strategy

from ckpt_tools import inspect_checkpoint
from ckpt_tools.layout.model import Layout
from surgery.errors import CorruptInputError, EncryptedInputError, PetSurgeryError, UnknownFormatError, UsageError

SLACK = 400_000


def counted() -> int:
    """Bytes that this process has read by any call."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_groups_types_and_scalars_are_counted_apart(tmp_path: Path) -> None:
    lora = mindpet(factors())
    states = {f"adam_m.{name}": np.zeros_like(array) for name, array in lora.items()}
    save(tmp_path / "c.ckpt", {**llama(), **lora, **states, "global_step": np.array([7], np.int32)})
    report = inspect_checkpoint(tmp_path / "c.ckpt")
    assert [(total.group, total.dtype, total.tensors) for total in report.totals] == [
        ("weight", "bf16", len(llama())),
        ("adapter", "fp32", len(lora)),
        ("optimizer", "fp32", len(lora)),
        ("scalar", "int32", 1),
    ]
    assert sum(total.nbytes for total in report.totals) == sum(tensor.nbytes for tensor in report.tensors)
    assert report.scalars == {"global_step": 7.0}
    (family,) = report.families
    assert (family.method, family.family, family.ranks, family.alphas) == ("LoRA", "mindpet", (4,), ())
    assert all(pair.alpha is None and pair.scaling is None for pair in report.pairs)
    assert any("alpha is unknown" in warning for warning in report.warnings)


def test_alpha_is_that_of_the_configuration_beside_the_adapter(tmp_path: Path) -> None:
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    (tmp_path / "lora.adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    report = inspect_checkpoint(tmp_path / "lora.ckpt")
    assert {(pair.alpha, pair.scaling) for pair in report.pairs} == {(8.0, 2.0)}
    assert report.families[0].config == str(tmp_path / "lora.adapter_config.json")


@pytest.mark.parametrize("content", ["{", '{"peft_type": "LORA", "r": 5, "lora_alpha": 8}'])
def test_a_configuration_that_does_not_fit_leaves_alpha_unknown_and_is_told(tmp_path: Path, content: str) -> None:
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    (tmp_path / "lora.adapter_config.json").write_text(content)
    report = inspect_checkpoint(tmp_path / "lora.ckpt")
    assert all(pair.alpha is None for pair in report.pairs)
    assert any("alpha is unknown" in warning for warning in report.warnings)


def test_filters_choose_by_name(tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", llama())
    report = inspect_checkpoint(tmp_path / "base.ckpt", filters=["*.wq.*", "lm_head*"])
    assert {tensor.name for tensor in report.tensors} == {
        "model.layers.0.attention.wq.weight",
        "model.layers.1.attention.wq.weight",
        "lm_head.weight",
    }
    assert any(
        "no name matches" in warning for warning in inspect_checkpoint(tmp_path / "base.ckpt", filters=["x"]).warnings
    )


def test_a_safetensors_file_of_many_gigabytes_is_inspected_by_its_header(tmp_path: Path) -> None:
    size = 2**36
    header = {
        f"model.layers.{n}.w": {"dtype": "F32", "shape": [2**16, 2**15], "data_offsets": [n * 2**33, (n + 1) * 2**33]}
        for n in range(8)
    }
    path = tmp_path / "big.safetensors"
    data = file_bytes(json.dumps(header).encode())
    path.write_bytes(data)
    os.truncate(path, len(data) + size)
    inspect_checkpoint(path)  # what is imported late is imported now
    start = counted()
    report = inspect_checkpoint(path)
    assert counted() - start < SLACK
    assert sum(tensor.nbytes for tensor in report.tensors) == size


def test_a_ckpt_of_gigabytes_is_inspected_by_its_headers(tmp_path: Path) -> None:
    size = 2**31 - 2**20
    path = tmp_path / "big.ckpt"
    with path.open("wb") as file:
        for number in range(4):
            inner = b"\x08" + varint(size // 4) + field(2, b"Float32") + b"\x1a" + varint(size)
            body = field(1, f"w{number}".encode()) + b"\x12" + varint(len(inner) + size) + inner
            file.write(b"\x0a" + varint(len(body) + size) + body)
            file.truncate(file.tell() + size)
            file.seek(0, os.SEEK_END)
    inspect_checkpoint(path)
    start = counted()
    report = inspect_checkpoint(path)
    assert counted() - start < SLACK
    assert sum(tensor.nbytes for tensor in report.tensors) == 4 * size


def test_rank_folders_without_a_strategy_show_slices_and_with_it_whole_tensors(tmp_path: Path) -> None:
    write_case(tmp_path)
    sliced = inspect_checkpoint(tmp_path / "in")
    assert (sliced.kind, sliced.sliced, sliced.ranks, sliced.step) == ("ranks", True, 4, "3_2")
    assert {tensor.name: tensor.shape for tensor in sliced.tensors}["embedding.weight"] == (4, 4)
    whole = inspect_checkpoint(tmp_path / "in", src_strategy=tmp_path / "src.ckpt")
    assert not whole.sliced
    assert {tensor.name: tensor.shape for tensor in whole.tensors} == {n: a.shape for n, a in TENSORS.items()}
    assert {tensor.name: tensor.parts for tensor in whole.tensors}["embedding.weight"] == (2, 1)
    assert [group.ranks for group in whole.rank_groups] == [(0, 1, 2, 3)]


def test_ranks_of_two_stages_are_told_apart(tmp_path: Path) -> None:
    stages = strategy_of({"a.weight": Layout((2,), ((0,), ()))}, {"b.weight": Layout((2,), ((0,), ()))})
    arrays = {name: np.zeros((4, 4), "f4") for name in ("a.weight", "b.weight")}
    write_ranks(tmp_path / "in", arrays, stages)
    report = inspect_checkpoint(tmp_path / "in")
    assert [(group.ranks, group.own) for group in report.rank_groups] == [
        ((0, 1), ("a.weight",)),
        ((2, 3), ("b.weight",)),
    ]


def test_another_shape_on_one_rank_is_told(tmp_path: Path) -> None:
    def change(rank: int, held: dict[str, np.ndarray]) -> None:
        if rank == 3:
            held["norm.weight"] = held["norm.weight"][:5]

    write_case(tmp_path, change=change)
    (difference,) = inspect_checkpoint(tmp_path / "in").rank_differences
    assert (difference.name, difference.shapes) == ("norm.weight", ((6,), (5,)))


def test_the_latest_step_that_all_ranks_have_is_taken(tmp_path: Path) -> None:
    write_case(tmp_path)
    last = tmp_path / "in" / "rank_0"
    (last / "llama_rank_0-3_4.ckpt").write_bytes((last / "llama_rank_0-3_2.ckpt").read_bytes())
    report = inspect_checkpoint(tmp_path / "in")
    assert (report.step, report.steps) == ("3_2", ("3_2",))
    assert any("latest steps of the ranks differ" in warning for warning in report.warnings)


def test_a_strategy_and_a_folder_of_stages_are_inspected(tmp_path: Path) -> None:
    write_strategy(tmp_path / "one.ckpt", SOURCE)
    report = inspect_checkpoint(tmp_path / "one.ckpt")
    assert (report.kind, report.stages, report.stage_devices, report.ranks) == ("strategy", 1, 4, 4)
    layouts = {layout.name: (layout.parts, layout.replicas) for layout in report.layouts}
    assert layouts == {"embedding.weight": ((2, 1), 2), "layer.weight": ((1, 2), 2), "norm.weight": ((1,), 4)}
    stages = strategy_of({"a": Layout((2,), ((0,),))}, {"b": Layout((2,), ((),))})
    write_strategy(tmp_path / "stages", stages)
    assert inspect_checkpoint(tmp_path / "stages").stages == 2


def test_weights_given_as_a_strategy_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path)
    save(tmp_path / "weights.ckpt", TENSORS)
    with pytest.raises(UnknownFormatError, match="the weights, not their strategy"):
        inspect_checkpoint(tmp_path / "in", src_strategy=tmp_path / "weights.ckpt")


@pytest.mark.parametrize("what", ["spectra", "other"])
def test_slices_without_a_strategy_are_neither_compared_nor_decomposed(tmp_path: Path, what: str) -> None:
    write_case(tmp_path)
    other = tmp_path / "in" if what == "other" else None
    with pytest.raises(UsageError, match="--src-strategy"):
        inspect_checkpoint(tmp_path / "in", other, spectra=what == "spectra")


@pytest.mark.parametrize("what", ["spectra", "other", "src_strategy"])
def test_a_strategy_has_no_tensors(tmp_path: Path, what: str) -> None:
    path = write_strategy(tmp_path / "one.ckpt", SOURCE)
    with pytest.raises(UsageError):
        inspect_checkpoint(path, **{what: True if what == "spectra" else path})


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", CorruptInputError),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), UnknownFormatError),
        ((0x7F3A5ED8).to_bytes(4, "little") + bytes(100), EncryptedInputError),
        (b"{}", UnknownFormatError),
        (b"\x12\x04\x0a", CorruptInputError),
    ],
    ids=["empty", "picture", "encrypted", "json", "truncated strategy"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, error: type[PetSurgeryError]) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(error):
        inspect_checkpoint(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    save(path, llama())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CorruptInputError):
        inspect_checkpoint(path)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PetSurgeryError, match="empty folder"):
        inspect_checkpoint(tmp_path)
