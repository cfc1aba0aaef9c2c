"""An adapter that knows its base is not merged into another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from merge_cases import BASE, PAIRS, Arrays, factors, hugging_face, mindpet, peft, random, save, write_peft

from ckpt_tools import merge, open_checkpoint, split, transform
from ckpt_tools.fingerprint import target_fingerprint
from surgery.adapter_facts import surgery_section
from surgery.errors import MismatchError

OTHER = {name: random(100 + n, *array.shape, dtype="bf16") for n, (name, array) in enumerate(BASE.items())}


@pytest.fixture(params=["folder", "safetensors file"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An adapter that was cut out of a checkpoint with its base."""
    save(tmp_path / "combined.ckpt", BASE | mindpet(PAIRS))
    output = tmp_path / ("adapter" if request.param == "folder" else "adapter.safetensors")
    split(tmp_path / "combined.ckpt", alpha=8, output=output)
    return output


def merged(folder: Path, base: Arrays, adapter: Path, name: str = "base.ckpt", **options: object):  # type: ignore[no-untyped-def]
    save(folder / name, base, metadata={"format": "pt"} if name.endswith("safetensors") else None)
    return merge(folder / name, adapter, output=folder / f"merged-{name}", **options)


def test_its_own_base_is_accepted_in_every_form(tmp_path: Path, adapter: Path) -> None:
    merged(tmp_path, BASE, adapter)
    merged(tmp_path, BASE, adapter, "base.safetensors")
    merged(tmp_path, hugging_face(BASE), adapter, "hf.safetensors")
    transform(tmp_path / "base.ckpt", dtype="fp32", output=tmp_path / "wide.ckpt")
    merge(tmp_path / "wide.ckpt", adapter, output=tmp_path / "merged-wide.ckpt")


def test_another_base_is_refused_and_may_be_accepted(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(MismatchError, match="expected the base that the adapter was trained on, found an adapter of"):
        merged(tmp_path, OTHER, adapter)
    assert not (tmp_path / "merged-base.ckpt").exists()
    merged(tmp_path, OTHER, adapter, allow_other_base=True)


def test_an_adapter_with_a_trained_bias_of_b_knows_its_base_too(tmp_path: Path) -> None:
    base = hugging_face(BASE)
    query = "model.layers.0.self_attn.q_proj"
    base[f"{query}.bias"] = np.zeros(base[f"{query}.weight"].shape[0], np.float32)
    save(tmp_path / "base.safetensors", base, {"format": "pt"})
    own = target_fingerprint([open_checkpoint(tmp_path / "base.safetensors").tensors[f"{query}.weight"]])
    arrays = peft(factors(["model.layers.0.attention.wq"]))
    arrays[f"base_model.model.{query}.lora_B.bias"] = np.ones_like(base[f"{query}.bias"])
    for name, said in (("own", own), ("other", f"pet-ft1:{0:064}")):
        section = surgery_section(said)
        write_peft(tmp_path / name, arrays, lora_bias=True, target_modules=["q_proj"], pet_surgery=section)
    merge(tmp_path / "base.safetensors", tmp_path / "own", output=tmp_path / "out.safetensors")
    with pytest.raises(MismatchError, match="base that the adapter was trained on"):
        merge(tmp_path / "base.safetensors", tmp_path / "other", output=tmp_path / "no.safetensors")


def test_weights_that_the_adapter_does_not_change_may_be_others(tmp_path: Path, adapter: Path) -> None:
    base = dict(BASE)
    base["lm_head.weight"] = OTHER["lm_head.weight"]
    merged(tmp_path, base, adapter)


def test_a_base_that_was_merged_before_is_another(tmp_path: Path, adapter: Path) -> None:
    merged(tmp_path, BASE, adapter)
    with pytest.raises(MismatchError, match="--allow-other-base"):
        merge(tmp_path / "merged-base.ckpt", adapter, output=tmp_path / "twice.ckpt")


def test_an_adapter_of_which_some_is_left_out_says_nothing_of_its_base(tmp_path: Path, adapter: Path) -> None:
    base = {name: array for name, array in BASE.items() if "layers.1.attention.wv" not in name}
    merged(tmp_path, base, adapter, allow_unused=["*layers.1.attention.wv*"])
    assert np.any(OTHER["lm_head.weight"])
