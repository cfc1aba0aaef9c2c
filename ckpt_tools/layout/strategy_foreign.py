"""What a file is that is no strategy, and what to do about it.

MindSpore reads a weights `.ckpt` as a strategy without parameters, and then transforms nothing, without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from ckpt_tools.formats.ckpt import looks_like_ckpt
from ckpt_tools.formats.ckpt_wire import LENGTH, WireReader
from ckpt_tools.formats.recognise import read_file
from ckpt_tools.tensors.sources import Source
from surgery.errors import CorruptInputError, EncryptedInputError, Problem, UnknownFormatError

__all__ = [
    "EXPECTED",
    "GIVE_STRATEGY",
    "Foreign",
    "foreign_file",
    "foreign_json",
    "is_bystander_name",
    "looks_like_safetensors",
]

EXPECTED = "a strategy file of MindSpore, protobuf or JSON"

GIVE_STRATEGY = (
    "Give the strategy file that the training saved (MindFormers: the folder OUTPUT/strategy; MindSpore: "
    "AutoParallel.save_param_strategy_file)"
)

# What training and its scripts leave beside strategies: texts, and graphs.
_BYSTANDERS = (".txt", ".log", ".md", ".yaml", ".yml", ".csv", ".py", ".sh", ".pb", ".ir", ".dot")

# A key that tells a kind of JSON, and what has it.
_KINDS_OF_JSON = (
    ("weight_map", "the index of a sharded checkpoint"),
    ("server_list", "a rank table of HCCL"),
    ("state_dict_metadata", "the metadata of a Checkpoint 2.0"),
    ("model_type", "the configuration of a model"),
    ("peft_type", "the configuration of an adapter"),
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file that is no strategy.

    Attributes:
        problem: What it is, and what to do.
        is_bystander: Whether it may lie among strategy files, as it can neither be one nor be mistaken for one.
    """

    problem: Problem
    is_bystander: bool


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that begins so has a header of less than 4 GiB, as safetensors have it; a strategy never does."""
    return head[4:9] == b"\0\0\0\0{"


def is_bystander_name(path: str) -> bool:
    """Whether the name is that of a text or a graph, as they lie beside strategies."""
    return PurePath(path).suffix.lower() in _BYSTANDERS


def foreign_json(document: object, path: str) -> Foreign:
    """What a JSON file is that is no strategy.

    Args:
        document: Its value.
        path: The file.
    """
    found = "a JSON text without parallel_layout_item"
    if isinstance(document, dict):
        kinds = [kind for key, kind in _KINDS_OF_JSON if key in document]
        found = f"{kinds[0]} (JSON)" if kinds else found
    return Foreign(Problem(path, found, EXPECTED, GIVE_STRATEGY), is_bystander=True)


def foreign_file(source: Source, head: bytes) -> Foreign:
    """What a file is that is neither JSON nor a strategy.

    Args:
        source: The file.
        head: Its first bytes; 64 are plenty.
    """
    if _is_group_info(source, head):
        return Foreign(Problem(source.path, "communication groups (group_info)", EXPECTED, GIVE_STRATEGY), True)
    found = "the weights, not their strategy"
    if not (head.startswith(b"\x0a") and looks_like_ckpt(head)) and not looks_like_safetensors(head):
        try:
            read_file(source.path)
        except (UnknownFormatError, EncryptedInputError) as error:
            found = error.problems[0].found
        except CorruptInputError:
            found = f"the unknown bytes {head[:8].hex(' ')}"
    return Foreign(Problem(source.path, found, EXPECTED, GIVE_STRATEGY), is_bystander_name(source.path))


def _is_group_info(source: Source, head: bytes) -> bool:
    """Whether the file is MindSpore's `ParallelGroupMap`: it begins as a `.ckpt`, but with ranks for a tensor."""
    if not head.startswith(b"\x0a"):
        return False
    reader = WireReader(source)
    try:
        for outer in reader.fields(0, source.size):
            if outer.wire_type != LENGTH or outer.number not in (1, 2):
                return False
            if outer.number == 2:
                return True
            ranks = [field for field in reader.fields(outer.start, outer.stop) if field.number == 2]
            numbers = {field.number for part in ranks for field in reader.fields(part.start, part.stop)}
            if numbers != {1}:
                return False
    except CorruptInputError:
        return False
    return True
