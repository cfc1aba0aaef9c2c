"""Checkpoint formats: read into names and lazy tensors, laid out into bytes. One door in: `open_checkpoint`."""

from ckpt_tools.formats.ckpt import check_crc, crc_trailer, layout_ckpt, read_ckpt
from ckpt_tools.formats.detect import open_checkpoint
from ckpt_tools.formats.model import Checkpoint, FileLayout, NamedTensor, Payload
from ckpt_tools.formats.safetensors import layout_safetensors, read_safetensors
from ckpt_tools.formats.sharded import index_json, index_name, plan_shards, read_folder, weights_name

__all__ = [
    "Checkpoint",
    "FileLayout",
    "NamedTensor",
    "Payload",
    "check_crc",
    "crc_trailer",
    "index_json",
    "index_name",
    "layout_ckpt",
    "layout_safetensors",
    "open_checkpoint",
    "plan_shards",
    "read_ckpt",
    "read_folder",
    "read_safetensors",
    "weights_name",
]
