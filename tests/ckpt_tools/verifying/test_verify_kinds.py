"""Every kind of fold and every layout of what `merge` writes is proved strictly, and a wrong element in it is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_cases import (
    HIDDEN,
    INNER,
    NUMPY,
    RANK,
    VOCABULARY,
    Arrays,
    factors,
    hf_folder,
    hugging_face,
    llama,
    mindpet,
    peft,
    random,
    read,
    save,
    write,
    write_peft,
)
from rank_folders import strategy_of
from transform_cases import write_strategy

from ckpt_tools import merge, verify
from ckpt_tools.layout.model import Layout
from ckpt_tools.verifying import exact
from surgery.errors import VerificationError


@dataclass
class Case:
    """A base, adapters, and a weight that they change."""

    base: Path
    adapters: list[Path]
    weight: str
    options: dict[str, Any] = field(default_factory=dict)


def lora(folder: Path, name: str = "lora.ckpt", seed: int = 1000) -> Path:
    return write(folder / name, mindpet(factors(seed=seed)))


def linear(folder: Path, dtype: str) -> Case:
    base = write(folder / "base.ckpt", llama(dtype))
    return Case(base, [lora(folder)], "model.layers.0.attention.wq.weight", {"scaling": 2.0})


def several(folder: Path, dtype: str) -> Case:
    case = linear(folder, dtype)
    other = lora(folder, "other.safetensors", seed=7)
    return Case(case.base, [*case.adapters, other], case.weight, {"scaling": [2.0, -0.7]})


def combined(folder: Path, dtype: str) -> Case:
    base = write(folder / "both.ckpt", {**llama(dtype), **mindpet(factors())})
    return Case(base, [], "model.layers.0.attention.wq.weight", {"scaling": 2.0})


def experts(folder: Path, dtype: str) -> Case:
    weight = "model.layers.0.mlp.experts.weight1"
    base = write(folder / "base.ckpt", {weight: random(0, 3, HIDDEN, INNER, dtype=dtype)})
    pair = {f"{weight}_lora_a": random(2, 3, HIDDEN, RANK), f"{weight}_lora_b": random(3, 3, RANK, INNER)}
    return Case(base, [write(folder / "lora.ckpt", pair)], weight, {"scaling": 2.0})


def embedding(folder: Path, dtype: str) -> Case:
    prefix = "base_model.model.model.embed_tokens"
    pair = {
        f"{prefix}.lora_embedding_A": random(2, RANK, VOCABULARY),
        f"{prefix}.lora_embedding_B": random(3, HIDDEN, RANK),
    }
    base = write(folder / "base.safetensors", hugging_face(llama(dtype)))
    adapter = write_peft(folder / "lora", pair, target_modules=["embed_tokens"])
    return Case(base, [adapter], "model.embed_tokens.weight")


def convolution(folder: Path, dtype: str) -> Case:
    base = write(folder / "base.safetensors", {"conv.weight": random(0, 24, 16, 3, 3, dtype=dtype)})
    prefix = "base_model.model.conv"
    pair = {
        f"{prefix}.lora_A.weight": random(1, RANK, 16, 3, 3),
        f"{prefix}.lora_B.weight": random(2, 24, RANK, 1, 1),
    }
    return Case(base, [write_peft(folder / "lora", pair, target_modules=["conv"])], "conv.weight")


def dora(folder: Path, dtype: str) -> Case:
    pairs = peft(factors())
    vectors = {
        name.replace("lora_A.weight", "lora_magnitude_vector"): np.abs(random(5, HIDDEN)) + 0.1
        for name in pairs
        if "lora_A" in name
    }
    base = write(folder / "base.safetensors", hugging_face(llama(dtype)))
    adapter = write_peft(folder / "lora", {**pairs, **vectors}, use_dora=True)
    return Case(base, [adapter], "model.layers.0.self_attn.q_proj.weight")


def replaced(folder: Path, dtype: str) -> Case:
    adapter = {**peft(factors()), "base_model.model.lm_head.weight": random(9, VOCABULARY, HIDDEN)}
    base = write(folder / "base.safetensors", hugging_face(llama(dtype)))
    return Case(base, [write_peft(folder / "lora", adapter, modules_to_save=["lm_head"])], "lm_head.weight")


def untied(folder: Path, dtype: str) -> Case:
    base = hf_folder(folder / "base", tie_word_embeddings=True)
    arrays = hugging_face(llama(dtype))
    del arrays["lm_head.weight"]
    for path in base.glob("*.safetensors*"):
        path.unlink()
    save(base / "model.safetensors", arrays, {"format": "pt"})
    pair = {
        "base_model.model.lm_head.lora_A.weight": random(1, RANK, HIDDEN),
        "base_model.model.lm_head.lora_B.weight": random(2, VOCABULARY, RANK),
    }
    return Case(base, [write_peft(folder / "lora", pair, target_modules=["lm_head"])], "lm_head.weight")


KINDS: dict[str, Callable[[Path, str], Case]] = {
    kind.__name__: kind for kind in (linear, several, combined, experts, embedding, convolution, dora, replaced, untied)
}


def spoil(path: Path, name: str) -> Path:
    """The same tensors with one element of one of them off by a quarter."""
    arrays = {key: np.array(array) for key, array in read(path).items()}
    flat = arrays[name].reshape(-1)
    index = int(np.argmax(np.abs(flat.astype(np.float64))))
    flat[index] = (flat[index].astype(np.float64) * 1.25).astype(flat.dtype)
    return write(path.parent / "spoiled.safetensors", arrays)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_merge_writes_is_proved_strictly_and_a_wrong_element_is_found(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    case = KINDS[kind](tmp_path, dtype)
    out = tmp_path / "merged.safetensors"
    merge(case.base, *case.adapters, output=out, verify=True, **case.options)
    report = verify(case.base, *case.adapters, merged=out, strict=True, **case.options)
    assert report.passed
    assert case.weight in {weight.name for weight in report.weights}
    with pytest.raises(VerificationError, match=case.weight.replace(".", r"\.")):
        verify(case.base, *case.adapters, merged=spoil(out, case.weight), **case.options)


@pytest.mark.parametrize("kind", ["linear", "experts", "dora", "convolution"])
def test_tiles_within_a_stretch_change_nothing_but_where_sums_are_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    case = KINDS[kind](tmp_path, "bf16")
    out = tmp_path / "merged.safetensors"
    merge(case.base, *case.adapters, output=out, **case.options)
    for path in (out, spoil(out, case.weight)):
        reports = []
        for elements in (2**15, 40):  # all of a weight, and a row or two
            monkeypatch.setattr(exact, "_TILE_ELEMENTS", elements)
            report = verify(case.base, *case.adapters, merged=path, check=False, **case.options)
            reports.append([(one.name, one.beyond, one.error_ulp, one.error_at) for one in report.weights])
        assert reports[0] == reports[1]


def test_a_transposed_change_of_a_square_convolution_is_told(tmp_path: Path) -> None:
    shapes = {"conv.weight": (16, 16, 1, 1)}
    base = write(tmp_path / "base.safetensors", {name: random(0, *shape) for name, shape in shapes.items()})
    a, b = random(1, 4, 16, 1, 1), random(2, 16, 4, 1, 1)
    pair = {"base_model.model.conv.lora_A.weight": a, "base_model.model.conv.lora_B.weight": b}
    adapter = write_peft(tmp_path / "lora", pair, target_modules=["conv"], r=4, lora_alpha=8)
    change = 2 * (b.reshape(16, 4) @ a.reshape(4, 16))
    merged = {name: array + change.T.reshape(array.shape) for name, array in read(base).items()}
    with pytest.raises(VerificationError, match="A and B swapped"):
        verify(base, adapter, merged=write(tmp_path / "merged.safetensors", merged))


@pytest.mark.parametrize("target", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", ["linear", "dora", "replaced"])
def test_another_type_is_proved_as_one_rounding(tmp_path: Path, kind: str, target: str) -> None:
    case = KINDS[kind](tmp_path, "bf16")
    out = tmp_path / "merged.safetensors"
    merge(case.base, *case.adapters, output=out, dtype=target, verify=True, **case.options)
    assert verify(case.base, *case.adapters, merged=out, strict=True, **case.options).passed


def test_a_base_of_several_types_is_proved_in_one(tmp_path: Path) -> None:
    arrays = {name: array.astype(np.float32) if "norm" in name else array for name, array in llama("bf16").items()}
    base, adapter = write(tmp_path / "base.ckpt", arrays), lora(tmp_path)
    for target in ("keep", "fp16", "fp32"):
        out = tmp_path / f"{target}.ckpt"
        merge(base, adapter, scaling=2, output=out, dtype=target, verify=True)
        assert verify(base, adapter, merged=out, scaling=2, strict=True).passed


def cut_two_ways(base: Arrays, ranks: int) -> Any:
    layouts = {}
    for number, (name, array) in enumerate(base.items()):
        axis = number % array.ndim
        layouts[name] = Layout((ranks,), tuple((0,) if i == axis else () for i in range(array.ndim)))
    return strategy_of(layouts)


@pytest.mark.parametrize("format", ["ckpt", "safetensors", "iteration"])
def test_slices_of_ranks_and_iterations_are_proved(tmp_path: Path, format: str) -> None:
    arrays = llama("bf16")
    base, adapter = write(tmp_path / "base.ckpt", arrays), lora(tmp_path)
    strategy = write_strategy(tmp_path / "dst.ckpt", cut_two_ways(arrays, 2))
    out = tmp_path / "out"
    merge(base, adapter, scaling=2, dst_strategy=strategy, format=format, output=out, verify=True)
    place = {} if format == "iteration" else {"merged_strategy": strategy}
    assert verify(base, adapter, merged=out, scaling=2, strict=True, **place).passed
    with pytest.raises(VerificationError):
        verify(base, adapter, merged=out, scaling=1, **place)


def test_names_that_the_merge_changed_are_found_out(tmp_path: Path) -> None:
    base, adapter = write(tmp_path / "base.ckpt", llama()), lora(tmp_path)
    merge(base, adapter, scaling=2, names="hf", output=tmp_path / "out", verify=True)
    report = verify(base, adapter, merged=tmp_path / "out", scaling=2)
    assert (report.passed, report.names) == (True, "hf")
