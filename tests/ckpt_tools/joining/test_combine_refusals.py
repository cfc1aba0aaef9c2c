"""What cannot be combined is refused, with the reason, and what options contradict each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_cases import (
    BASE,
    HIDDEN,
    Arrays,
    factors,
    mindpet,
    peft,
    random,
    read,
    tree,
    write,
    write_peft,
)

from ckpt_tools import combine, merge, split
from surgery.errors import (
    MismatchError,
    NonFiniteError,
    UsageError,
)

QUERY = "model.layers.0.attention.wq"
VALUE = "model.layers.0.attention.wv"
HF_QUERY = "model.layers.0.self_attn.q_proj"


def _config(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "adapter_config.json").read_text()))


def _dora(folder: Path) -> Path:
    pairs = peft(factors([QUERY], 8))
    pairs[f"base_model.model.{HF_QUERY}.lora_magnitude_vector"] = np.ones(HIDDEN, np.float32)
    return write_peft(folder, pairs, use_dora=True)


def _prompt(folder: Path) -> Path:
    return write(folder.with_suffix(".ckpt"), {"model.layers.0.mindpet_delta_prefixtuning_key": random(1, 4, 4)})


def _whole_model(folder: Path) -> Path:
    return write(folder.with_suffix(".ckpt"), BASE | mindpet(factors([QUERY], 1)))


def _weights(folder: Path) -> Path:
    return write(folder.with_suffix(".ckpt"), {"model.norm_out.weight": random(1, HIDDEN)})


def _other_shape(folder: Path) -> Path:
    narrow = {f"base_model.model.{HF_QUERY}.lora_A.weight": random(1, 4, HIDDEN + 2)}
    narrow |= {f"base_model.model.{HF_QUERY}.lora_B.weight": random(2, HIDDEN, 4)}
    return write_peft(folder, narrow, target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (_dora, "DoRA, whose magnitudes rescale"),
        (_prompt, "a prefix or prompt adds inputs"),
        (_whole_model, "this file holds base and adapter"),
        (_weights, "no LoRA matrices"),
        (_other_shape, r"updates of shapes \(16, 16\), \(16, 18\)"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(
    tmp_path: Path, make: Callable[[Path], Path], found: str
) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)), target_modules=["q_proj"])
    other = make(tmp_path / "other")
    before = tree(tmp_path)
    with pytest.raises(MismatchError, match=found):
        combine(tmp_path / "a", other, alpha=8, output=tmp_path / "out")
    assert tree(tmp_path) == before


def test_dora_alone_is_resized_and_keeps_its_magnitudes(tmp_path: Path) -> None:
    _dora(tmp_path / "d")
    combine(tmp_path / "d", resize_rank=2, output=tmp_path / "out")
    name = f"base_model.model.{HF_QUERY}.lora_magnitude_vector"
    np.testing.assert_array_equal(read(tmp_path / "out")[name], np.ones(HIDDEN, np.float32))
    assert _config(tmp_path / "out")["use_dora"] is True
    with pytest.raises(MismatchError, match=r"weight 0\.5 of a DoRA adapter"):
        combine(tmp_path / "d", weight=0.5, output=tmp_path / "no")


def test_methods_that_prune_refuse_a_bias_of_b(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        arrays = peft(factors([QUERY], number))
        arrays[f"base_model.model.{HF_QUERY}.lora_B.bias"] = np.ones(HIDDEN, np.float32)
        write_peft(tmp_path / name, arrays, lora_bias=True)
    with pytest.raises(MismatchError, match="a trained bias of B"):
        combine(tmp_path / "a", tmp_path / "b", method="ties", density=0.5, output=tmp_path / "out")


def test_the_base_that_adapters_say_they_belong_to_is_compared_and_carried_on(tmp_path: Path) -> None:
    def adapter(name: str, base: Arrays, layers: tuple[str, ...], seed: int) -> Path:
        write(tmp_path / "tuned.ckpt", base | mindpet(factors(layers, seed)))
        split(tmp_path / "tuned.ckpt", alpha=8, output=tmp_path / name, force=True)
        return tmp_path / name

    changed = BASE | {f"{QUERY}.weight": BASE[f"{QUERY}.weight"] * 2}
    first = adapter("first", BASE, (QUERY, VALUE), 1)
    alike = adapter("alike", BASE, (QUERY, VALUE), 2)
    other = adapter("other", changed, (QUERY, VALUE), 3)
    part = adapter("part", BASE, (QUERY,), 4)
    wider = adapter("wider", BASE, ("model.layers.1.attention.wo",), 5)
    base = write(tmp_path / "base.ckpt", BASE)
    report = combine(first, alike, output=tmp_path / "out")
    assert report.base_fingerprint.startswith("pet-ft1:")
    merge(base, tmp_path / "out", output=tmp_path / "merged.ckpt")
    with pytest.raises(MismatchError, match="base that the adapter was trained on"):
        merge(write(tmp_path / "changed.ckpt", changed), tmp_path / "out", output=tmp_path / "no.ckpt")
    with pytest.raises(MismatchError, match="adapters of one base"):
        combine(first, other, output=tmp_path / "no")
    forced = combine(first, other, output=tmp_path / "forced", allow_other_base=True)
    assert forced.base_fingerprint == ""
    (warning,) = (warning for warning in forced.warnings if "base" in warning)
    assert "first and " in warning
    assert "other were trained on different bases" in warning
    merge(tmp_path / "changed.ckpt", tmp_path / "forced", output=tmp_path / "any.ckpt")
    assert combine(part, first, output=tmp_path / "covered").base_fingerprint == report.base_fingerprint
    joined = combine(first, wider, output=tmp_path / "joined")
    assert joined.base_fingerprint == ""
    assert any("which base it belongs to" in warning for warning in joined.warnings)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"method": "mean"}, "--method"),
        ({"method": "ties"}, "without --density"),
        ({"method": "ties", "density": 0.0}, "a share above 0"),
        ({"method": "ties", "density": 1.5}, "a share above 0"),
        ({"method": "svd", "density": 0.5}, "a method that uses it"),
        ({"method": "svd", "majority_sign": "total"}, "a method that uses it"),
        ({"method": "ties", "density": 0.5, "majority_sign": "loudest"}, "total or frequency"),
        ({"method": "ties", "density": 0.5, "seed": 1}, "a method that uses it"),
        ({"resize_rank": 2, "energy": 0.5}, "one of the two"),
        ({"resize_rank": 0}, "a rank of 1 or more"),
        ({"energy": 0.0}, "a share above 0"),
        ({"format": "iteration"}, "--format"),
        ({"dtype": "fp8"}, "--dtype"),
        ({"weight": [1, 2]}, "one, or one for each of 1 adapters"),
    ],
)
def test_options_that_contradict_are_refused(tmp_path: Path, options: Mapping[str, Any], found: str) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)))
    with pytest.raises(UsageError, match=found):
        combine(tmp_path / "a", output=tmp_path / "out", **options)


def test_no_adapter_and_a_weight_of_zero_are_refused(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)))
    with pytest.raises(UsageError, match="one or more"):
        combine(output=tmp_path / "out")
    with pytest.raises(MismatchError, match="a finite number other than 0"):
        combine(tmp_path / "a", weight=0, output=tmp_path / "out")


def test_nan_in_an_adapter_is_refused(tmp_path: Path) -> None:
    arrays = peft(factors([QUERY], 1))
    next(iter(arrays.values()))[0, 0] = np.nan
    write_peft(tmp_path / "a", arrays)
    with pytest.raises(NonFiniteError, match=r"take an earlier checkpoint\.$"):  # without an option that there is not
        combine(tmp_path / "a", resize_rank=2, output=tmp_path / "out")
