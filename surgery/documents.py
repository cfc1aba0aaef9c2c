"""JSON and YAML files read strictly: what is ambiguous or hostile is an error, not a surprise."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from surgery.errors import CorruptInputError, InputMissingError, Problem

__all__ = ["read_json", "read_yaml"]

# An adapter's configuration is 2 KB, and a run YAML some 10 KB; PyYAML needs up to 12 seconds for a megabyte. In JSON
# each of the 70,000 matrices of a model of 10^12 parameters may have a rank and an alpha of its own, or another name.
_MAX_JSON_BYTES = 32 * 1024 * 1024
_MAX_YAML_BYTES = 512 * 1024
_MAX_NODES = 1_000_000
_MAX_DIGITS = 1000
_MAX_SHOWN = 300
_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputMissingError: There is no such file, or it may not be read.
        CorruptInputError: It is no JSON object, has a key twice, is nested too deeply or too large.
    """
    text = _read_text(path, _MAX_JSON_BYTES)
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _without_duplicates(path, pairs))
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # only an escape can smuggle in half a character
    except RecursionError as error:
        raise _corrupt(path, "JSON nested too deeply") from error
    except UnicodeEncodeError as error:
        raise _corrupt(path, "half a surrogate pair") from error
    except ValueError as error:
        raise _corrupt(path, f"no JSON ({_shown(str(error))})") from error
    if not isinstance(value, dict):
        raise CorruptInputError(Problem(str(path), f"a JSON {type(value).__name__}", "a JSON object"))
    return value


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping that a YAML file holds; only plain types, as with `yaml.safe_load`.

    Raises:
        InputMissingError: There is no such file, or it may not be read.
        CorruptInputError: It is no YAML mapping, has a key twice, asks for Python objects, is nested too deeply or
            too large, or becomes so by its aliases.
    """
    import yaml  # 20 ms that most runs need not spend

    class Loader(yaml.SafeLoader):
        """`SafeLoader` with merge keys (`<<`) as YAML defines them.

        What a mapping says itself comes before what it merges, and of that the first. PyYAML 6.0.4 takes the last of
        several merged mappings, 6.0.1 the first, and the former overrides keys of one letter by what is merged.
        """

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            own = [pair for pair in node.value if pair[0].tag != _MERGE]
            merged = []
            for source in (value for key, value in node.value if key.tag == _MERGE):
                for mapping in source.value if isinstance(source, yaml.SequenceNode) else [source]:
                    if not isinstance(mapping, yaml.MappingNode):
                        raise yaml.constructor.ConstructorError(
                            "while merging", node.start_mark, "expected a mapping", mapping.start_mark
                        )
                    self.flatten_mapping(mapping)
                    merged += mapping.value
            first = {(key.tag, str(key.value)): (key, value) for key, value in reversed([*own, *merged])}
            node.value = list(reversed(first.values()))
            super().flatten_mapping(node)

    text = _read_text(path, _MAX_YAML_BYTES)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise CorruptInputError(Problem(str(path), "an empty file", "a YAML mapping"))
        _check_nodes(path, node)
        value = loader.construct_document(node)
    except RecursionError as error:
        raise _corrupt(path, "YAML nested too deeply") from error
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # PyYAML lets through what its conversions raise: a KeyError of `!!bool x`, an AttributeError of `!!timestamp x`
        raise _corrupt(path, f"no plain YAML ({_shown(' '.join(str(error).split()))})") from error
    if not isinstance(value, dict):
        raise CorruptInputError(Problem(str(path), f"a YAML {type(value).__name__}", "a YAML mapping"))
    return value


def _read_text(path: str | os.PathLike[str], max_bytes: int) -> str:
    try:
        info = Path(path).stat()
        if not stat.S_ISREG(info.st_mode):
            raise CorruptInputError(Problem(str(path), "no regular file", "a configuration file"))
        if info.st_size > max_bytes:
            found = f"{info.st_size:,} bytes"
            raise CorruptInputError(Problem(str(path), found, f"a configuration of at most {max_bytes:,} bytes"))
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputMissingError(
            Problem(str(path), (error.strerror or str(error)).lower(), "a readable file", "Check the path")
        ) from error
    except UnicodeDecodeError as error:
        raise _corrupt(path, f"no UTF-8 text ({error.reason} at byte {error.start})") from error


def _without_duplicates(path: str | os.PathLike[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise CorruptInputError(Problem(str(path), f"key {_shown(repr(key))} twice", "each key once in an object"))
        result[key] = value
    return result


def _check_nodes(path: str | os.PathLike[str], root: Any) -> None:
    """Refuse what is twice in a mapping, or too large, before anything is made of the nodes.

    A node is shared by its aliases, so a few lines can stand for 10^9 nodes; and one may contain itself. They are
    counted with every alias written out, without writing one out. The time that a number takes grows with the square
    of its length: YAML counts `1:1:1` to the base of 60.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        known = sizes.get(id(node))
        if known is not None:
            return known
        if id(node) in open_nodes:
            raise CorruptInputError(
                Problem(str(path), "a YAML alias inside of what it stands for", "a finite document")
            )
        if node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
            raise _corrupt(path, f"a number of {len(node.value)} characters")
        open_nodes.add(id(node))
        children = node.value if isinstance(node.value, list) else []
        keys = Counter(child[0].value for child in children if isinstance(child, tuple) and _is_plain_key(child[0]))
        twice = [key for key, count in keys.items() if count > 1]
        if twice:
            where = f"{path}, line {node.start_mark.line + 1}"
            raise CorruptInputError(Problem(where, f"key {_shown(repr(twice[0]))} twice", "each key once in a mapping"))
        total = 1 + sum(size(part) for child in children for part in (child if isinstance(child, tuple) else (child,)))
        open_nodes.discard(id(node))
        if total > _MAX_NODES:
            raise CorruptInputError(
                Problem(
                    str(path), f"more than {_MAX_NODES} nodes with its aliases written out", "a run's configuration"
                )
            )
        sizes[id(node)] = total
        return total

    size(root)


def _is_plain_key(node: Any) -> bool:
    return isinstance(node.value, str) and node.value != "<<"


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _corrupt(path: str | os.PathLike[str], found: str) -> CorruptInputError:
    return CorruptInputError(Problem(str(path), found, "a configuration file"))
