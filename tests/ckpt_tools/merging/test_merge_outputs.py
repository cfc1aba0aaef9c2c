"""In which form an output is written, and what comes along."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from merge_cases import (
    BASE,
    HF_TERMS,
    PAIRS,
    TERMS,
    VOCABULARY,
    Merge,
    assert_all_merged,
    hf_folder,
    hugging_face,
    names_of,
    peft,
    random,
    read,
    with_manifest_of,
    write,
    write_folder,
    write_peft,
)

from ckpt_tools import merge, open_checkpoint
from surgery.errors import UsageError


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
    assert names_of(tmp_path / "work") == with_manifest_of(name)
    assert report.output == name
    assert open_checkpoint(name).format == report.format
    assert_all_merged(Path(name), BASE, TERMS)


def test_a_base_with_an_unknown_suffix_gets_that_of_its_content(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE).rename(tmp_path / "base.bin")
    merged("base.bin")
    assert names_of(tmp_path / "work") == with_manifest_of("base-merged.ckpt")


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
    assert files.pop(files.index("pet-manifest.json"))
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
        "pet-manifest.json",
        "tokenizer.json",
    ]


def test_a_single_file_from_a_folder_has_nothing_beside_it(tmp_path: Path, merged: Merge) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output="out.safetensors")
    assert names_of(Path()) == ["out.safetensors"]
    assert_all_merged(Path("out.safetensors"), hugging_face(BASE), HF_TERMS)


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
