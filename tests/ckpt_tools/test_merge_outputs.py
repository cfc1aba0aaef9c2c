"""Where the output goes, in which form, and what comes along."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
from merge_cases import (
    VOCABULARY,
    Arrays,
    add_crc,
    assert_all_merged,
    contents,
    factors,
    hugging_face,
    hugging_face_name,
    llama,
    mindpet,
    peft,
    random,
    read,
    save,
    tree,
    updates,
    write,
    write_folder,
    write_peft,
)

from ckpt_tools import MergeReport, merge, open_checkpoint
from ckpt_tools.fingerprint import fingerprint
from surgery.errors import CorruptInputError, MismatchError, OutputExistsError, UsageError

BASE = llama()
PAIRS = factors()
TERMS = updates(PAIRS, 2.0)
HF_TERMS = {hugging_face_name(name): update for name, update in TERMS.items()}

Merge = Callable[..., MergeReport]


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Merge:
    """Merge `tmp_path`'s adapter into a base there, from an empty working folder beside them."""
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda base, **options: merge(tmp_path / base, tmp_path / "lora.ckpt", alpha=8, **options)


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hf_folder(folder: Path, shards: int = 2, **config: object) -> Path:
    write_folder(folder, hugging_face(BASE), shards=shards)
    known = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "note": "größer"}
    (folder / "config.json").write_text(json.dumps(known | config, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(b"\x00tokens")
    (folder / "README.md").write_text("a model")
    return folder


@pytest.mark.parametrize(
    ("base", "options", "name"),
    [
        ("base.ckpt", {}, "base-merged.ckpt"),
        ("base.safetensors", {}, "base-merged.safetensors"),
        ("base.v2.ckpt", {}, "base.v2-merged.ckpt"),
        ("base.ckpt", {"format": "safetensors"}, "base-merged.safetensors"),
        ("base.safetensors", {"format": "ckpt"}, "base-merged.ckpt"),
        ("folder-ckpt", {}, "folder-ckpt-merged"),
        ("folder-safetensors", {"format": "ckpt"}, "folder-safetensors-merged"),
    ],
)
def test_the_output_lies_in_the_working_folder_and_is_named_after_the_base(
    tmp_path: Path, merged: Merge, base: str, options: dict[str, str], name: str
) -> None:
    write(tmp_path / base, BASE)
    report = merged(base, **options)
    assert names_of(tmp_path / "work") == [name]
    assert report.output == name
    assert open_checkpoint(name).format == report.format
    assert_all_merged(Path(name), BASE, TERMS)


def test_a_base_with_an_unknown_suffix_gets_that_of_its_content(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE).rename(tmp_path / "base.bin")
    merged("base.bin")
    assert names_of(tmp_path / "work") == ["base-merged.ckpt"]


def test_the_output_of_the_working_folder_itself_has_that_folders_name(
    tmp_path: Path, merged: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hf_folder(tmp_path / "llama"))
    report = merge(".", tmp_path / "lora.ckpt", alpha=8)
    assert report.output == "llama-merged"
    assert_all_merged(Path("llama-merged"), hugging_face(BASE), HF_TERMS)
    assert_all_merged(Path(), hugging_face(BASE), {})


@pytest.mark.parametrize("base", ["base.ckpt", "base.safetensors", "base-ckpt", "base-safetensors"])
@pytest.mark.parametrize("output", ["out.ckpt", "out.safetensors", "out"])
def test_the_suffix_of_the_output_chooses_its_format(tmp_path: Path, merged: Merge, base: str, output: str) -> None:
    write(tmp_path / base, BASE)
    report = merged(base, output=output)
    path = Path(output)
    assert path.is_dir() == (path.suffix == "")
    base_format = "ckpt" if "ckpt" in base else "safetensors"
    assert report.format == open_checkpoint(path).format == (path.suffix[1:] or base_format)
    assert_all_merged(path, BASE, TERMS)


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
def test_a_folder_in_the_other_format_has_the_names_that_loaders_look_for(
    tmp_path: Path, merged: Merge, format: str
) -> None:
    write_folder(tmp_path / "base", BASE, suffix=".safetensors" if format == "ckpt" else ".ckpt")
    merged("base", output="out", format=format, max_shard_size=3000)
    stem = {"ckpt": "mindspore_model", "safetensors": "model"}[format]
    files = names_of(Path("out"))
    assert files.pop(files.index(f"{stem}.{format}.index.json"))
    assert len(files) > 2
    assert files == [f"{stem}-{n:05}-of-{len(files):05}.{format}" for n in range(1, len(files) + 1)]
    assert_all_merged(Path("out"), BASE, TERMS)


def test_a_folder_keeps_its_shards_and_the_index_counts_bytes(tmp_path: Path, merged: Merge) -> None:
    base = hf_folder(tmp_path / "base", shards=3)
    merged("base", output="out")
    before, after = (json.loads((p / "model.safetensors.index.json").read_text()) for p in (base, Path("out")))
    assert after["weight_map"] == before["weight_map"]
    assert after["metadata"]["total_size"] == sum(array.nbytes for array in BASE.values())


def test_a_cast_doubles_what_the_index_counts_and_the_configuration_says_the_type(
    tmp_path: Path, merged: Merge
) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output="out", dtype="fp32")
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(array.nbytes for array in BASE.values())
    config = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert config == {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "note": "größer"}


@pytest.mark.parametrize("size", [1, 1000, 2500, "3KB", "1GB"])
def test_shards_are_as_large_as_they_may_be(tmp_path: Path, merged: Merge, size: int | str) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output="out", max_shard_size=size)
    limit = {"3KB": 3000, "1GB": 10**9}.get(str(size), size)
    files = sorted(Path("out").glob("*.safetensors"))
    sizes = [sum(array.nbytes for array in read(path).values()) for path in files]
    assert all(held <= int(limit) or len(read(path)) == 1 for held, path in zip(sizes, files, strict=True))
    if size == "1GB":
        assert [path.name for path in files] == ["model.safetensors"]
        assert not Path("out/model.safetensors.index.json").exists()
    else:
        index = json.loads(Path("out/model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(sizes)
        assert set(index["weight_map"].values()) == {path.name for path in files}
    assert_all_merged(Path("out"), hugging_face(BASE), HF_TERMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "out.ckpt", "format": "safetensors"}, "--format"),
        ({"output": "out.ckpt", "max_shard_size": "1GB"}, "--max-shard-size"),
        ({"output": "out.bin"}, "suffix .bin"),
        ({"output": "out.GGUF"}, "suffix .gguf"),
        ({"output": ""}, "-o"),
    ],
)
def test_contradictions_about_the_output_are_refused(
    tmp_path: Path, merged: Merge, options: dict[str, str], message: str
) -> None:
    write(tmp_path / "base.ckpt", BASE)
    with pytest.raises(UsageError, match=message):
        merged("base.ckpt", **options)
    assert names_of(Path()) == []


def test_a_name_with_a_dot_is_a_folder(tmp_path: Path, merged: Merge) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output="Llama-3.1-8B")
    assert_all_merged(Path("Llama-3.1-8B"), hugging_face(BASE), HF_TERMS)


def test_the_other_files_of_a_folder_come_along_and_the_adapters_do_not(tmp_path: Path, merged: Merge) -> None:
    base = hf_folder(tmp_path / "base")
    (base / ".cache").mkdir()
    (base / "original").mkdir()
    (base / "original" / "params.json").write_text("{}")
    lora = write_peft(tmp_path / "lora", peft(PAIRS))
    (lora / "README.md").write_text("an adapter")
    merge(base, lora, output="out")
    for name in ("config.json", "tokenizer.json", "README.md"):
        assert (Path("out") / name).read_bytes() == (base / name).read_bytes()
    assert "adapter_config.json" not in names_of(Path("out"))
    assert names_of(Path("out")) == [
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]


def test_a_single_file_from_a_folder_has_nothing_beside_it(tmp_path: Path, merged: Merge) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output="out.safetensors")
    assert names_of(Path()) == ["out.safetensors"]
    assert_all_merged(Path("out.safetensors"), hugging_face(BASE), HF_TERMS)


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata()


def test_the_metadata_of_the_base_is_kept_and_tells_what_was_merged(tmp_path: Path, merged: Merge) -> None:
    save(tmp_path / "base.safetensors", BASE, {"format": "ms", "author": "someone"})
    report = merged("base.safetensors", output="out.safetensors")
    found = metadata(Path("out.safetensors"))
    assert found["format"] == "ms"
    assert found["author"] == "someone"
    assert found["pet_surgery.version"] == report.version
    assert found["pet_surgery.base"] == "base.safetensors"
    assert found["pet_surgery.base_fingerprint"] == report.base_fingerprint
    assert report.base_fingerprint == fingerprint(open_checkpoint(tmp_path / "base.safetensors").tensors)
    (adapter,) = json.loads(found["pet_surgery.adapters"])
    assert adapter == {"file": "lora.ckpt", "digest": report.adapters[0].digest, "scaling": [2.0]}
    assert str(tmp_path) not in json.dumps(found), "no path of this machine"


@pytest.mark.parametrize(("base", "format"), [("base.ckpt", "ms"), ("base.safetensors", "pt")])
def test_an_output_without_metadata_to_keep_says_what_loaders_ask_for(
    tmp_path: Path, merged: Merge, base: str, format: str
) -> None:
    write(tmp_path / base, BASE)
    merged(base, output="out.safetensors")
    assert metadata(Path("out.safetensors"))["format"] == format


def test_each_shard_has_the_metadata(tmp_path: Path, merged: Merge) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output="out")
    found = [metadata(path) for path in sorted(Path("out").glob("*.safetensors"))]
    assert found[0] == found[1]
    assert found[0]["format"] == "pt"
    assert "pet_surgery.adapters" in found[0]


def test_a_merged_base_is_merged_again_and_tells_of_the_last_merge(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.safetensors", BASE)
    merged("base.safetensors", output="once.safetensors")
    merge("once.safetensors", tmp_path / "lora.ckpt", alpha=4, output="twice.safetensors")
    found = metadata(Path("twice.safetensors"))
    assert found["pet_surgery.base"] == "once.safetensors"
    assert json.loads(found["pet_surgery.adapters"])[0]["scaling"] == [1.0]


def printed(tmp_path: Path, name: str, arrays: Arrays) -> str:
    write(tmp_path / name, arrays)
    merged = merge(tmp_path / name, tmp_path / "lora.ckpt", alpha=8, output=tmp_path / f"dry-{name}", dry_run=True)
    return merged.base_fingerprint


def test_the_fingerprint_is_of_the_weights_not_of_their_files(tmp_path: Path, merged: Merge) -> None:
    backwards = dict(reversed(BASE.items()))
    trained = {**BASE, **mindpet(PAIRS), "adam_m.lm_head.weight": BASE["lm_head.weight"], "global_step": np.array(1)}
    write(tmp_path / "trained.ckpt", trained)
    prints = {
        *(printed(tmp_path, name, BASE) for name in ("a.ckpt", "a.safetensors", "a-ckpt", "a-safetensors")),
        *(printed(tmp_path, name, backwards) for name in ("b.ckpt", "b.safetensors", "b-safetensors")),
        merge(tmp_path / "trained.ckpt", alpha=8, dry_run=True).base_fingerprint,
    }
    assert len(prints) == 1
    assert prints.pop().startswith("pet-fp1:")


def test_the_fingerprint_changes_with_a_value_a_name_a_type_a_shape(tmp_path: Path, merged: Merge) -> None:
    def with_norm(change: Callable[[np.ndarray], np.ndarray], name: str = "model.norm_out.weight") -> Arrays:
        return {k if k != "model.norm_out.weight" else name: v if k != name else change(v) for k, v in BASE.items()}

    def last_element(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[-1] += 1
        return array

    changed = [
        BASE,
        with_norm(last_element),
        with_norm(lambda array: array, "model.norm.weight"),
        with_norm(lambda array: array.view(np.float16)),
        with_norm(lambda array: array.reshape(1, -1)),
    ]
    assert len({printed(tmp_path, f"{number}.ckpt", arrays) for number, arrays in enumerate(changed)}) == len(changed)


def test_names_are_translated_to_hugging_face_and_back(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    report = merged("base.ckpt", output="hf.safetensors", names="hf")
    assert_all_merged(Path("hf.safetensors"), hugging_face(BASE), HF_TERMS)
    assert {weight.name for weight in report.weights} == set(HF_TERMS)
    assert {weight.base_name for weight in report.weights} == set(TERMS)
    assert all(weight.relative_delta for weight in report.weights)
    save(tmp_path / "hf.safetensors", hugging_face(BASE))
    merged("hf.safetensors", output="mf.ckpt", names="mindformers")
    assert_all_merged(Path("mf.ckpt"), BASE, TERMS)


def test_names_that_are_right_already_are_kept(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    merged("base.ckpt", output="same.ckpt", names="mindformers")
    merged("base.ckpt", output="kept.ckpt")
    assert Path("same.ckpt").read_bytes() == Path("kept.ckpt").read_bytes()


def test_names_come_from_a_file_and_shards_keep_what_they_held(tmp_path: Path, merged: Merge) -> None:
    base = hf_folder(tmp_path / "base")
    table = {"lm_head.weight": "head.weight", "model.layers.0.self_attn.q_proj.weight": "first.q"}
    (tmp_path / "names.json").write_text(json.dumps(table))
    merged("base", output="out", names=str(tmp_path / "names.json"))
    renamed = {table.get(name, name): array for name, array in hugging_face(BASE).items()}
    assert_all_merged(Path("out"), renamed, {table.get(name, name): term for name, term in HF_TERMS.items()})
    before, after = (json.loads((p / "model.safetensors.index.json").read_text()) for p in (base, Path("out")))
    assert after["weight_map"] == {table.get(name, name): file for name, file in before["weight_map"].items()}


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"missing": "x"}, MismatchError, "a name that the checkpoint does not have"),
        ({"lm_head.weight": "model.norm_out.weight"}, MismatchError, "the new name of several tensors"),
        ({"lm_head.weight": 3}, CorruptInputError, "a name of at least one character"),
        (["lm_head.weight"], CorruptInputError, "object"),
    ],
)
def test_a_table_of_names_that_does_not_fit_is_refused(
    tmp_path: Path, merged: Merge, table: object, error: type[Exception], message: str
) -> None:
    write(tmp_path / "base.ckpt", BASE)
    (tmp_path / "names.json").write_text(json.dumps(table))
    with pytest.raises(error, match=message):
        merged("base.ckpt", names=str(tmp_path / "names.json"))


@pytest.mark.parametrize("names", ["hf", "mindformers"])
def test_names_of_an_unknown_network_are_not_translated(tmp_path: Path, names: str) -> None:
    write(tmp_path / "base.ckpt", {"dense.weight": random(0, 8, 8)})
    write(tmp_path / "lora.ckpt", {"dense.lora_a": random(1, 2, 8), "dense.lora_b": random(2, 8, 2)})
    with pytest.raises(MismatchError, match="a network whose names are not known"):
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, names=names, output=tmp_path / "out.ckpt")


def test_fused_weights_have_no_name_in_hugging_face(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", {**BASE, "model.layers.0.attention.w_qkv.weight": random(0, 48, 16)})
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    with pytest.raises(MismatchError, match="fused"):
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, names="hf", output=tmp_path / "out.ckpt")


def test_a_crc_is_kept_where_the_base_has_one(tmp_path: Path, merged: Merge) -> None:
    add_crc(write(tmp_path / "base.ckpt", BASE))
    report = merged("base.ckpt", output="out.ckpt")
    checkpoint = open_checkpoint("out.ckpt")
    assert checkpoint.crc
    assert report.bytes_written == Path("out.ckpt").stat().st_size
    merge("out.ckpt", tmp_path / "lora.ckpt", alpha=8, output="again.ckpt")  # which checks it


@pytest.mark.parametrize("with_crc", [False, True])
@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("base.ckpt", {"output": "out.ckpt"}),
        ("base.ckpt", {"output": "out.safetensors", "dtype": "fp32"}),
        ("base.ckpt", {"output": "out", "max_shard_size": 2000}),
        ("base", {"output": "out"}),
        ("base", {"output": "out", "format": "ckpt", "names": "mindformers"}),
    ],
)
def test_a_dry_run_writes_nothing_and_predicts_all_that_a_run_reports(
    tmp_path: Path, merged: Merge, base: str, options: dict[str, object], with_crc: bool
) -> None:
    hf_folder(tmp_path / "base")
    write(tmp_path / "base.ckpt", BASE)
    if with_crc:
        add_crc(tmp_path / "base.ckpt")
    before = tree(tmp_path)
    dry = merged(base, dry_run=True, **options)
    assert tree(tmp_path) == before
    assert dry.dry_run
    report = merged(base, **options)
    written = contents(Path(report.output))
    assert dry.bytes_written == report.bytes_written == sum(len(data) for data in written.values())
    assert sorted(dry.files) == sorted(
        written if Path(report.output).is_dir() else ["out" + Path(report.output).suffix]
    )
    for field in (
        "output",
        "base_fingerprint",
        "adapters",
        "format",
        "files",
        "copied",
        "cast",
        "dropped",
        "bytes_read",
    ):
        assert getattr(dry, field) == getattr(report, field)
    assert [weight.name for weight in dry.weights] == [weight.name for weight in report.weights]
    assert dry.peak_memory_bytes <= 256 * 2**20
    assert dry.free_disk_bytes > 0


def test_a_dry_run_is_refused_where_the_run_would_be(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    Path("base-merged.ckpt").write_text("here")
    with pytest.raises(OutputExistsError):
        merged("base.ckpt", dry_run=True)
    merged("base.ckpt", dry_run=True, force=True)
    assert Path("base-merged.ckpt").read_text() == "here"


@pytest.mark.parametrize("output", ["out.ckpt", "out.safetensors", "out"])
def test_an_existing_output_is_refused_and_replaced_on_demand(tmp_path: Path, merged: Merge, output: str) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output=output)
    first = contents(Path(output))
    with pytest.raises(OutputExistsError, match="--force"):
        merged("base", output=output)
    assert contents(Path(output)) == first
    merge(tmp_path / "base", tmp_path / "lora.ckpt", scaling=-3, output=output, force=True)
    second = contents(Path(output))
    assert second.keys() == first.keys()
    assert second != first
    assert names_of(Path()) == [output]


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path: Path, merged: Merge) -> None:
    hf_folder(tmp_path / "base", shards=3)
    merged("base", output="out")
    merged("base", output="out", force=True, max_shard_size="1GB")
    assert names_of(Path("out")) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("kind", ["subfolder", "no weights", "file for a folder", "folder for a file"])
def test_what_is_no_checkpoint_is_not_replaced(tmp_path: Path, merged: Merge, kind: str) -> None:
    hf_folder(tmp_path / "base")
    output = Path("out")
    if kind == "subfolder":
        merged("base", output=output)
        (output / "photos").mkdir()
    elif kind == "no weights":
        output.mkdir()
        (output / "thesis.tex").write_text("years")
    elif kind == "file for a folder":
        output.write_text("precious")
    else:
        output = Path("out.ckpt")
        output.mkdir()
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError):
        merged("base", output=output, force=True)
    assert tree(tmp_path) == before


def test_an_empty_folder_is_replaced_on_demand(tmp_path: Path, merged: Merge) -> None:
    hf_folder(tmp_path / "base")
    Path("out").mkdir()
    merged("base", output="out", force=True)
    assert_all_merged(Path("out"), hugging_face(BASE), HF_TERMS)


@pytest.mark.parametrize("output", ["new/deep/out.ckpt", "new/deep/out"])
def test_missing_folders_above_the_output_are_made(tmp_path: Path, merged: Merge, output: str) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output=output)
    assert_all_merged(Path(output), hugging_face(BASE), HF_TERMS)
    assert names_of(Path("new/deep")) == [Path(output).name]


@pytest.mark.parametrize("disguise", ["same", "relative", "hard link", "symlink", "folder", "folder above", "adapter"])
@pytest.mark.parametrize("force", [True, False])
def test_an_input_in_any_disguise_is_no_output(tmp_path: Path, merged: Merge, disguise: str, force: bool) -> None:
    (tmp_path / "models").mkdir()
    base = write(tmp_path / "models" / "base.ckpt", BASE)
    link = tmp_path / "link.ckpt"
    if disguise == "hard link":
        os.link(base, link)
    if disguise == "symlink":
        link.symlink_to(base)
    output = {
        "same": base,
        "relative": Path("../work/../models/base.ckpt"),
        "hard link": link,
        "symlink": link,
        "folder": tmp_path / "models",
        "folder above": tmp_path,
        "adapter": tmp_path / "lora.ckpt",
    }[disguise]
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"an input|the input"):
        merged("models/base.ckpt", output=output, force=force)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("output", [".", "..", "../work", "/", "out/.."])
@pytest.mark.parametrize("force", [True, False])
def test_the_working_folder_and_those_above_are_no_output(
    tmp_path: Path, merged: Merge, output: str, force: bool
) -> None:
    write(tmp_path / "base.ckpt", BASE)
    Path("notes.txt").write_text("precious")
    before = tree(tmp_path)
    with pytest.raises((UsageError, OutputExistsError)):
        merged("base.ckpt", output=output, force=force)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["tuned.safetensors", "model-00001-of-00002.safetensors", "tuned.ckpt"])
@pytest.mark.parametrize("force", [True, False])
def test_no_file_is_added_to_the_folder_of_an_input(tmp_path: Path, merged: Merge, name: str, force: bool) -> None:
    hf_folder(tmp_path / "base")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="a part of the input"):
        merged("base", output=tmp_path / "base" / name, force=force)
    assert tree(tmp_path) == before


def test_an_output_beside_single_inputs_is_fine(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    merged("base.ckpt", output=tmp_path / "merged.ckpt")
    assert_all_merged(tmp_path / "merged.ckpt", BASE, TERMS)


def test_a_dangling_link_in_the_place_of_the_output_exists(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    Path("out.ckpt").symlink_to("nowhere.ckpt")
    with pytest.raises(OutputExistsError):
        merged("base.ckpt", output="out.ckpt")
    merged("base.ckpt", output="out.ckpt", force=True)
    assert not Path("out.ckpt").is_symlink()
    assert not Path("nowhere.ckpt").exists()


def test_an_adapted_half_of_a_tied_pair_is_untied_and_the_configuration_says_so(tmp_path: Path, merged: Merge) -> None:
    tied = {name: array for name, array in hugging_face(BASE).items() if name != "lm_head.weight"}
    base = write_folder(tmp_path / "base", tied, shards=2)
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}))
    a, b = random(0, 4, 16), random(1, VOCABULARY, 4)
    pair = {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}
    lora = write_peft(tmp_path / "lora", pair, target_modules=["lm_head"])
    report = merge(base, lora, output="out")
    result = read(Path("out"))
    assert result["model.embed_tokens.weight"].tobytes() == tied["model.embed_tokens.weight"].tobytes()
    exact = tied["model.embed_tokens.weight"].astype(np.float64) + 2 * b.astype(np.float64) @ a
    assert np.allclose(result["lm_head.weight"].astype(np.float64), exact, rtol=2**-8, atol=1e-6)
    assert json.loads(Path("out/config.json").read_text())["tie_word_embeddings"] is False
    assert any("was tied to" in warning for warning in report.warnings)
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in result.values())
