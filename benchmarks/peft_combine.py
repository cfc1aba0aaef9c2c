"""Combine adapters with PEFT the way its documentation shows: load the base, load the adapters, add_weighted_adapter.

With a last argument `merge` the combination is folded into the base, and that is saved; else the adapter is.
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: str, output: str, method: str, *adapters: str) -> None:
    """Combine PEFT folders on a Hugging Face folder."""
    folders, merges = (adapters[:-1], True) if adapters[-1] == "merge" else (adapters, False)
    names = [str(number) for number in range(len(folders))]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), folders[0], adapter_name=names[0]
    )
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, name)
    density = {} if method in ("cat", "linear", "svd") else {"density": 0.5}
    model.add_weighted_adapter(names, [0.5] * len(names), "new", method, **density)
    if merges:
        model.set_adapter("new")
        model.merge_and_unload().save_pretrained(output)
    else:
        model.save_pretrained(output, selected_adapters=["new"])


if __name__ == "__main__":
    main(*sys.argv[1:])
