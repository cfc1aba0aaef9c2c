"""PEFT and transformers ask no server for a model that is a folder here, and start no threads for one that is tiny."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

os.environ["HF_HUB_OFFLINE"] = "1"
logging.disable_progress_bar()
torch.set_num_threads(1)

# What they warn of is meant: such adapters are there to compare with PEFT's way. One call is transformers' own.
_WARNINGS_OF_OTHERS = (
    "ignore:Input and output embeddings are no longer tied",
    "ignore:Model with `tie_word_embeddings=True`",
    "ignore:(PiSSA|OLoRA) changes the base weights of the model",
    "ignore:Setting `save_embedding_layers` to `True`",
    "ignore:`is_gradient_checkpointing` is deprecated",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Any other warning fails a test here as everywhere."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in _WARNINGS_OF_OTHERS:
                item.add_marker(pytest.mark.filterwarnings(warning))
