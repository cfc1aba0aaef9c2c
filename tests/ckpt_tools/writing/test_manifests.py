"""An output's manifest has the digest of each whole tensor, wherever it lies and whoever wrote its parts."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from merge_cases import BASE, PAIRS, contents, llama, mindpet, save, write, write_folder
from rank_folders import strategy_of, write_ranks
from transform_cases import SOURCE, TENSORS, twice_cut, write_case, write_strategy

from ckpt_tools import inject, merge, open_checkpoint, split, transform
from ckpt_tools.tensors.digests import CHUNK_BYTES
from ckpt_tools.tensors.dtypes import dtype_of
from surgery.errors import OutputExistsError, UsageError


def digest_of(array: np.ndarray) -> str:
    """The digest of a tensor, written from its definition."""
    content = np.ascontiguousarray(array).tobytes()
    chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
    header = f"{dtype_of(array).name}\0{','.join(map(str, array.shape))}\0".encode()
    return blake3(header + b"".join(blake3(chunk).digest() for chunk in chunks)).hexdigest()


def manifest_of(output: Path) -> dict[str, Any]:
    if output.is_dir():
        text = (output / "pet-manifest.json").read_text()
    elif output.suffix == ".ckpt":
        text = output.with_name(f"{output.stem}.pet-manifest.json").read_text()
    else:
        text = open_checkpoint(output).metadata["pet_surgery.manifest"]
    return json.loads(text)


def assert_digests(output: Path, tensors: dict[str, np.ndarray]) -> None:
    found = {name: entry["digest"] for name, entry in manifest_of(output)["tensors"].items()}
    assert found == {name: digest_of(array) for name, array in tensors.items()}


@pytest.mark.parametrize("output", ["out.ckpt", "out.safetensors", "folder"])
def test_a_whole_output_has_the_digests_of_its_tensors(tmp_path: Path, output: str) -> None:
    tensors = {**llama("fp16"), "empty": np.zeros((0, 3), np.float32), "scalar": np.array(3.5, np.float32)}
    save(tmp_path / "in.safetensors", tensors)
    transform(tmp_path / "in.safetensors", output=tmp_path / output)
    assert_digests(tmp_path / output, tensors)


@given(case=twice_cut())
@settings(max_examples=60, deadline=None)
def test_slices_of_ranks_have_the_digests_of_the_whole_tensors(case: Any) -> None:
    tensors, before, after = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ranks(folder / "in", tensors, before)
        src, dst = write_strategy(folder / "src.ckpt", before), write_strategy(folder / "dst.ckpt", after)
        transform(folder / "in", src_strategy=src, dst_strategy=dst, output=folder / "out")
        transform(folder / "in", src_strategy=src, output=folder / "whole.safetensors")
        assert_digests(folder / "out", tensors)
        assert_digests(folder / "whole.safetensors", tensors)


def test_bands_of_shared_tensors_make_the_digests_of_large_ones(tmp_path: Path) -> None:
    tensors = {"layer.weight": np.random.default_rng(0).normal(size=(3000, 1000)).astype(np.float32)}
    save(tmp_path / "in.safetensors", tensors)
    write_strategy(tmp_path / "dst.ckpt", strategy_of({"layer.weight": SOURCE.stages[0]["layer.weight"]}))
    transform(
        tmp_path / "in.safetensors", dst_strategy=tmp_path / "dst.ckpt", output=tmp_path / "out", max_memory="110MB"
    )
    assert_digests(tmp_path / "out", tensors)


def test_an_iteration_has_the_digests_too(tmp_path: Path) -> None:
    write_case(tmp_path)
    transform(
        tmp_path / "in",
        src_strategy=tmp_path / "src.ckpt",
        dst_strategy=tmp_path / "dst.ckpt",
        output=tmp_path / "out",
        format="iteration",
    )
    assert_digests(tmp_path / "out", TENSORS)
    assert set(manifest_of(tmp_path / "out")["companions"]) == {
        "iteration_00000007/common.json",
        "iteration_00000007/metadata.json",
        "latest_checkpointed_iteration.txt",
    }


def test_what_runs_of_parts_wrote_is_read_for_the_manifest(tmp_path: Path) -> None:
    write_case(tmp_path)
    paths = {"src_strategy": tmp_path / "src.ckpt", "dst_strategy": tmp_path / "dst.ckpt"}
    for ranks in ("0", "1", None):
        transform(tmp_path / "in", **paths, output=tmp_path / "parts", ranks=ranks)
    transform(tmp_path / "in", **paths, output=tmp_path / "once")
    assert_digests(tmp_path / "parts", TENSORS)
    assert contents(tmp_path / "parts") == contents(tmp_path / "once")


def test_companions_have_the_digest_of_their_bytes(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", BASE, shards=2)
    (base / "tokenizer.json").write_text("{}")
    (base / "pet-manifest.json").write_text('{"format": "pet-manifest-1"}')
    transform(base, output=tmp_path / "out")
    companions = manifest_of(tmp_path / "out")["companions"]
    assert companions["tokenizer.json"] == blake3(b"{}").hexdigest()
    index = next(path for path in (tmp_path / "out").glob("*.index.json"))
    assert companions[index.name] == blake3(index.read_bytes()).hexdigest()
    assert "pet-manifest.json" not in companions


def test_a_merge_says_what_went_in(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", mindpet(PAIRS))
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, output=tmp_path / "out.safetensors")
    manifest = manifest_of(tmp_path / "out.safetensors")
    assert manifest["command"] == "merge"
    assert manifest["tool"] == f"pet-surgery {report.version}"
    base, adapter = manifest["inputs"]
    assert base == {"role": "base", "name": "base.ckpt", "fingerprint": report.base_fingerprint}
    assert adapter == {
        "role": "adapter",
        "name": "lora.ckpt",
        "fingerprint": report.adapters[0].digest,
        "scaling": [2.0],
    }
    found = {name: tensor.read_all() for name, tensor in open_checkpoint(tmp_path / "out.safetensors").tensors.items()}
    assert_digests(tmp_path / "out.safetensors", found)


def test_injecting_and_splitting_leave_a_manifest(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    config = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 8, "target_modules": ".*wq"}
    inject(tmp_path / "base.ckpt", config=config, output=tmp_path / "tuned.safetensors")
    split(tmp_path / "tuned.safetensors", alpha=8, output=tmp_path / "delta", remainder=tmp_path / "rest.ckpt")
    commands = {name: manifest_of(tmp_path / name)["command"] for name in ("tuned.safetensors", "delta", "rest.ckpt")}
    assert commands == {"tuned.safetensors": "inject", "delta": "split", "rest.ckpt": "split"}
    assert_digests(tmp_path / "rest.ckpt", BASE)


def test_equal_inputs_give_equal_bytes_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "base.ckpt", BASE)
        save(tmp_path / name / "lora.ckpt", mindpet(PAIRS))
    outputs = [
        merge(
            tmp_path / name / "base.ckpt",
            tmp_path / name / "lora.ckpt",
            alpha=8,
            output=tmp_path / f"{name}.safetensors",
        )
        for name in ("one", "other")
    ]
    one, other = (Path(report.output).read_bytes() for report in outputs)
    assert one == other


def test_the_plans_digest_tells_other_merges_apart(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", mindpet(PAIRS))
    plans = set()
    for alpha in (8, 16):
        output = tmp_path / f"{alpha}.safetensors"
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=alpha, output=output)
        plans.add(manifest_of(output)["plan"])
    assert len(plans) == 2
    assert f"sha256:{'0' * 64}" not in plans


@pytest.mark.parametrize("output", ["out.ckpt", "out.safetensors", "folder"])
def test_without_digests_the_manifest_says_so_and_the_tensors_are_the_same(tmp_path: Path, output: str) -> None:
    write(tmp_path / "base.ckpt", BASE)
    transform(tmp_path / "base.ckpt", output=tmp_path / output, digest=False)
    manifest = manifest_of(tmp_path / output)
    assert manifest["digest"] is None
    assert {entry["digest"] for entry in manifest["tensors"].values()} == {None}
    found = {name: tensor.read_all() for name, tensor in open_checkpoint(tmp_path / output).tensors.items()}
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in BASE.items()}


def test_a_manifest_of_an_input_is_not_carried_into_what_is_made_of_it(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    transform(tmp_path / "base.ckpt", output=tmp_path / "one.safetensors")
    transform(tmp_path / "one.safetensors", output=tmp_path / "two", max_shard_size="2KB")
    for file in (tmp_path / "two").glob("*.safetensors"):
        assert "pet_surgery.manifest" not in open_checkpoint(file).metadata
    assert "pet_surgery.manifest" not in next((tmp_path / "two").glob("*.index.json")).read_text()


def test_a_file_that_is_no_manifest_is_not_replaced_by_one(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    beside = tmp_path / "out.pet-manifest.json"
    beside.write_text('{"mine": 1}')
    with pytest.raises(OutputExistsError, match=r"out\.pet-manifest\.json"):
        transform(tmp_path / "base.ckpt", output=tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()
    beside.write_text('{"format": "pet-manifest-1", "of": "an output that was removed"}')
    transform(tmp_path / "base.ckpt", output=tmp_path / "out.ckpt")
    assert_digests(tmp_path / "out.ckpt", BASE)


def test_an_input_is_not_replaced_by_a_manifest(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    (tmp_path / "out.pet-manifest.json").symlink_to(tmp_path / "base.ckpt")
    with pytest.raises(UsageError, match="is an input"):
        transform(tmp_path / "base.ckpt", output=tmp_path / "out.ckpt", force=True)
