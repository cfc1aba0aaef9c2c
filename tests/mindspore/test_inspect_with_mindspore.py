"""Files that MindSpore writes, inspected and compared."""

from __future__ import annotations

from pathlib import Path

import mindspore
import numpy as np

from ckpt_tools import inspect_checkpoint


def test_what_mindspore_saves_is_inspected_and_equal_in_both_formats(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 4)).astype("f4")
    parameters = [
        {"name": "model.layers.0.w.weight", "data": mindspore.Tensor(values).astype(mindspore.bfloat16)},
        {"name": "model.layers.0.w.mindpet_delta_lora_a", "data": mindspore.Tensor(values[:2])},
        {"name": "model.layers.0.w.mindpet_delta_lora_b", "data": mindspore.Tensor(values[:, :2].copy())},
        {"name": "global_step", "data": mindspore.Tensor([12], mindspore.int32)},
    ]
    mindspore.save_checkpoint(parameters, str(tmp_path / "a.ckpt"))
    mindspore.save_checkpoint(parameters, str(tmp_path / "a.safetensors"), format="safetensors")
    report = inspect_checkpoint(tmp_path / "a.ckpt", tmp_path / "a.safetensors", spectra=True)
    assert report.scalars == {"global_step": 12.0}
    assert {tensor.name: tensor.dtype for tensor in report.tensors}["model.layers.0.w.weight"] == "bf16"
    assert report.comparison is not None
    assert report.comparison.equal
    (pair,) = report.pairs
    assert pair.spectrum is not None
    product = values[:, :2].astype("f8") @ values[:2].astype("f8")
    np.testing.assert_allclose(pair.spectrum.singular_values, np.linalg.svd(product, compute_uv=False)[:2], rtol=1e-10)
