"""MindFormers' Checkpoint 2.0: an iteration's folder, read into whole tensors and laid out from ranks' slices."""

from ckpt_tools.formats.iteration.folder import (
    COMMON_FILE,
    METADATA_FILE,
    MODEL,
    OPTIMIZER,
    TRACKER_FILE,
    find_iteration,
    is_iteration,
    iteration_folder_name,
)
from ckpt_tools.formats.iteration.layout import (
    IterationLayout,
    RankFile,
    common_json,
    layout_iteration,
    tracker_text,
)
from ckpt_tools.formats.iteration.model import Chunk, GlobalTensor, Iteration
from ckpt_tools.formats.iteration.reading import read_iteration
from ckpt_tools.formats.iteration.slices import RankSlice

__all__ = [
    "COMMON_FILE",
    "METADATA_FILE",
    "MODEL",
    "OPTIMIZER",
    "TRACKER_FILE",
    "Chunk",
    "GlobalTensor",
    "Iteration",
    "IterationLayout",
    "RankFile",
    "RankSlice",
    "common_json",
    "find_iteration",
    "is_iteration",
    "iteration_folder_name",
    "layout_iteration",
    "read_iteration",
    "tracker_text",
]
