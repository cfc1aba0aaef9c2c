"""A merge is proven, and every kind of fault is found."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from merge_cases import (
    BASE,
    HIDDEN,
    PAIRS,
    RANK,
    hf_folder,
    mindpet,
    peft,
    random,
    read,
    save,
    write,
    write_peft,
)

from ckpt_tools import merge, verify
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.views import Constant
from ckpt_tools.verifying.matching import Expected, match
from surgery.errors import MismatchError, UsageError, VerificationError

WQ = "model.layers.0.attention.wq.weight"
NORM = "model.layers.0.attention_norm.weight"
EMBEDDING = "model.tok_embeddings.embedding_weight"


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with base.ckpt, lora.ckpt and their merge, merged.ckpt, as working folder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "base.ckpt", BASE)
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    merge("base.ckpt", "lora.ckpt", output="merged.ckpt", alpha=8)
    return tmp_path


def refused(**options: object) -> str:
    with pytest.raises(VerificationError) as caught:
        verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", **{"alpha": 8, **options})
    assert caught.value.exit_code == 6
    return str(caught.value)


def change(name: str, index: tuple[int, ...], bit: int) -> None:
    arrays = read(Path("merged.ckpt"))
    bits = arrays[name].view(f"u{arrays[name].dtype.itemsize}")
    bits[index] ^= bits.dtype.type(1 << bit)
    save(Path("merged.ckpt"), arrays)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.usefixtures("case")
def test_a_merge_is_verified_and_every_tensor_accounted_for(strict: bool) -> None:
    report = verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", alpha=8, strict=strict)
    assert report.passed
    assert len(report.weights) == 4
    assert sorted([*report.equal, *(weight.name for weight in report.weights)]) == sorted(BASE)
    assert report.largest_error_ulp is not None
    assert report.largest_error_ulp <= 0.5001
    assert all(weight.fitted == pytest.approx(1, abs=0.05) for weight in report.weights)
    assert report.sampled_share == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.usefixtures("case")
def test_a_wrong_scale_is_found_and_named(dtype: str) -> None:
    merge("base.ckpt", "lora.ckpt", output="merged.ckpt", scaling=1, dtype=dtype, force=True)
    message = refused()
    assert "merged with another scale, 1" in message
    assert "expected scaling 2" in message


@pytest.mark.usefixtures("case")
def test_a_layer_that_was_left_out_is_found() -> None:
    arrays = read(Path("merged.ckpt"))
    arrays[WQ] = BASE[WQ]
    save(Path("merged.ckpt"), arrays)
    assert f"{WQ}: expected base and adapter, found the base's weight, not merged" in refused()


@pytest.mark.usefixtures("case")
def test_an_unmerged_copy_is_found() -> None:
    write(Path("merged.ckpt"), BASE)
    assert refused().count("not merged") == 4


@pytest.mark.usefixtures("case")
def test_swapped_factors_are_found() -> None:
    swapped = {}
    for name, array in PAIRS.items():
        other = PAIRS[f"{name[:-1]}{'B' if name.endswith('A') else 'A'}"]
        swapped[name] = np.ascontiguousarray(other.T)
        assert swapped[name].shape == array.shape
    write(Path("swapped.ckpt"), mindpet(swapped))
    merge("base.ckpt", "swapped.ckpt", output="merged.ckpt", alpha=8, force=True)
    assert refused().count("A and B swapped") == 4


@pytest.mark.usefixtures("case")
def test_a_merge_that_was_done_twice_is_found() -> None:
    merge("merged.ckpt", "lora.ckpt", output="twice.ckpt", alpha=8)
    Path("twice.ckpt").replace("merged.ckpt")
    assert refused().count("merged twice") == 4


@pytest.mark.usefixtures("case")
def test_another_base_is_found() -> None:
    other = {name: random(77 + i, *array.shape, dtype="bf16") for i, (name, array) in enumerate(BASE.items())}
    write(Path("base.ckpt"), other)
    assert "It was made of another base" in refused()


@pytest.mark.parametrize("bit", [0, 3, 9, 14, 15])
@pytest.mark.usefixtures("case")
def test_a_flipped_bit_of_an_untouched_tensor_is_found_and_named(bit: int) -> None:
    change(EMBEDDING, (5, 7), bit)
    assert f"{EMBEDDING}, element [5, 7]" in refused()
    assert f"bit {bit} of 16 is flipped" in refused()


@pytest.mark.parametrize("bit", [4, 9, 14, 15])
@pytest.mark.usefixtures("case")
def test_a_flipped_bit_of_a_changed_weight_is_found_and_named(bit: int) -> None:
    change(WQ, (3, 2), bit)
    message = refused()
    assert f"{WQ}, element [3, 2]" in message
    assert f"bit {bit} of 16 is flipped" in message


@pytest.mark.usefixtures("case")
def test_the_lowest_bit_of_any_element_of_a_changed_weight_is_found_strictly() -> None:
    original = Path("merged.ckpt").read_bytes()
    for index in itertools.product(range(0, HIDDEN, 5), repeat=2):
        Path("merged.ckpt").write_bytes(original)
        change(WQ, index, 0)
        assert f"{WQ}, element {list(index)}" in refused(strict=True)


@pytest.mark.usefixtures("case")
def test_a_wrong_type_is_found() -> None:
    arrays = read(Path("merged.ckpt"))
    arrays[WQ] = arrays[WQ].astype(np.float32)
    save(Path("merged.ckpt"), arrays)
    assert f"{WQ}: expected type bf16, found elements of type fp32" in refused()
    merge("base.ckpt", "lora.ckpt", output="merged.ckpt", alpha=8, dtype="fp32", force=True)
    assert verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", alpha=8, strict=True).passed
    assert "expected type fp16, found elements of type fp32" in refused(dtype="fp16")


@pytest.mark.usefixtures("case")
def test_missing_and_unexpected_tensors_are_found() -> None:
    arrays = read(Path("merged.ckpt"))
    arrays["model.extra.weight"] = arrays.pop(NORM)
    arrays |= mindpet({name: PAIRS[name] for name in list(PAIRS)[:2]})
    save(Path("merged.ckpt"), arrays)
    message = refused()
    assert f"{NORM}: expected it, of shape (16,), found no such tensor" in message
    assert "model.extra.weight: expected nothing of that name, found a tensor of no input" in message
    assert "LoRA A, which is no weight of a merged model" in message
    assert NORM not in refused(allow_missing=["*norm*"]).split("Near names")[0]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_casts_names_and_formats_are_followed(case: Path, dtype: str, suffix: str) -> None:
    output = case / f"cast.{suffix}"
    merge("base.ckpt", "lora.ckpt", output=output, alpha=8, dtype=dtype, names="hf")
    report = verify("base.ckpt", "lora.ckpt", merged=output, alpha=8, strict=True)
    assert report.names == "hf"
    assert len(report.cast) == (0 if dtype == "bf16" else len(BASE) - 4)


def test_a_cast_that_was_not_rounded_to_nearest_is_found(case: Path) -> None:
    wide = {name: random(i, *array.shape) for i, (name, array) in enumerate(BASE.items())}
    write(case / "base.ckpt", wide)
    merge("base.ckpt", "lora.ckpt", output="merged.ckpt", alpha=8, dtype="bf16", force=True)
    assert verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", alpha=8, strict=True).cast
    change(EMBEDDING, (1, 1), 0)
    assert f"{EMBEDDING}, element [1, 1]" in refused()


def test_folders_and_peft_adapters_are_verified(tmp_path: Path) -> None:
    base, adapter = hf_folder(tmp_path / "hf"), write_peft(tmp_path / "peft", peft(PAIRS))
    merge(base, adapter, output=tmp_path / "merged")
    report = verify(base, adapter, merged=tmp_path / "merged", strict=True)
    assert {use.scaling for weight in report.weights for use in weight.adapters} == {2.0}
    assert report.adapters[0].config.endswith("adapter_config.json")


def test_a_combined_checkpoint_is_verified(tmp_path: Path) -> None:
    states = {"global_step": np.array([3], np.int32), f"adam_m.{WQ}": np.zeros_like(BASE[WQ])}
    write(tmp_path / "both.ckpt", {**BASE, **mindpet(PAIRS), **states})
    merge(tmp_path / "both.ckpt", output=tmp_path / "merged.ckpt", alpha=8)
    report = verify(tmp_path / "both.ckpt", merged=tmp_path / "merged.ckpt", alpha=8, strict=True)
    assert {entry.name for entry in report.dropped} >= set(states)


@pytest.mark.usefixtures("case")
def test_a_sample_finds_what_concerns_a_whole_tensor_and_says_what_it_promises() -> None:
    big = {name: random(i, 4096, 64) if name == EMBEDDING else array for i, (name, array) in enumerate(BASE.items())}
    write(Path("base.ckpt"), big)
    merge("base.ckpt", "lora.ckpt", output="merged.ckpt", alpha=8, force=True)
    report = verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", alpha=8, sample=0.25)
    assert 0.25 <= report.sampled_share < 0.5
    assert report.chance_of_one_element == report.sampled_share
    merge("base.ckpt", "lora.ckpt", output="merged.ckpt", scaling=1, force=True)
    assert "another scale" in refused(sample=0.01)
    same = [verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", scaling=1, sample=0.25, seed=3) for _ in range(2)]
    assert same[0].weights == same[1].weights


@pytest.mark.usefixtures("case")
def test_arguments_that_make_no_sense_are_refused() -> None:
    for options in (
        {"sample": 0},
        {"sample": 1.5},
        {"max_ulp": 0.1},
        {"strict": True, "max_ulp": 1},
        {"dtype": "int8"},
    ):
        with pytest.raises(UsageError):
            verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", alpha=8, **options)
    with pytest.raises(MismatchError, match="alpha"):
        verify("base.ckpt", "lora.ckpt", merged="merged.ckpt")


@pytest.mark.usefixtures("case")
def test_a_nan_in_the_result_is_found() -> None:
    arrays = read(Path("merged.ckpt"))
    arrays[WQ][2, 2] = np.nan
    save(Path("merged.ckpt"), arrays)
    assert f"{WQ}" in refused()
    assert verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", alpha=8, check=False).to_json()


@pytest.mark.usefixtures("case")
def test_threads_change_nothing() -> None:
    one, two = (verify("base.ckpt", "lora.ckpt", merged="merged.ckpt", alpha=8, threads=n) for n in (1, 2))
    assert one.weights == two.weights
    assert one.weights[0].adapters[0].rank == RANK


def test_near_names_are_looked_for_of_the_first_missing_tensors_alone() -> None:
    dtype = BY_NAME["fp32"]
    tensors = {f"model.layers.{i}.weight": Constant(np.zeros(1, np.float32), dtype) for i in range(50)}
    expected = [Expected(name, name, tensor) for name, tensor in tensors.items()]
    _, _, offenders = match(expected, {f"{name}s": one for name, one in tensors.items()}, tensors, dtype=None)
    missing = [one for one in offenders if one.found == "no such tensor"]
    assert len(missing) == 50
    assert [bool(one.remedy) for one in missing] == [True] * 20 + [False] * 30
