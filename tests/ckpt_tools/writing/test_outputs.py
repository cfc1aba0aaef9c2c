"""Which files an output has, what they are called, and what the files beside the weights then say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from folders import ONE, TWO, write_two_shards
from hostile import small_file

from ckpt_tools import open_checkpoint
from ckpt_tools.formats import Checkpoint
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.views import Constant
from ckpt_tools.writing.outputs import Changes, OutputOptions, default_output, plan_output
from ckpt_tools.writing.plan import OutputBytes, OutputCopy, OutputFile, Plan
from surgery.errors import CorruptInputError, UsageError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of three tensors, and other files."""
    (tmp_path / "base").mkdir()
    write_two_shards(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"torch_dtype": "float32", "who": "größer"}', encoding="utf-8")
    (tmp_path / "base" / "tokenizer.json").write_bytes(b"\xff\x00")
    return tmp_path / "base"


def single(tmp_path: Path, name: str, metadata: Mapping[str, str] | None = None) -> Checkpoint:
    (tmp_path / name).write_bytes(small_file({"a": np.ones(2), "b": np.ones(3)}, metadata))
    return open_checkpoint(tmp_path / name)


def plan(
    base: Checkpoint,
    path: str = "out",
    changes: Changes | None = None,
    tensors: list[NamedTensor] | None = None,
    **options: object,
) -> Plan:
    tensors = list(base.tensors.items()) if tensors is None else tensors
    return plan_output(base, tensors, OutputOptions(Path(path), **options), changes or Changes())  # type: ignore[arg-type]


def held(planned: Plan) -> dict[str, list[str]]:
    """Name of a file to the tensors in it."""
    return {file.name: [name for name, _ in file.tensors] for file in planned.files()}


def others(planned: Plan) -> list[str]:
    return [entry.name for entry in planned.entries if not isinstance(entry, OutputFile)]


def small(planned: Plan, name: str) -> dict[str, object]:
    (entry,) = (entry for entry in planned.entries if entry.name == name)
    assert isinstance(entry, OutputBytes)
    assert entry.data.endswith(b"\n")
    return json.loads(entry.data)


def tensor(count: int) -> Constant:
    array = np.zeros(count, np.float32)
    return Constant(array, dtype_of(array))


def test_a_folder_keeps_its_shards_its_other_files_and_their_order(folder: Path) -> None:
    base = open_checkpoint(folder)
    planned = plan(base)
    assert planned.is_folder
    assert held(planned) == {ONE: ["a", "b"], TWO: ["c"]}
    assert others(planned) == ["config.json", "tokenizer.json", INDEX], "what makes a folder complete comes last"
    assert all(isinstance(entry, OutputCopy) for entry in planned.entries[2:4])
    index = small(planned, INDEX)
    assert index["weight_map"] == {"a": ONE, "b": ONE, "c": TWO}
    assert index["metadata"] == {"total_size": 24, "format": "pt"}


def test_a_shard_that_nothing_is_left_of_is_left_out_and_what_is_new_goes_to_the_last(folder: Path) -> None:
    base = open_checkpoint(folder)
    kept = [(name, tensor) for name, tensor in base.tensors.items() if name != "c"]
    assert held(plan(base, tensors=kept)) == {ONE: ["a", "b"]}
    more = [*base.tensors.items(), ("head", tensor(1))]
    assert held(plan(base, tensors=more)) == {ONE: ["a", "b"], TWO: ["c", "head"]}


def test_renamed_tensors_stay_in_their_shards(folder: Path) -> None:
    base = open_checkpoint(folder)
    renamed = [({"a": "x", "c": "a"}.get(name, name), tensor) for name, tensor in base.tensors.items()]
    planned = plan(base, tensors=renamed, changes=Changes(renamed={"x": "a", "a": "c"}))
    assert held(planned) == {ONE: ["x", "b"], TWO: ["a"]}


@pytest.mark.parametrize(("format", "stem"), [("safetensors", "model"), ("ckpt", "mindspore_model")])
def test_a_size_makes_shards_and_names_anew(folder: Path, format: str, stem: str) -> None:
    base = open_checkpoint(folder)
    planned = plan(base, format=format, max_shard_bytes=8)
    names = [f"{stem}-0000{n}-of-00003.{format}" for n in (1, 2, 3)]
    assert held(planned) == dict(zip(names, [["a"], ["b"], ["c"]], strict=True))
    assert others(planned)[-1] == f"{stem}.{format}.index.json"
    planned = plan(base, format=format, max_shard_bytes=1000)
    assert held(planned) == {f"{stem}.{format}": ["a", "b", "c"]}
    assert others(planned) == ["config.json", "tokenizer.json"], "a single file needs no index"


def test_another_format_has_the_names_that_its_loaders_look_for(folder: Path) -> None:
    assert held(plan(open_checkpoint(folder), format="ckpt")) == {"mindspore_model.ckpt": ["a", "b", "c"]}


def test_a_single_file_becomes_a_folder_where_the_output_has_no_suffix(tmp_path: Path) -> None:
    planned = plan(single(tmp_path, "base.safetensors"), "Llama-3.1-8B")
    assert planned.is_folder
    assert held(planned) == {"model.safetensors": ["a", "b"]}
    assert others(planned) == []


@pytest.mark.parametrize(
    ("output", "format"), [("x.ckpt", "ckpt"), ("x.safetensors", "safetensors"), ("x.CKPT", "ckpt")]
)
def test_a_suffix_makes_one_file_of_its_format(folder: Path, output: str, format: str) -> None:
    planned = plan(open_checkpoint(folder), output)
    assert not planned.is_folder
    (file,) = planned.entries
    assert isinstance(file, OutputFile)
    assert (file.name, file.format) == (output, format)
    assert plan(open_checkpoint(folder), output, format=format) == planned


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("x.ckpt", {"format": "safetensors"}, "--format: expected ckpt, as in x.ckpt"),
        ("x.ckpt", {"max_shard_bytes": 10}, "--max-shard-size: expected a folder"),
        ("x.bin", {}, "suffix .bin"),
        ("x.PTH", {}, "suffix .pth"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    folder: Path, output: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan(open_checkpoint(folder), output, **options)


def metadata(planned: Plan) -> Mapping[str, str]:
    first = next(planned.files()).metadata
    assert all(file.metadata == first for file in planned.files())
    return first


def test_metadata_is_kept_extended_and_says_what_loaders_ask_for(tmp_path: Path, folder: Path) -> None:
    base = single(tmp_path, "base.safetensors", {"who": "me", "total_size": "5"})
    changes = Changes(metadata={"by": "us"})
    assert metadata(plan(base, changes=changes)) == {"format": "pt", "who": "me", "by": "us"}
    base = single(tmp_path, "base.safetensors", {"format": "ms"})
    assert metadata(plan(base)) == {"format": "ms"}
    assert metadata(plan(base, "x.ckpt", changes)) == {}, "a .ckpt has no place for it"
    planned = plan(open_checkpoint(folder), changes=changes)
    assert metadata(planned)["by"] == "us"


def test_a_ckpt_that_becomes_safetensors_says_that_it_is_mindspores(tmp_path: Path) -> None:
    base = single(tmp_path, "base.safetensors")
    ckpt = Checkpoint(base.path, "ckpt", False, base.tensors)
    assert metadata(plan(ckpt, "x.safetensors")) == {"format": "ms"}


@pytest.mark.parametrize(("output", "expected"), [("x.ckpt", True), ("x.safetensors", False), ("out", True)])
def test_a_crc_is_kept_in_the_format_that_has_one(tmp_path: Path, output: str, expected: bool) -> None:
    base = single(tmp_path, "base.safetensors")
    with_crc = Checkpoint(base.path, "ckpt", False, base.tensors, crc={base.sources[0]: 1})
    assert [file.crc for file in plan(with_crc, output).files()] == [expected]
    assert not any(file.crc for file in plan(base, "x.ckpt").files())


def test_a_configuration_is_changed_where_it_has_to_be_and_else_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = Changes(config={"torch_dtype": "float16", "tie_word_embeddings": False})
    monkeypatch.setenv("LC_ALL", "C")
    changed = small(plan(open_checkpoint(folder), changes=changes), "config.json")
    assert changed == {"torch_dtype": "float16", "who": "größer", "tie_word_embeddings": False}
    assert list(changed)[:2] == ["torch_dtype", "who"]


def test_a_configuration_with_a_byte_order_mark_is_read(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert small(plan(open_checkpoint(folder), changes=Changes(config={"b": 2})), "config.json") == {"a": 1, "b": 2}


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"a": 1, "a": 2}'])
def test_a_configuration_that_is_none_is_told(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CorruptInputError, match=r"config\.json"):
        plan(open_checkpoint(folder), changes=Changes(config={"b": 2}))


def test_a_single_output_has_no_companions(folder: Path) -> None:
    assert others(plan(open_checkpoint(folder), "x.ckpt", Changes(config={"b": 2}))) == []


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("base.safetensors", "keep", "base-merged.safetensors"),
        ("base.v2.safetensors", "keep", "base.v2-merged.safetensors"),
        ("base.safetensors", "ckpt", "base-merged.ckpt"),
        ("base.bin", "keep", "base-merged.safetensors"),
        ("base", "keep", "base-merged.safetensors"),
        ("base.ckpt", "keep", "base-merged.ckpt"),
    ],
)
def test_by_default_the_output_is_named_after_the_base(tmp_path: Path, name: str, format: str, expected: str) -> None:
    assert default_output(single(tmp_path, name), format, "merged") == Path(expected)


def test_by_default_a_folder_becomes_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_output(open_checkpoint(folder), "ckpt", "merged") == Path("base-merged")
    monkeypatch.chdir(folder)
    assert default_output(open_checkpoint("."), "keep", "merged") == Path("base-merged")
