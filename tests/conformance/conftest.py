"""PEFT and transformers ask no server for a model that is a folder here, and start no threads for one that is tiny."""

from __future__ import annotations

import os

import torch
from transformers.utils import logging

os.environ["HF_HUB_OFFLINE"] = "1"
logging.disable_progress_bar()
torch.set_num_threads(1)
