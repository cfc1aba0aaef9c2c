"""What of a checkpoint is the delta: every family and method, globs, and what is left and dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from merge_cases import add_crc, contents, random, read, save
from rank_folders import assert_same_arrays, read_arrays
from split_cases import BASE, LORA, OTHERS, SCALARS, combined, names_in, refusal, states_of

from ckpt_tools import merge, open_checkpoint, split
from surgery.errors import OutputExistsError

DELTAS = {**LORA, **OTHERS}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("kind", DELTAS)
def test_the_delta_of_every_family_and_method_is_cut_out(tmp_path: Path, kind: str, suffix: str) -> None:
    delta = DELTAS[kind]
    report = split(combined(tmp_path, delta, f"tuned{suffix}"), alpha=8, output=tmp_path / "out")
    assert_same_arrays(read_arrays(tmp_path / "out" / f"adapter_model{suffix}"), delta)
    assert names_in(report) == list(delta)
    assert report.method == (kind if kind in OTHERS else "lora")
    assert report.left == tuple(BASE)
    assert {entry.name: entry.reason for entry in report.dropped} == {
        **dict.fromkeys(states_of(delta), "optimizer state"),
        **dict.fromkeys(SCALARS, "training scalar"),
    }


@pytest.mark.parametrize("kind", DELTAS)
def test_delta_and_remainder_are_the_source_key_by_key(tmp_path: Path, kind: str) -> None:
    source = combined(tmp_path, DELTAS[kind])
    before = source.read_bytes()
    report = split(source, alpha=8, output=tmp_path / "delta.ckpt", remainder=tmp_path / "rest.ckpt")
    whole, delta, rest = (read(path) for path in (source, tmp_path / "delta.ckpt", tmp_path / "rest.ckpt"))
    dropped = {entry.name for entry in report.dropped}
    assert set(delta) | set(rest) | dropped == set(whole)
    assert not (set(delta) & set(rest) | set(rest) & dropped)
    assert list(rest) == list(BASE)
    for name, array in (delta | rest).items():
        assert array.tobytes() == whole[name].tobytes()
    assert report.remainder == str(tmp_path / "rest.ckpt")
    assert report.bytes_written == sum((tmp_path / name).stat().st_size for name in ("delta.ckpt", "rest.ckpt"))
    assert source.read_bytes() == before


def test_the_merged_parts_are_what_the_combined_checkpoint_merges_to(tmp_path: Path) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    split(source, alpha=8, output=tmp_path / "delta", remainder=tmp_path / "rest.ckpt")
    merge(source, alpha=8, output=tmp_path / "one.ckpt")
    merge(tmp_path / "rest.ckpt", tmp_path / "delta", output=tmp_path / "other.ckpt")
    assert (tmp_path / "one.ckpt").read_bytes() == (tmp_path / "other.ckpt").read_bytes()


def test_a_remainder_may_have_another_format_and_shards(tmp_path: Path) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    split(source, alpha=8, output=tmp_path / "delta", remainder=tmp_path / "rest.safetensors")
    assert_same_arrays(read_arrays(tmp_path / "rest.safetensors"), BASE)
    split(source, alpha=8, output=tmp_path / "delta2", remainder=tmp_path / "rest")
    assert list(open_checkpoint(tmp_path / "rest").tensors) == list(BASE)


def test_a_method_is_chosen_among_several(tmp_path: Path) -> None:
    source = combined(tmp_path, LORA["mindpet"] | OTHERS["ptuning2"])
    report = split(source, alpha=8, output=tmp_path / "both")
    assert report.method == "mixed"
    report = split(source, pet_type="ptuning2", output=tmp_path / "one")
    assert names_in(report) == list(OTHERS["ptuning2"])
    assert set(report.left) == set(BASE) | set(LORA["mindpet"])


def test_bitfit_takes_the_biases(tmp_path: Path) -> None:
    biases = {
        f"model.layers.{layer}.attention.{cell}.bias": random(layer, 16) for layer in range(2) for cell in ("wq", "wk")
    }
    save(tmp_path / "tuned.ckpt", BASE | biases)
    report = split(tmp_path / "tuned.ckpt", pet_type="bitfit", output=tmp_path / "out")
    assert names_in(report) == list(biases)
    assert report.method == "bitfit"
    # A merge puts them into the place of the base's.
    old = {name: np.zeros_like(array) for name, array in biases.items()}
    save(tmp_path / "base.ckpt", BASE | old)
    merge(tmp_path / "base.ckpt", tmp_path / "out", output=tmp_path / "merged.ckpt")
    assert_same_arrays(read_arrays(tmp_path / "merged.ckpt"), BASE | biases)


def test_globs_add_weights_that_were_trained_whole_and_leave_parameters_out(tmp_path: Path) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    report = split(source, alpha=8, include=["lm_head.*"], exclude=["*.wv.*"], output=tmp_path / "out")
    kept = [name for name in LORA["mindpet"] if ".wv." not in name]
    assert set(names_in(report)) == {*kept, "lm_head.weight"}
    assert report.config is not None
    assert report.config["modules_to_save"] == ["lm_head"]
    assert set(report.left) == {*BASE, *LORA["mindpet"]} - {*kept, "lm_head.weight"}


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_adapter_is_cast_and_the_remainder_is_not(tmp_path: Path, dtype: str) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    report = split(source, alpha=8, dtype=dtype, output=tmp_path / "out", remainder=tmp_path / "rest.ckpt")
    assert {parameter.dtype for parameter in report.parameters} == {dtype}
    assert {tensor.dtype.name for tensor in open_checkpoint(tmp_path / "out").tensors.values()} == {dtype}
    assert {tensor.dtype.name for tensor in open_checkpoint(tmp_path / "rest.ckpt").tensors.values()} == {"bf16"}


def test_headers_and_the_deltas_bytes_are_all_that_is_read(tmp_path: Path) -> None:
    base = {f"model.layers.{n}.attention.wq.weight": random(n, 1024, 1024) for n in range(8)}
    delta = {
        f"model.layers.0.attention.wq.mindpet_delta_lora_{half}": random(9, *shape)
        for half, shape in (("a", (4, 1024)), ("b", (1024, 4)))
    }
    save(tmp_path / "tuned.ckpt", base | delta)
    add_crc(tmp_path / "tuned.ckpt")

    def counted() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    split(tmp_path / "tuned.ckpt", alpha=8, output=tmp_path / "out", dry_run=True)
    start = counted()
    report = split(tmp_path / "tuned.ckpt", alpha=8, output=tmp_path / "out")
    assert report.bytes_read == sum(array.nbytes for array in delta.values())
    assert counted() - start < report.bytes_read + 1_000_000


def test_a_dry_run_foretells_the_run_and_writes_nothing(tmp_path: Path) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    dry = split(source, alpha=8, output=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    report = split(source, alpha=8, output=tmp_path / "out")
    assert (dry.files, dry.bytes_written, dry.parameters) == (report.files, report.bytes_written, report.parameters)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"pet_type": "loro"}, 2, "Is it lora"),
        ({"pet_type": "ptuning2"}, 5, "LoRA A, LoRA B, and nothing of ptuning2"),
        ({"include": ["lm_haed*"]}, 5, "--include lm_haed*: expected one at least"),
        ({"exclude": ["nothing*"]}, 5, "--exclude nothing*"),
        ({"format": "gguf"}, 2, "--format"),
        ({"dtype": "int8"}, 2, "--dtype"),
        ({"alpha": 8, "config": "x"}, 2, "--alpha and --config"),
        ({"exclude": ["*_lora_a"]}, 5, "no A for layer"),
        ({"rank": 4}, 2, "--rank: expected --base BASE"),
        ({"format": "peft", "output": "x.safetensors"}, 2, "--format peft: expected a folder"),
        ({"format": "safetensors", "output": "x.ckpt"}, 2, "expected ckpt, as in x.ckpt"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(tmp_path: Path, options: dict[str, object], code: int, says: str) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    if "output" in options:
        options["output"] = tmp_path / str(options["output"])
    assert says in refusal(tmp_path, code, source, **{"alpha": 8, **options})


def test_a_checkpoint_without_a_delta_is_refused_with_what_may_be_meant(tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", BASE)
    text = refusal(tmp_path, 5, tmp_path / "base.ckpt")
    assert "--base BASE --rank N" in text
    assert "--pet-type bitfit" in text


def test_outputs_lie_apart_from_each_other_and_from_the_source(tmp_path: Path) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    assert "a place of its own" in refusal(tmp_path, 2, source, alpha=8, remainder=tmp_path / "out" / "rest.ckpt")
    assert "it is, or holds, the input" in refusal(tmp_path, 2, source, alpha=8, output=source, force=True)
    save(tmp_path / "lora.ckpt", LORA["mindpet"])
    assert "it is an adapter alone" in refusal(
        tmp_path, 5, tmp_path / "lora.ckpt", alpha=8, remainder=tmp_path / "x.ckpt"
    )


def test_a_remainder_that_a_killed_run_did_not_come_to_is_made_by_the_next(tmp_path: Path) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    split(source, alpha=8, output=tmp_path / "delta.ckpt", remainder=tmp_path / "rest.ckpt")
    before = contents(tmp_path)
    for name in ("rest.ckpt", "rest.pet-manifest.json"):
        (tmp_path / name).unlink()
    split(source, alpha=8, output=tmp_path / "delta.ckpt", remainder=tmp_path / "rest.ckpt")
    assert contents(tmp_path) == before


def test_another_adapter_in_the_place_of_the_delta_is_not_taken_for_that_of_a_killed_run(tmp_path: Path) -> None:
    """Of the same names, types and shapes, and cut from the same base: it is the values that tell."""
    source = combined(tmp_path, LORA["mindpet"])
    other = tmp_path / "other.ckpt"
    save(other, {**read(source), **{name: 2 * array for name, array in LORA["mindpet"].items()}})
    split(other, alpha=8, output=tmp_path / "delta.ckpt")
    with pytest.raises(OutputExistsError):
        split(source, alpha=8, output=tmp_path / "delta.ckpt", remainder=tmp_path / "rest.ckpt")
    assert not (tmp_path / "rest.ckpt").exists()
