"""The front door of strategies: a file or a folder of files of a pipeline's stages, recognised by what they hold."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ckpt_tools.formats.ckpt_values import ValueProblems
from ckpt_tools.formats.folder import WEIGHT_SUFFIXES, Listing, is_folder, list_folder
from ckpt_tools.formats.strict_json import MAX_JSON_BYTES
from ckpt_tools.layout.model import Strategy
from ckpt_tools.layout.strategy_facts import StrategyFacts
from ckpt_tools.layout.strategy_foreign import (
    EXPECTED,
    GIVE_STRATEGY,
    Foreign,
    foreign_file,
    foreign_json,
    is_bystander_name,
    looks_like_safetensors,
)
from ckpt_tools.layout.strategy_json import load_json, looks_like_json, looks_like_json_strategy, read_json_strategy
from ckpt_tools.layout.strategy_protobuf import looks_like_protobuf_strategy, read_protobuf_strategy
from ckpt_tools.layout.strategy_stages import check_devices, join_stages
from ckpt_tools.tensors.sources import Source, open_source, read_exactly
from surgery.errors import CorruptInputError, PetSurgeryError, Problem, UnknownFormatError

__all__ = ["is_strategy", "read_strategy"]

_HEAD_BYTES = 512
_CHUNK_BYTES = 2**20
_MAX_LISTED = 5


def read_strategy(path: str | os.PathLike[str]) -> Strategy:
    """Read how parameters lie on devices.

    Args:
        path: A strategy file, of one stage or merged; or a folder with the files of all stages, of which those of the
            same stage have to say the same. Each may be protobuf or JSON, whatever its name is.

    Raises:
        InputMissingError: The path is not there, or may not be read.
        CorruptInputError: A file is damaged or says what cannot be; all its problems are in the error.
        UnknownFormatError: There is something else than strategies; the error says what, and what to do.
        MismatchError: A stage is missing, files of one stage contradict each other, or stages differ in their devices.
    """
    path = Path(path)
    if is_folder(path):
        files = _read_folder(list_folder(path), path)
    else:
        source = open_source(path)
        facts = _read_file(source, _head_of(source))
        if isinstance(facts, Foreign):
            raise UnknownFormatError(facts.problem)
        files = [facts]
    stages = join_stages(files, str(path))
    return Strategy(path, stages, check_devices(stages, str(path)))


def is_strategy(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a strategy file by its content, or a folder that holds such files and no weights."""
    path = Path(path)
    try:
        if not is_folder(path):
            return _is_strategy_file(path)
        listing = list_folder(path)
        # Weights first: their folders hold tokenizers too, which are JSON of many megabytes.
        if not all(_is_strategy_file(path / name) for name in listing.with_suffix(*WEIGHT_SUFFIXES)):
            return False
        if any(name.startswith("rank_") for name in listing.folders):
            return False
        return any(_is_strategy_file(path / name) for name in listing.files)
    except PetSurgeryError:  # whoever opens it as something else says what is wrong
        return False


def _is_strategy_file(path: Path) -> bool:
    try:
        source = open_source(path)
        head = _head_of(source)
        if looks_like_json(head):
            return source.size <= MAX_JSON_BYTES and looks_like_json_strategy(load_json(source))
        return _looks_like_protobuf(head)
    except PetSurgeryError:
        return False


def _head_of(source: Source) -> bytes:
    return bytes(read_exactly(source, 0, min(source.size, _HEAD_BYTES)))


def _looks_like_protobuf(head: bytes) -> bool:
    return looks_like_protobuf_strategy(head) and not looks_like_safetensors(head)


def _read_file(source: Source, head: bytes) -> StrategyFacts | Foreign:
    if not head:
        raise CorruptInputError(Problem(source.path, "an empty file", EXPECTED, "Copy or save it again"))
    if looks_like_json(head):
        document = load_json(source)
        if looks_like_json_strategy(document):
            return read_json_strategy(document, source.path)
        return foreign_json(document, source.path)
    if _looks_like_protobuf(head):
        return read_protobuf_strategy(source)
    return foreign_file(source, head)


def _read_folder(listing: Listing, path: Path) -> list[StrategyFacts]:
    """The strategy files of a folder, each content once: the ranks of a stage mostly write the same bytes."""
    found: list[StrategyFacts] = []
    problems = ValueProblems()
    seen: set[bytes] = set()
    for name in listing.files:
        is_protobuf = False
        try:
            source = open_source(path / name)
            head = _head_of(source)
            is_protobuf = _looks_like_protobuf(head)
            if is_protobuf or looks_like_json(head):
                digest = _digest(source)
                if digest in seen:
                    continue
                seen.add(digest)
            facts = _read_file(source, head)
        except CorruptInputError as error:
            if is_protobuf or not is_bystander_name(name):
                problems.add(error)
        else:
            if isinstance(facts, StrategyFacts):
                found.append(facts)
            elif not facts.is_bystander:
                problems.add(UnknownFormatError(facts.problem))
        if problems.enough:
            break
    problems.raise_if_any()
    if not found:
        raise UnknownFormatError(_without_strategies(listing, path))
    return found


def _without_strategies(listing: Listing, path: Path) -> Problem:
    names = [*listing.files, *(f"{name}/" for name in listing.folders)]
    listed = ", ".join(names[:_MAX_LISTED]) + (" and more" if len(names) > _MAX_LISTED else "")
    if any(name.startswith("rank_") for name in listing.folders):
        return Problem(str(path), f"a checkpoint of rank folders ({listed})", EXPECTED, GIVE_STRATEGY)
    found = f"a folder without strategy files ({listed})" if names else "an empty folder"
    return Problem(str(path), found, EXPECTED, GIVE_STRATEGY)


def _digest(source: Source) -> bytes:
    digest = hashlib.sha256()
    for offset in range(0, source.size, _CHUNK_BYTES):
        digest.update(read_exactly(source, offset, min(_CHUNK_BYTES, source.size - offset)))
    return digest.digest()
