"""What PEFT merges is verified, in every type, and what it merges with another scale is not."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest
from peft import PeftModel
from peft_models import DTYPES, NETWORKS, lora, write_adapter, write_base

from ckpt_tools import verify
from surgery.errors import VerificationError

LLAMA = NETWORKS["llama"]


def merge_with_peft(base: Path, adapter: Path, output: Path, dtype: str, autocast: bool, scale: float = 1.0) -> Path:
    """PEFT's `merge_and_unload` in a type, saved by transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = LLAMA.load(base, DTYPES[dtype])
        model = PeftModel.from_pretrained(network, adapter, autocast_adapter_dtype=autocast)
        if scale != 1.0:
            for module in model.modules():
                if isinstance(getattr(module, "scaling", None), dict):
                    module.scaling = {name: value * scale for name, value in module.scaling.items()}
        model.merge_and_unload().save_pretrained(output)
    return output


@pytest.mark.parametrize(
    ("base_dtype", "dtype", "autocast"),
    [*itertools.product(("fp32",), DTYPES, (True, False)), ("bf16", "bf16", False), ("fp16", "fp16", False)],
)
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_a_merge_of_peft_is_verified(
    tmp_path: Path, base_dtype: str, dtype: str, autocast: bool, options: dict[str, object]
) -> None:
    base = write_base(LLAMA, tmp_path / "base", DTYPES[base_dtype])
    config = lora(target_modules=list(LLAMA.targets), **options)
    adapter = write_adapter(LLAMA, base, tmp_path / "adapter", config)
    merged = merge_with_peft(base, adapter, tmp_path / "merged", dtype, autocast)
    report = verify(base, adapter, merged=merged)
    print(
        f"\n{base_dtype} -> {dtype}, autocast {autocast}, {options}: {report.largest_error_ulp:.3g} ULP, of the limit "
        f"{max(w.error_of_limit or 0 for w in report.weights):.2f}"
    )
    assert len(report.weights) == 14


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.5, 0.9, 1.1, 2.0])
def test_a_merge_of_peft_with_another_scale_is_not(tmp_path: Path, dtype: str, scale: float) -> None:
    base = write_base(LLAMA, tmp_path / "base", DTYPES[dtype])
    adapter = write_adapter(LLAMA, base, tmp_path / "adapter", lora(target_modules=list(LLAMA.targets)))
    merged = merge_with_peft(base, adapter, tmp_path / "merged", dtype, False, scale)
    with pytest.raises(VerificationError):
        verify(base, adapter, merged=merged)
