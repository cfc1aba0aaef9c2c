"""`merge(verify=True)` reads back what it wrote, and publishes nothing that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_cases import BASE, PAIRS, factors, llama, mindpet, names_of, write

from ckpt_tools import merge, verify
from ckpt_tools.tensors import native, tiles
from surgery.errors import UsageError, VerificationError


@pytest.mark.parametrize("output", ["merged.ckpt", "merged.safetensors", "merged-folder"])
@pytest.mark.parametrize("dtype", ["keep", "fp16", "fp32"])
def test_a_sound_merge_is_published(tmp_path: Path, output: str, dtype: str) -> None:
    base, lora = write(tmp_path / "base.ckpt", BASE), write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    merge(base, lora, output=tmp_path / output, alpha=8, dtype=dtype, names="hf", verify=True)
    assert (tmp_path / output).exists()


def test_arithmetic_that_is_wrong_by_a_unit_is_found_and_nothing_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_one(values: np.ndarray, out: np.ndarray) -> None:
        out[...] = values
        out.view("u2")[...] += 1

    monkeypatch.setattr(native, "fold_tile", lambda *arguments: False)
    monkeypatch.setattr(tiles, "narrow", off_by_one)
    base, lora = write(tmp_path / "base.ckpt", BASE), write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    with pytest.raises(VerificationError, match="not base plus adapters") as caught:
        merge(base, lora, output=tmp_path / "merged.ckpt", alpha=8, verify=True)
    assert caught.value.exit_code == 6
    assert names_of(tmp_path) == ["base.ckpt", "lora.ckpt"]


def test_a_part_of_an_output_is_not_verified(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--ranks"):
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "x", alpha=8, ranks="0", verify=True)


@given(
    dtype=st.sampled_from(["bf16", "fp16", "fp32", "fp64"]),
    target=st.sampled_from(["keep", "bf16", "fp16", "fp32"]),
    rank=st.integers(1, 16),
    scaling=st.floats(-30, 30).filter(lambda value: abs(value) > 1e-3),
    seed=st.integers(0, 2**16),
    element=st.tuples(st.integers(0, 15), st.integers(0, 15)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_merge_is_strictly_verified_and_every_wrong_element_found(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    target: str,
    rank: int,
    scaling: float,
    seed: int,
    element: tuple[int, int],
) -> None:
    from merge_cases import read, save

    folder = tmp_path_factory.mktemp("case")
    base = write(folder / "base.ckpt", llama(dtype, layers=1))
    pairs = factors(["model.layers.0.attention.wq"], seed=seed, rank=rank)
    lora, merged = write(folder / "lora.ckpt", mindpet(pairs)), folder / "merged.ckpt"
    merge(base, lora, output=merged, scaling=scaling, dtype=target)
    assert verify(base, lora, merged=merged, scaling=scaling, strict=True).passed
    arrays = read(merged)
    weight = arrays["model.layers.0.attention.wq.weight"]
    weight[element] = weight.dtype.type(float(weight[element]) + 1)
    save(merged, arrays)
    report = verify(base, lora, merged=merged, scaling=scaling, check=False)
    assert [offender.where for offender in report.offenders]
