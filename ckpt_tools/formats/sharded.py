"""Folders of weights, read with or without an index; how they are written stands in `sharding`.

What is read: a Hugging Face folder (one file, or shards with `model.safetensors.index.json`), a PEFT folder, the full
weights of MindSpore's `unified_safetensors` (`part0.safetensors` ..., `param_name_map.json`, `hyper_param.safetensors`)
and of MindFormers (`mindspore_model-00001-of-00002.ckpt` ..., `mindspore_model.ckpt.index.json`), and plain shards.

An index must not contradict the shards. Where it is silent, they speak: a tensor that it does not list is read, with a
warning, since a loader that reads whole shards finds it too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.folder import (
    ADAPTER_CONFIG,
    WEIGHT_SUFFIXES,
    Listing,
    companions_of,
    list_folder,
    locate,
    natural_key,
)
from ckpt_tools.formats.index import NAME_MAP, Index, find_index, read_index
from ckpt_tools.formats.iteration.folder import TRACKER_FILE, has_metadata
from ckpt_tools.formats.model import Checkpoint
from ckpt_tools.formats.recognise import PICKLE_REMEDY, read_file
from ckpt_tools.formats.sharding import index_json, index_name, plan_shards, weights_name
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import CorruptInputError, InputMissingError, Problem, UnknownFormatError

__all__ = ["index_json", "index_name", "plan_shards", "read_folder", "weights_name"]

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_HYPER_PARAMETERS = "hyper_param.safetensors"
_NUMBERED = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})(\..+)")
_RANK_FOLDER = re.compile(r"rank_?\d+")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl")
_MAX_PROBLEMS = 20


def read_folder(path: str | os.PathLike[str], index_file: str | None = None) -> Checkpoint:
    """The tensors of a folder's weights; only headers are read.

    Args:
        path: The folder.
        index_file: The name of the index to go by, where the folder has several.

    Raises:
        InputMissingError: The folder or a shard is not there.
        CorruptInputError: A shard or the index breaks its format, or they contradict each other.
        UnknownFormatError: The folder holds no weights that are read, or several kinds of them.
    """
    listing = list_folder(path)
    _refuse_checkpoint_2(listing, path)
    index = read_index(listing.root, index_file) if index_file is not None else find_index(listing)
    if index_file is None:
        _refuse_mixed_adapter(listing, path)
    files = _choose_unindexed(listing, path) if index is None else _shards_of(index, listing)
    named_by = "its folder" if index is None else str(index.path)
    shards = {name: read_file(locate(listing.root, name, named_by)) for name in sorted(set(files), key=natural_key)}
    formats = {shard.format for shard in shards.values()}
    if len(formats) > 1:
        raise UnknownFormatError(_several_kinds(path, files))

    tensors, holders = _join(shards, index)
    companions, warnings = companions_of(listing)
    warnings += [warning for shard in shards.values() for warning in shard.warnings]
    if index is not None:
        warnings += _compare_with_index(listing, index, tensors, holders, shards)
    adapter_config = locate(listing.root, ADAPTER_CONFIG, "its folder") if ADAPTER_CONFIG in listing.files else None
    return Checkpoint(
        path=Path(path),
        format=formats.pop() if formats else "safetensors",
        is_folder=True,
        tensors=tensors,
        shards=holders,
        metadata=_common_metadata(shards.values()) | dict(index.metadata if index else {}),
        sources=tuple(source for shard in shards.values() for source in shard.sources),
        crc={source: crc for shard in shards.values() for source, crc in shard.crc.items()},
        companions=companions,
        adapter_config=adapter_config,
        warnings=tuple(warnings),
    )


def _refuse_checkpoint_2(listing: Listing, path: str | os.PathLike[str]) -> None:
    kind = None
    if TRACKER_FILE in listing.files:
        kind = "MindFormers' Checkpoint 2.0 with its iterations"
    elif has_metadata(listing):
        kind = "an iteration of MindFormers' Checkpoint 2.0"
    if kind is not None:
        raise UnknownFormatError(
            Problem(str(path), kind, "a full checkpoint", "pet-transform makes one of it, and pet-merge reads it")
        )


def _refuse_mixed_adapter(listing: Listing, path: str | os.PathLike[str]) -> None:
    """A model and an adapter in one folder: which of them is meant cannot be told."""
    files = listing.with_suffix(*WEIGHT_SUFFIXES)
    if _ADAPTER_WEIGHTS in files and len(files) > 1:
        raise UnknownFormatError(_several_kinds(path, files))


def _choose_unindexed(listing: Listing, path: str | os.PathLike[str]) -> list[str]:
    """The weights of a folder without an index."""
    files = listing.with_suffix(*WEIGHT_SUFFIXES)
    if not files:
        raise UnknownFormatError(_no_weights(listing, path))
    _check_numbers(files, path)
    return files


def _shards_of(index: Index, listing: Listing) -> list[str]:
    """The files that an index names; MindSpore keeps what a strategy does not describe in one more."""
    files = list(index.weight_map.values())
    if index.path.name == NAME_MAP and _HYPER_PARAMETERS in listing.files:
        files.append(_HYPER_PARAMETERS)
    return files


def _no_weights(listing: Listing, path: str | os.PathLike[str]) -> Problem:
    expected = "weights: *.safetensors or *.ckpt"
    ranks = [name for name in listing.folders if _RANK_FOLDER.fullmatch(name)]
    if ranks:
        return Problem(
            str(path),
            f"the weights of {len(ranks)} ranks ({ranks[0]} ...)",
            expected,
            "They are slices, which need a strategy file to be put together: pet-transform does so",
        )
    pickles = listing.with_suffix(*_PICKLE_SUFFIXES)
    if pickles:
        return Problem(str(path), f"pickles only ({pickles[0]})", expected, PICKLE_REMEDY)
    names = [*listing.files, *(f"{name}/" for name in listing.folders)]
    shown = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
    return Problem(str(path), f"a folder with {shown}" if names else "an empty folder", expected)


def _several_kinds(path: str | os.PathLike[str], files: Iterable[str]) -> Problem:
    shown = ", ".join(sorted(set(files), key=natural_key)[:8])
    return Problem(str(path), f"several kinds of weights: {shown}", "one", "Pass one of the files, or an index")


def _check_numbers(files: Iterable[str], path: str | os.PathLike[str]) -> None:
    """Refuse a gap in `x-00001-of-00003.safetensors` ...: without an index nothing else would tell."""
    series: dict[tuple[str, int, str], set[int]] = {}
    for name in files:
        if match := _NUMBERED.fullmatch(name):
            series.setdefault((match[1], int(match[3]), match[4]), set()).add(int(match[2]))
    for (stem, count, suffix), numbers in series.items():
        if len(numbers) < count:
            missing = next(number for number in range(1, count + 2) if number not in numbers)
            raise InputMissingError(
                Problem(
                    str(path),
                    f"{len(numbers)} of them, the first that lacks being number {missing}",
                    f"{count} files {stem}-NNNNN-of-{count:05d}{suffix}",
                    "Fetch the rest",
                )
            )


def _join(shards: Mapping[str, Checkpoint], index: Index | None) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """All tensors, and the file that holds each.

    Raises:
        CorruptInputError: Two files hold one tensor, or the index has it in another file, or in none.
    """
    tensors: dict[str, LazyTensor] = {}
    holders: dict[str, str] = {}
    problems = []
    for file, shard in shards.items():
        repeated: dict[str, list[str]] = {}
        for name, tensor in shard.tensors.items():
            if name in holders:
                repeated.setdefault(holders[name], []).append(name)
            tensors[name] = tensor
            holders[name] = file
        # Files of several steps, or of two formats, have all of their tensors in common.
        for other, names in repeated.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            place = f"{shard.path.parent}, tensor {quote_name(names[0])}{more}"
            found = f"it in {other} and in {file}"
            problems.append(Problem(place, found, "it in one file", "Pass the file that is meant"))
    if index is not None:
        for name, file in index.weight_map.items():
            if name not in shards[file].tensors:
                found = f"it in {holders[name]}" if name in holders else "it in no shard"
                problems.append(
                    Problem(f"{index.path}, tensor {quote_name(name)}", found, f"it in {file}", "Mend the index")
                )
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [Problem("further", f"{len(problems) - _MAX_PROBLEMS} tensors of this kind")]
    if problems:
        raise CorruptInputError(problems)
    return tensors, holders


def _compare_with_index(
    listing: Listing,
    index: Index,
    tensors: Mapping[str, LazyTensor],
    holders: Mapping[str, str],
    shards: Mapping[str, Checkpoint],
) -> list[str]:
    """A warning for each harmless difference between an index and the folder."""
    warnings = []
    unlisted = [name for name in tensors if name not in index.weight_map and holders[name] != _HYPER_PARAMETERS]
    if unlisted:
        warnings.append(
            f"{index.path}: {len(unlisted)} tensors of its shards are not in it, such as {quote_name(unlisted[0])}"
        )
    total_size = sum(tensor.nbytes for name, tensor in tensors.items() if holders[name] != _HYPER_PARAMETERS)
    if index.total_size is not None and index.total_size != total_size:
        warnings.append(f"{index.path}: its total_size is {index.total_size}, its tensors are {total_size} bytes")
    ignored = [name for name in listing.with_suffix(*WEIGHT_SUFFIXES) if name not in shards]
    if ignored:
        warnings.append(f"{index.path}: it does not name {', '.join(ignored[:5])}, which is ignored")
    return warnings


def _common_metadata(shards: Iterable[Checkpoint]) -> dict[str, str]:
    """What all shards say, e.g. `{"format": "pt"}`, which transformers wants to find in each of them."""
    common: dict[str, str] | None = None
    for shard in shards:
        same = shard.metadata.items() if common is None else common.items() & shard.metadata.items()
        common = dict(sorted(same)) if common is not None else dict(same)
    return common or {}
