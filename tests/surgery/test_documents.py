"""Configuration files that are broken or hostile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.documents import read_json, read_yaml
from surgery.errors import CorruptInputError, InputMissingError

Reader = Callable[[Path], dict[str, Any]]
both = pytest.mark.parametrize("read", [read_json, read_yaml])

BOMB = "\n".join(["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)])
MERGE_BOMB = "\n".join(["a0: &a0 {k0: 1}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)])


def corrupt(tmp_path: Path, read: Reader, content: str | bytes) -> str:
    path = tmp_path / "file"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CorruptInputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@both
def test_a_missing_file_is_missing(tmp_path: Path, read: Reader) -> None:
    with pytest.raises(InputMissingError, match="no such file"):
        read(tmp_path / "file")


@both
def test_a_pipe_or_folder_is_refused_without_waiting(tmp_path: Path, read: Reader) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(CorruptInputError, match="no regular file"):
            read(path)


@both
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"a": "\x80"}', b"[1]", b"1", b"{", b"\x00"])
def test_what_is_no_object_is_corrupt(tmp_path: Path, read: Reader, content: bytes) -> None:
    corrupt(tmp_path, read, content)


@both
def test_a_duplicate_key_is_corrupt(tmp_path: Path, read: Reader) -> None:
    assert "key 'r' twice" in corrupt(tmp_path, read, '{"a": {"r": 1, "r": 1}}')


@both
def test_deep_nesting_is_corrupt(tmp_path: Path, read: Reader) -> None:
    assert "nested too deeply" in corrupt(tmp_path, read, '{"a":' + "[" * 100_000 + "]" * 100_000 + "}")


@both
def test_a_huge_file_is_corrupt(tmp_path: Path, read: Reader) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CorruptInputError, match="at most"):
        read(path)


@pytest.mark.parametrize("content", ["a: !!python/object/apply:os.system [true]", "a: !!python/name:os.system ''"])
def test_python_objects_in_yaml_are_corrupt(tmp_path: Path, content: str) -> None:
    assert "no plain YAML" in corrupt(tmp_path, read_yaml, content)


@pytest.mark.parametrize("content", [BOMB, MERGE_BOMB], ids=["aliases", "merge keys"])
def test_an_alias_bomb_is_corrupt(tmp_path: Path, content: str) -> None:
    assert "aliases written out" in corrupt(tmp_path, read_yaml, content)


def test_an_alias_inside_of_itself_is_corrupt(tmp_path: Path) -> None:
    assert "alias inside" in corrupt(tmp_path, read_yaml, "a: &a [*a]")


def test_aliases_and_merge_keys_of_ordinary_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("base: &b {r: 1, s: 2}\nuse: {<<: *b, r: 3}\nagain: *b\n")
    assert read_yaml(path) == {"base": {"r": 1, "s": 2}, "use": {"r": 3, "s": 2}, "again": {"r": 1, "s": 2}}


@pytest.mark.parametrize("key", ["a", "lora_rank", "1"])
def test_merge_keys_mean_what_yaml_says_in_every_version_of_pyyaml(tmp_path: Path, key: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"base: &b {{{key}: 1}}\n"
        f"outer:\n  derived: &d\n    <<: *b\n    {key}: 3\n"
        "merged:\n  <<: *d\n"
        "first: {<<: [*d, *b]}\n"
        "nested: {<<: [{<<: *b}, *d], =: 2}\n"
    )
    name = int(key) if key.isdigit() else key
    assert read_yaml(path) == {
        "base": {name: 1},
        "outer": {"derived": {name: 3}},
        "merged": {name: 3},
        "first": {name: 3},
        "nested": {name: 1, "=": 2},
    }


@pytest.mark.parametrize("content", ["a: {<<: 1}", "a: {<<: [{b: 1}, 2]}", "a: {<<: [[{b: 1}]]}"])
def test_what_is_merged_has_to_be_a_mapping(tmp_path: Path, content: str) -> None:
    assert "expected a mapping" in corrupt(tmp_path, read_yaml, content)


def test_a_duplicate_key_is_found_in_what_is_merged_alone(tmp_path: Path) -> None:
    message = corrupt(tmp_path, read_yaml, "a:\n  <<: {r: 1, r: 2}\n")
    assert "line 2" in message
    assert "key 'r' twice" in message


def test_several_yaml_documents_are_corrupt(tmp_path: Path) -> None:
    corrupt(tmp_path, read_yaml, "a: 1\n---\na: 2\n")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"r": 1}')
    assert read_json(path) == {"r": 1}


@pytest.mark.parametrize(
    "value", ["!!bool x", "!!timestamp x", "!!int ''", "!!float ''", "!!int 0x", "!!float 1:" + ":".join(["59"] * 300)]
)
def test_a_yaml_value_that_is_none_of_its_tag_is_corrupt(tmp_path: Path, value: str) -> None:
    assert "no plain YAML" in corrupt(tmp_path, read_yaml, f"a: {value}")


def test_a_number_to_the_base_of_60_that_would_take_hours_is_corrupt(tmp_path: Path) -> None:
    assert "a number of 400001 characters" in corrupt(tmp_path, read_yaml, "a: 1" + ":1" * 200_000)


def test_half_a_surrogate_pair_is_corrupt(tmp_path: Path) -> None:
    assert "half a surrogate pair" in corrupt(tmp_path, read_json, r'{"a": ["\ud800"]}')
    path = tmp_path / "config.json"
    path.write_text(r'{"a": "\ud83d\ude00"}')
    assert read_json(path) == {"a": "\U0001f600"}


@both
def test_a_long_key_does_not_make_a_long_message(tmp_path: Path, read: Reader) -> None:
    key = "k" * 10_000
    assert (
        len(corrupt(tmp_path, read, f'{{? "{key}": 1, ? "{key}": 1}}'.replace("? ", "" if read is read_json else "? ")))
        < 2000
    )
