"""Spectra of adapters are those of the product itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from merge_cases import factors, mindpet, random, save

from ckpt_tools import inspect_checkpoint


def test_the_singular_values_are_those_of_the_scaled_product(tmp_path: Path) -> None:
    parts = factors()
    save(tmp_path / "lora.ckpt", mindpet(parts))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    report = inspect_checkpoint(tmp_path / "lora.ckpt", spectra=True)
    assert report.pairs
    for pair in report.pairs:
        assert pair.spectrum is not None
        product = 2 * parts[f"{pair.layer}.B"].astype("f8") @ parts[f"{pair.layer}.A"].astype("f8")
        expected = np.linalg.svd(product, compute_uv=False)[:4]
        np.testing.assert_allclose(pair.spectrum.singular_values, expected, rtol=1e-10)
        assert pair.spectrum.norm == pytest.approx(np.linalg.norm(product), rel=1e-10)
        np.testing.assert_allclose(pair.spectrum.energy, np.cumsum(expected**2) / np.sum(expected**2), rtol=1e-10)


def test_an_unknown_alpha_is_scaling_1_and_is_told(tmp_path: Path) -> None:
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    report = inspect_checkpoint(tmp_path / "lora.ckpt", spectra=True)
    assert {pair.spectrum.scaling for pair in report.pairs if pair.spectrum} == {1.0}
    assert any("with scaling 1" in warning for warning in report.warnings)


def test_nan_has_no_spectrum_and_is_told(tmp_path: Path) -> None:
    parts = mindpet(factors())
    name = next(iter(parts))
    parts[name] = np.full_like(parts[name], np.nan)
    save(tmp_path / "lora.ckpt", parts)
    report = inspect_checkpoint(tmp_path / "lora.ckpt", spectra=True)
    assert sum(pair.spectrum is None for pair in report.pairs) == 1
    assert any("NaN or Inf" in warning for warning in report.warnings)


def test_values_whose_product_overflows_have_no_spectrum_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "lora.ckpt", {name: np.full(array.shape, 1e160) for name, array in mindpet(factors()).items()})
    report = inspect_checkpoint(tmp_path / "lora.ckpt", spectra=True)
    assert report.pairs
    assert all(pair.spectrum is None for pair in report.pairs)
    assert any("NaN or Inf in A, B or B @ A" in warning for warning in report.warnings)
    assert capfd.readouterr() == ("", "")


def test_a_fresh_adapter_is_zero(tmp_path: Path) -> None:
    save(
        tmp_path / "lora.ckpt",
        {"x.mindpet_delta_lora_a": random(0, 4, 8), "x.mindpet_delta_lora_b": np.zeros((8, 4), "f4")},
    )
    (pair,) = inspect_checkpoint(tmp_path / "lora.ckpt", spectra=True).pairs
    assert pair.spectrum is not None
    assert (pair.spectrum.norm, pair.spectrum.effective_rank) == (0.0, 0.0)


def test_a_convolution_and_experts_are_decomposed(tmp_path: Path) -> None:
    conv = {
        "base_model.model.c.lora_A.weight": random(0, 2, 3, 3, 3),
        "base_model.model.c.lora_B.weight": random(1, 5, 2, 1, 1),
    }
    experts = {"m.w1_lora_a": random(2, 3, 6, 2), "m.w1_lora_b": random(3, 3, 2, 7)}
    save(tmp_path / "c.safetensors", conv)
    save(tmp_path / "e.safetensors", experts)
    (pair,) = inspect_checkpoint(tmp_path / "c.safetensors", spectra=True).pairs
    a, b = (array.astype("f8") for array in conv.values())
    assert pair.spectrum is not None
    assert pair.spectrum.norm == pytest.approx(np.linalg.norm(b.reshape(5, 2) @ a.reshape(2, -1)))
    (pair,) = inspect_checkpoint(tmp_path / "e.safetensors", spectra=True).pairs
    a, b = (array.astype("f8") for array in experts.values())
    assert pair.spectrum is not None
    assert pair.spectrum.norm == pytest.approx(np.linalg.norm(a @ b))
