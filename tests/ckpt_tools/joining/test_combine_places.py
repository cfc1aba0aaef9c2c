"""Where a combination goes and what it is of, looked at before the work: outputs, inputs, bases, temporary folders."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from merge_cases import (
    BASE,
    factors,
    mindpet,
    peft,
    tree,
    write,
    write_folder,
    write_peft,
)

from ckpt_tools import combine, merge, verify
from ckpt_tools.progress import Silent
from surgery.adapter_facts import surgery_section
from surgery.errors import (
    InputMissingError,
    MismatchError,
    OutputExistsError,
    ResourceError,
    UsageError,
)

QUERY = "model.layers.0.attention.wq"


def test_an_output_is_replaced_only_by_force_and_an_input_never(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)))
    combine(tmp_path / "a", resize_rank=2, output=tmp_path / "out")
    with pytest.raises(OutputExistsError):
        combine(tmp_path / "a", resize_rank=3, output=tmp_path / "out")
    report = combine(tmp_path / "a", resize_rank=3, output=tmp_path / "out", force=True)
    assert report.layers[0].rank == 3
    before = tree(tmp_path / "a")
    with pytest.raises(UsageError):
        combine(tmp_path / "a", resize_rank=3, output=tmp_path / "a", force=True)
    assert tree(tmp_path / "a") == before


class _Heard(Silent):
    """What a run said that it does."""

    def __init__(self) -> None:
        self.stretches: list[str] = []

    def start(self, total_bytes: int, what: str) -> None:
        self.stretches.append(what)


def _combined_nothing(heard: _Heard) -> bool:
    return not any(what.startswith("combining") for what in heard.stretches)


@pytest.mark.parametrize("is_merge", [False, True], ids=["combine", "merge"])
@pytest.mark.parametrize(
    ("place", "force", "error"),
    [
        ("there.ckpt", False, OutputExistsError),
        ("a.ckpt", True, UsageError),
        ("file/out.ckpt", False, ResourceError),
        ("/proc/out.ckpt", False, ResourceError),
    ],
)
def test_an_output_that_may_not_go_where_it_is_to_go_is_refused_before_the_work(
    tmp_path: Path, is_merge: bool, place: str, force: bool, error: type[Exception]
) -> None:
    base = [write(tmp_path / "base.ckpt", BASE)] if is_merge else []
    adapter = write(tmp_path / "a.ckpt", mindpet(factors([QUERY], 1)))
    (tmp_path / "there.ckpt").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    before, heard = tree(tmp_path), _Heard()
    run = merge if is_merge else combine
    with pytest.raises(error):
        run(*base, adapter, alpha=8, resize_rank=2, output=tmp_path / place, force=force, progress=heard)
    assert _combined_nothing(heard)
    assert tree(tmp_path) == before


def test_a_verification_without_the_merged_model_fails_before_the_work(tmp_path: Path) -> None:
    base, adapter = write(tmp_path / "base.ckpt", BASE), write(tmp_path / "a.ckpt", mindpet(factors([QUERY], 1)))
    heard = _Heard()
    with pytest.raises(InputMissingError):
        verify(base, adapter, merged=tmp_path / "missing.ckpt", alpha=8, resize_rank=2, progress=heard)
    assert _combined_nothing(heard)


@pytest.mark.parametrize("is_merge", [False, True], ids=["combine", "merge"])
def test_the_temporary_folder_of_a_killed_run_goes_though_its_output_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_merge: bool
) -> None:
    left = tmp_path / "tmp" / "pet-surgery-killed"
    left.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(left.parent))
    base = [write(tmp_path / "base.ckpt", BASE)] if is_merge else []
    adapter = write(tmp_path / "a.ckpt", mindpet(factors([QUERY], 1)))
    (tmp_path / "out.ckpt").write_bytes(b"")
    with pytest.raises(OutputExistsError):
        (merge if is_merge else combine)(*base, adapter, alpha=8, resize_rank=2, output=tmp_path / "out.ckpt")
    assert not left.exists()


def test_adapters_of_different_bases_are_refused_before_the_work(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        section = surgery_section(f"pet-ft1:{number:064}")
        write_peft(tmp_path / name, peft(factors([QUERY], number)), pet_surgery=section)
    heard = _Heard()
    with pytest.raises(MismatchError, match="adapters of one base"):
        combine(tmp_path / "a", tmp_path / "b", method="svd", output=tmp_path / "out", progress=heard)
    assert _combined_nothing(heard)


def test_the_files_behind_an_index_are_inputs_of_every_adapter(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)))
    index = write_folder(tmp_path / "b", mindpet(factors([QUERY], 2))) / "model.safetensors.index.json"
    before = tree(tmp_path)
    shard = next(path for path in (tmp_path / "b").iterdir() if path.suffix == ".safetensors")
    for place in (shard, tmp_path / "b" / "new.safetensors"):
        with pytest.raises(UsageError):
            combine(tmp_path / "a", index, alpha=8, output=place, force=True)
    assert tree(tmp_path) == before


def test_a_configuration_that_was_found_is_an_input_too(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", mindpet(factors([QUERY], 1)))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["wq"]}
    (tmp_path / "a.adapter_config.json").write_text(json.dumps(config))
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"a\.adapter_config\.json: .*is an input"):
        combine(tmp_path / "a.safetensors", resize_rank=2, output=tmp_path / "a.ckpt", force=True)
    assert tree(tmp_path) == before
