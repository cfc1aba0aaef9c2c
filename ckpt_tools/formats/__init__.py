"""Checkpoint formats: read into names and lazy tensors, laid out into bytes. One door in: `open_checkpoint`."""

from ckpt_tools.formats.ckpt import check_crc, crc_trailer, layout_ckpt, read_ckpt
from ckpt_tools.formats.detect import open_checkpoint
from ckpt_tools.formats.iteration import (
    COMMON_FILE,
    METADATA_FILE,
    MODEL,
    OPTIMIZER,
    TRACKER_FILE,
    Chunk,
    GlobalTensor,
    Iteration,
    IterationLayout,
    RankFile,
    RankSlice,
    common_json,
    find_iteration,
    is_iteration,
    iteration_folder_name,
    layout_iteration,
    read_iteration,
    tracker_text,
)
from ckpt_tools.formats.model import Checkpoint, FileLayout, NamedTensor, Payload
from ckpt_tools.formats.safetensors import layout_safetensors, read_safetensors
from ckpt_tools.formats.sharded import index_json, index_name, plan_shards, read_folder, weights_name

__all__ = [
    "COMMON_FILE",
    "METADATA_FILE",
    "MODEL",
    "OPTIMIZER",
    "TRACKER_FILE",
    "Checkpoint",
    "Chunk",
    "FileLayout",
    "GlobalTensor",
    "Iteration",
    "IterationLayout",
    "NamedTensor",
    "Payload",
    "RankFile",
    "RankSlice",
    "check_crc",
    "common_json",
    "crc_trailer",
    "find_iteration",
    "index_json",
    "index_name",
    "is_iteration",
    "iteration_folder_name",
    "layout_ckpt",
    "layout_iteration",
    "layout_safetensors",
    "open_checkpoint",
    "plan_shards",
    "read_ckpt",
    "read_folder",
    "read_iteration",
    "read_safetensors",
    "tracker_text",
    "weights_name",
]
