"""The JSON that says which file of a folder holds which tensor: Hugging Face's index, MindSpore's name map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.folder import Listing, locate
from ckpt_tools.formats.strict_json import MAX_JSON_BYTES, parse_json
from ckpt_tools.tensors.sources import open_source, read_exactly
from surgery.errors import CorruptInputError, Problem, UnknownFormatError

__all__ = ["INDEX_SUFFIX", "NAME_MAP", "Index", "find_index", "read_index"]

INDEX_SUFFIX = ".index.json"

NAME_MAP = "param_name_map.json"
"""What `mindspore.unified_safetensors` (with a `weight_map`) and MindFormers (flat) write instead of an index."""

# The indexes of torch's, TensorFlow's and flax's shards; repositories often hold them beside that of safetensors.
_FOREIGN_INDEXES = (".bin.index.json", ".h5.index.json", ".msgpack.index.json")


@dataclass(frozen=True, slots=True)
class Index:
    """A parsed index.

    Attributes:
        path: The file it was read from.
        weight_map: Tensor name to the name of its file, relative to the folder.
        total_size: Bytes of all tensors, as it claims, even where that is no number; None where it does not say.
        metadata: The other entries of its metadata, those that are no strings as JSON.
    """

    path: Path
    weight_map: Mapping[str, str]
    total_size: float | str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def find_index(listing: Listing) -> Index | None:
    """The one index of a folder, if it has one.

    MindFormers leaves a name map of *its* names beside a Hugging Face index, so the index counts where there are both.

    Raises:
        UnknownFormatError: There are several.
        CorruptInputError: One breaks its format.
    """
    names = [name for name in listing.with_suffix(INDEX_SUFFIX) if not name.lower().endswith(_FOREIGN_INDEXES)]
    indexes = [index for name in names if (index := _read(listing.root, name)) is not None]
    if len(indexes) > 1:
        found = ", ".join(index.path.name for index in indexes)
        raise UnknownFormatError(Problem(str(listing.root), f"the indexes {found}", "one", "Pass one of them as PATH"))
    if not indexes and NAME_MAP in listing.files:
        return read_index(listing.root, NAME_MAP)
    return indexes[0] if indexes else None


def read_index(root: Path, name: str) -> Index:
    """The index of this name.

    Raises:
        CorruptInputError: It breaks its format, or has no map of weights.
    """
    index = _read(root, name)
    if index is None:
        raise CorruptInputError(Problem(str(root / name), "no weight_map", "an object of tensor and file names"))
    return index


def _read(root: Path, name: str) -> Index | None:
    """The index, or None for a JSON object without a `weight_map`."""
    path = locate(root, name, "its folder")
    source = open_source(path)
    if source.size > MAX_JSON_BYTES:
        found, expected = f"{source.size:,} bytes", f"an index of at most {MAX_JSON_BYTES:,}"
        raise CorruptInputError(Problem(str(path), found, expected))
    document = parse_json(read_exactly(source, 0, source.size), str(path))
    if not isinstance(document, dict):
        raise CorruptInputError(Problem(str(path), "no JSON object", "one with a weight_map"))
    weight_map: object = document.get("weight_map")
    if weight_map is None and name == NAME_MAP:
        weight_map, document = document, {}
    if weight_map is None:
        return None
    metadata = document.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise CorruptInputError(Problem(f"{path}, metadata", "something else", "a JSON object"))
    total_size = metadata.pop("total_size", None)
    return Index(
        path,
        _check_weight_map(weight_map, path),
        # Some writers make a float of it.
        total_size if isinstance(total_size, int | float | None) else quote_name(_as_string(total_size, path)),
        {key: _as_string(value, path) for key, value in metadata.items()},
    )


def _as_string(value: object, path: Path) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except RecursionError:  # writing goes a little deeper than reading
        raise CorruptInputError(Problem(f"{path}, metadata", "JSON nested too deep", "a few levels")) from None


def _check_weight_map(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise CorruptInputError(
            Problem(f"{path}, weight_map", "nothing of the kind", "an object of tensor and file names")
        )
    for name, file in value.items():
        if not isinstance(file, str):
            raise CorruptInputError(
                Problem(f"{path}, weight_map, {quote_name(name)}", "no string", "the name of a file")
            )
    # `./a` and `a` are one file; and a file's name is one string, however many tensors it holds.
    files = {file: str(PurePosixPath(file)) if file else file for file in value.values()}
    return {name: files[file] for name, file in value.items()}
