"""Merge with PEFT the way its documentation shows: load the base, load the adapter, merge_and_unload, save."""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: str, adapter: str, output: str) -> None:
    """Merge a PEFT folder into a Hugging Face folder."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:4])
