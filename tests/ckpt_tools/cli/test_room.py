"""Room on the disk is looked for before anything is written, by every command and for all that it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from merge_cases import mindpet, random, save, write_folder
from rank_folders import strategy_of
from small_disk import on_a_small_disk
from transform_cases import write_strategy

from ckpt_tools import merge
from ckpt_tools.layout.model import Layout

LAYERS = tuple(f"model.layers.{number}.attention.wq" for number in range(4))
WEIGHTS = {f"{name}.weight": random(number, 128, 128) for number, name in enumerate(LAYERS)}
ADAPTER = mindpet(
    {f"{name}.A": random(10, 8, 128) for name in LAYERS} | {f"{name}.B": random(11, 128, 8) for name in LAYERS}
)

MERGE = ("merge", "base.ckpt", "lora.ckpt", "--alpha", "8")
SPLIT = ("split", "combined.ckpt", "--alpha", "8")
JOIN = ("merge", "--adapters-only", "lora.ckpt", "lora.ckpt", "--alpha", "8")
UNMERGE = ("merge", "--unmerge", "undo.safetensors", "merged.ckpt", "lora.ckpt")
INJECT = ("inject", "base.ckpt", "--config", "run.json")
TRANSFORM = ("transform", "base.ckpt")
EXTRACT = ("split", "tuned.ckpt", "--base", "base.ckpt", "--rank", "8")
CUT = ("--dst-strategy", "cut.ckpt")

WRITING = {
    "merge to a file": (*MERGE, "-o", "disk/out.ckpt"),
    "merge to another file": (*MERGE, "-o", "disk/out.safetensors"),
    "merge to a folder": (*MERGE, "-o", "disk/out"),
    "merge below a folder that is missing": (*MERGE, "-o", "disk/new/out.ckpt"),
    "merge to ranks": (*MERGE, *CUT, "-o", "disk/out"),
    "merge to one rank": (*MERGE, *CUT, "--ranks", "1", "-o", "disk/out"),
    "merge to Checkpoint 2.0": (*MERGE, "--format", "iteration", "-o", "disk/out"),
    "unmerge to a file": (*UNMERGE, "-o", "disk/out.ckpt"),
    "unmerge to a folder": (*UNMERGE, "-o", "disk/out"),
    "adapters only to a file": (*JOIN, "-o", "disk/out.safetensors"),
    "adapters only to a folder": (*JOIN, "--method", "svd", "-o", "disk/out"),
    "split to a file": (*SPLIT, "-o", "disk/out.ckpt"),
    "split to a folder": (*SPLIT, "-o", "disk/out"),
    "split, the rest elsewhere": (*SPLIT, "-o", "disk/out", "--remainder", "rest.ckpt"),
    "split, the rest": (*SPLIT, "-o", "out", "--remainder", "disk/rest.ckpt"),
    "split, the rest in a folder": (*SPLIT, "-o", "out.ckpt", "--remainder", "disk/rest"),
    "extraction to a file": (*EXTRACT, "-o", "disk/out.safetensors"),
    "extraction to a folder": (*EXTRACT, "-o", "disk/out"),
    "inject to a file": (*INJECT, "-o", "disk/out.ckpt"),
    "inject to a folder": (*INJECT, "-o", "disk/out"),
    "inject to ranks": (*INJECT, *CUT, "-o", "disk/out"),
    "inject of the delta alone": (*INJECT, "--only-delta", "-o", "disk/out.ckpt"),
    "transform to a file": (*TRANSFORM, "-o", "disk/out.safetensors"),
    "transform to a folder": (*TRANSFORM, "-o", "disk/out"),
    "transform to ranks": (*TRANSFORM, *CUT, "-o", "disk/out"),
    "transform of a folder": ("transform", "folder", "-o", "disk/out"),
}

# Its script leaves in the folder `disk` what the command did, and says on stdout what the disk has besides.
SCRIPT = '"$@"; echo $?; ls -A disk'


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    save(folder / "base.ckpt", WEIGHTS)
    save(folder / "lora.ckpt", ADAPTER)
    save(folder / "combined.ckpt", WEIGHTS | ADAPTER)
    save(folder / "tuned.ckpt", {name: random(20, 128, 128) for name in WEIGHTS})
    write_folder(folder / "folder", WEIGHTS, shards=2)
    write_strategy(folder / "cut.ckpt", strategy_of({name: Layout((2,), ((0,), ())) for name in WEIGHTS}))
    pet = {"pet_type": "lora", "lora_rank": 8, "lora_alpha": 8, "target_modules": ".*wq"}
    (folder / "run.json").write_text(json.dumps({"model": {"model_config": {"pet_config": pet}}}))
    paths = {"output": folder / "merged.ckpt", "unmerge_patch": folder / "undo.safetensors"}
    merge(folder / "base.ckpt", folder / "lora.ckpt", alpha=8, **paths)
    return folder


def words(command: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"ckpt_tools.cli.{command}", *arguments, "-q", "--threads", "1"]


@pytest.mark.parametrize("arguments", WRITING.values(), ids=WRITING)
def test_an_output_that_does_not_fit_is_refused_before_anything_is_written(
    inputs: Path, arguments: tuple[str, ...]
) -> None:
    before = sorted(inputs.iterdir())
    ended = on_a_small_disk(inputs, SCRIPT, *words(*arguments))
    assert ended.stdout.split() == ["7"], ended.stderr
    assert "expected room for " in ended.stderr
    assert "choose another place" in ended.stderr
    assert sorted({*inputs.iterdir(), inputs / "disk"}) == sorted({*before, inputs / "disk"})


def test_two_outputs_that_fit_each_by_itself_are_refused_together(inputs: Path) -> None:
    arguments = (*SPLIT, "-o", "disk/out.ckpt", "--remainder", "disk/rest.ckpt")
    ended = on_a_small_disk(inputs, SCRIPT, *words(*arguments), kib=276)  # 33 KB and 262 KB
    assert ended.stdout.split() == ["7"], ended.stderr
    assert "disk/out.ckpt, disk/rest.ckpt: expected room for 29" in ended.stderr
    assert "-o or --remainder" in ended.stderr
    fitting = on_a_small_disk(inputs, SCRIPT, *words(*arguments), kib=340)
    assert fitting.stdout.split()[0] == "0", fitting.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (*MERGE, "lora.ckpt", "--method", "svd", "-o", "out.ckpt"),
        (*MERGE, "lora.ckpt", "--method", "ties_svd", "--density", "0.5", "-o", "out.ckpt"),
        (*JOIN, "--method", "svd", "-o", "out"),
    ],
)
def test_room_for_temporary_files_is_looked_for_too(inputs: Path, arguments: tuple[str, ...]) -> None:
    before = sorted(inputs.iterdir())
    ended = on_a_small_disk(inputs, SCRIPT, *words(*arguments), env={"TMPDIR": str(inputs / "disk")})
    assert ended.stdout.split() == ["7"], ended.stderr
    assert "of temporary files" in ended.stderr
    assert "set TMPDIR" in ended.stderr
    assert sorted({*inputs.iterdir(), inputs / "disk"}) == sorted({*before, inputs / "disk"})


@pytest.mark.parametrize(
    "arguments",
    [
        (*MERGE, "lora.ckpt", "--method", "ties_svd", "--density", "0.5", "--energy", "0.9", "-o", "out.ckpt"),
        (*EXTRACT, "-o", "out"),
    ],
)
def test_temporary_files_whose_size_nobody_knows_end_a_run_with_7_where_room_ends(
    inputs: Path, arguments: tuple[str, ...]
) -> None:
    """A mapped file without its room would be the end of the process, by a signal."""
    before = sorted(inputs.iterdir())
    for kib in (8, 16):
        ended = on_a_small_disk(inputs, SCRIPT, *words(*arguments), env={"TMPDIR": str(inputs / "disk")}, kib=kib)
        assert ended.stdout.split() == ["7"], ended.stderr
        assert "set TMPDIR" in ended.stderr
        assert sorted({*inputs.iterdir(), inputs / "disk"}) == sorted({*before, inputs / "disk"})


def test_a_patch_that_does_not_fit_ends_a_merge_with_7_and_nothing_is_left(inputs: Path) -> None:
    """Its size is known when the merged model is."""
    before = sorted(inputs.iterdir())
    for output in ("out.ckpt", "out"):
        ended = on_a_small_disk(
            inputs, SCRIPT, *words(*MERGE, "-o", output, "--unmerge-patch", "disk/undo.safetensors"), kib=4
        )
        assert ended.stdout.split() == ["7"], ended.stderr
        assert "disk/undo.safetensors" in ended.stderr
        assert "no space left" in ended.stderr
    assert sorted({*inputs.iterdir(), inputs / "disk"}) == sorted({*before, inputs / "disk"})


@pytest.mark.parametrize(
    "arguments",
    [
        (*MERGE, "-o", "out.ckpt"),
        ("inspect", "base.ckpt"),
        ("verify", "base.ckpt", "lora.ckpt", "merged.ckpt", "--alpha", "8"),
    ],
)
def test_room_for_a_page_is_looked_for_before_the_work(inputs: Path, arguments: tuple[str, ...]) -> None:
    ended = on_a_small_disk(inputs, SCRIPT, *words(*arguments, "--html", "disk/page.html"))
    assert ended.stdout.split() == ["7"], ended.stderr
    assert "--html disk/page.html: expected room for 32.8 KB at least, found 16.4 KB free" in ended.stderr
    assert not (inputs / "out.ckpt").exists()


def test_what_a_killed_run_left_counts_as_room_for_the_next(inputs: Path) -> None:
    """The disk has room for one output, and the killed run had taken most of it."""
    folder = "disk/.out.ckpt.pet-surgery/parts/run"
    left = f"mkdir -p {folder}; head -c 200000 /dev/zero >{folder}/1"
    ended = on_a_small_disk(inputs, f"{left}; {SCRIPT}", *words(*TRANSFORM, "-o", "disk/out.ckpt"), kib=300)
    assert ended.stdout.split() == ["0", "out.ckpt", "out.pet-manifest.json"], ended.stderr


def test_the_ranks_that_earlier_runs_completed_count_as_room_for_the_last_call(inputs: Path) -> None:
    """The disk has room for one output, and the runs of ranks have written all of it but the manifest."""
    command = words(*TRANSFORM, *CUT, "-o", "disk/out")
    script = '"$@" --ranks 0 && "$@" --ranks 1; echo $?; ls -A disk; "$@"; echo $?; ls -A disk'
    ended = on_a_small_disk(inputs, script, *command, kib=320)
    assert ended.stdout.split() == ["0", ".out.pet-surgery", "0", "out"], ended.stderr


def test_the_ranks_that_earlier_runs_completed_are_no_room_for_another_rank(inputs: Path) -> None:
    script = '"$@" --ranks 0; echo $?; "$@" --ranks 1; echo $?; ls -A disk'
    ended = on_a_small_disk(inputs, script, *words(*TRANSFORM, *CUT, "-o", "disk/out"), kib=200)
    assert ended.stdout.split() == ["0", "7", ".out.pet-surgery"], ended.stderr
    assert "expected room for 131" in ended.stderr
