"""What MindFormers' own tool merges, in the type that is stored, is verified."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from merge_cases import factors, llama, mindpet, write

from ckpt_tools import verify
from surgery.errors import VerificationError


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("adapter_dtype", ["fp32", "fp16"])  # MindSpore has no product of bfloat16 on a CPU
def test_a_merge_of_mindformers_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, adapter_dtype: str
) -> None:
    trained = write(tmp_path / "trained.ckpt", {**llama(dtype), **mindpet(factors(dtype=adapter_dtype))})
    (tmp_path / "theirs").mkdir()
    options = {"--src_ckpt_path_or_dir": trained, "--dst_ckpt_dir": tmp_path / "theirs", "--lora_scaling": 2.0}
    monkeypatch.setattr(sys, "argv", ["merge", *(str(word) for option in options.items() for word in option)])
    runpy.run_module("mindformers.tools.transform_ckpt_lora", run_name="__main__")
    merged = tmp_path / "theirs" / "merged_lora.ckpt"
    report = verify(trained, merged=merged, alpha=8)
    print(
        f"\n{dtype}, adapter {adapter_dtype}: {report.largest_error_ulp:.3g} ULP, of the limit "
        f"{max(w.error_of_limit or 0 for w in report.weights):.2f}"
    )
    with pytest.raises(VerificationError, match="scal"):
        verify(trained, merged=merged, alpha=4)
