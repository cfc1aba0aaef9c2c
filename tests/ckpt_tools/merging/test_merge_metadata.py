"""What an output tells of its making, and the fingerprint of a base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
from merge_cases import BASE, PAIRS, Arrays, Merge, hf_folder, mindpet, peft, save, write, write_peft

from ckpt_tools import merge, open_checkpoint
from ckpt_tools.fingerprint import fingerprint


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


def test_an_adapter_that_is_the_working_folder_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "base.ckpt", BASE)
    write_peft(tmp_path / "lora", peft(PAIRS))
    monkeypatch.chdir(tmp_path / "lora")
    merge("../base.ckpt", ".", output="../out.safetensors")
    found = metadata(tmp_path / "out.safetensors")
    assert json.loads(found["pet_surgery.adapters"])[0]["file"] == "lora"
    assert [one["name"] for one in json.loads(found["pet_surgery.manifest"])["inputs"]] == ["base.ckpt", "lora"]


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    base, adapter = write(tmp_path / "base.ckpt", BASE), write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    out = tmp_path / "out.safetensors"
    report = merge(base, adapter, alpha=np.int64(8), weight=np.float32(0.5), output=out)  # type: ignore[arg-type]
    assert json.loads(metadata(out)["pet_surgery.adapters"])[0]["weight"] == 0.5
    assert json.loads(report.to_json())["weights"][0]["adapters"][0]["alpha"] == 8


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
