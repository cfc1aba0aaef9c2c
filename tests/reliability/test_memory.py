"""Every command has enough with the memory that it was given, on models that are larger than that.

The kernel holds the limit: a memory cgroup, which counts what a process has, the files that it maps and its page cache
alike. A process that needs more is killed. Models are zeros that take no room; adapters, and what is merged, are not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from commands import environment
from memory_group import MemoryGroup, NoGroupError, memory_group
from merge_cases import mindpet, save
from rank_folders import strategy_of
from sparse_models import RANK, sparse_base, sparse_factors
from thoroughness import is_thorough
from transform_cases import write_strategy

from ckpt_tools.formats import open_checkpoint
from ckpt_tools.layout.model import Layout

Tell = Callable[[str, object], None]

MIB = 2**20
GROUP_BYTES = 256 * 10**6
"""What a process and its page cache have together."""

MAX_MEMORY = 160 * 10**6
"""What it is told that it has: the page cache needs a little, too."""


@dataclass(frozen=True)
class Case:
    """A command, and what it does: in a folder with the inputs of `write_inputs`."""

    name: str
    command: str
    arguments: tuple[str, ...]
    has_limit: bool = True
    model_mib: int = 384


_MERGE = ("base.safetensors", "lora.safetensors", "--alpha", "8")

CASES = (
    Case("merge", "merge", (*_MERGE, "-o", "out.safetensors"), model_mib=4096 if is_thorough() else 384),
    Case("merge to ranks", "merge", (*_MERGE, "--dst-strategy", "cut.ckpt", "-o", "out")),
    Case("merge with a patch", "merge", (*_MERGE, "-o", "out.ckpt", "--unmerge-patch", "undo.safetensors")),
    Case("merge --verify", "merge", (*_MERGE, "--verify", "-o", "out.safetensors")),
    Case("merge of a combination", "merge", (*_MERGE, "lora.safetensors", "--method", "svd", "-o", "out.safetensors")),
    Case("merge --unmerge", "merge", ("--unmerge", "undo.safetensors", "merged.ckpt", "lora.safetensors", "-o", "out")),
    Case(
        "merge --adapters-only", "merge",
        ("--adapters-only", "lora.safetensors", "lora.safetensors", "--alpha", "8", "--method", "svd", "-o", "out"),
    ),
    Case("split --remainder", "split", ("combined", "--alpha", "8", "-o", "out", "--remainder", "rest.safetensors")),
    Case("inject", "inject", ("base.safetensors", "--config", "run.json", "-o", "out.ckpt")),
    Case("transform", "transform", ("base.safetensors", "-o", "out.ckpt")),
    Case("transform to ranks", "transform", ("base.safetensors", "--dst-strategy", "cut.ckpt", "-o", "out")),
    Case("verify", "verify", ("base.safetensors", "lora.safetensors", "merged.ckpt", "--alpha", "8")),
    Case("verify by manifest", "verify", ("merged.ckpt",)),
    Case("inspect", "inspect", ("base.safetensors",), has_limit=False),
    Case("inspect of a difference", "inspect", ("base.safetensors", "merged.ckpt"), has_limit=False),
)  # fmt: skip


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    try:
        with memory_group(GROUP_BYTES) as made:
            yield made
    except NoGroupError as error:
        pytest.skip(str(error))


def write_inputs(folder: Path, case: Case) -> list[str]:
    """What the case reads; the layers of its model."""
    names = sparse_base(folder / "base.safetensors", case.model_mib)
    adapter = mindpet(sparse_factors(names))
    save(folder / "lora.safetensors", adapter)
    if "cut.ckpt" in case.arguments:
        write_strategy(folder / "cut.ckpt", strategy_of({f"{name}.weight": Layout((8,), ((0,), ())) for name in names}))
    if "run.json" in case.arguments:
        pet = {"pet_type": "lora", "lora_rank": RANK, "lora_alpha": 8, "target_modules": ".*wq"}
        (folder / "run.json").write_text(json.dumps({"model": {"model_config": {"pet_config": pet}}}))
    if "combined" in case.arguments:
        (folder / "combined").mkdir()
        shards = {"base.safetensors": [f"{name}.weight" for name in names], "lora.safetensors": list(adapter)}
        for file in shards:
            (folder / "combined" / file).hardlink_to(folder / file)
        index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
        (folder / "combined" / "model.safetensors.index.json").write_text(json.dumps(index))
    if "merged.ckpt" in case.arguments:
        patch = ("--unmerge-patch", "undo.safetensors") if "undo.safetensors" in case.arguments else ()
        made = [*words("merge"), *_MERGE, "-o", "merged.ckpt", *patch, "-q"]
        subprocess.run(made, cwd=folder, env=environment(), check=True)
    for path in folder.rglob("*.*"):
        forget(path)
    return names


def forget(path: Path) -> None:
    """Take a file out of the page cache, else its pages count for the group that wrote it and not for its reader's."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def words(command: str) -> list[str]:
    return [sys.executable, "-m", f"ckpt_tools.cli.{command}"]


def test_what_takes_more_than_the_group_has_is_killed(group: MemoryGroup) -> None:
    ended = group.run([sys.executable, "-c", f"print(len(bytes(1) * {2 * GROUP_BYTES}))"])
    assert ended.returncode == -9, (ended.stdout, ended.stderr)


FEW = ("merge", "split --remainder", "transform", "inspect")


@pytest.mark.parametrize("case", [one for one in CASES if is_thorough() or one.name in FEW], ids=lambda case: case.name)
def test_a_model_larger_than_the_memory_is_worked_on(
    group: MemoryGroup, tmp_path: Path, case: Case, record_property: Tell
) -> None:
    names = write_inputs(tmp_path, case)
    limit = ["--max-memory", str(MAX_MEMORY)] if case.has_limit else []
    ended = group.run([*words(case.command), *case.arguments, "--threads", "2", "--json", "-q", *limit], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    predicted = json.loads(ended.stdout).get("peak_memory_bytes", 0)
    record_property("model, MiB", case.model_mib)
    record_property("predicted, MB", predicted // 10**6)
    record_property("resident at most, MB", ended.resident_bytes // 10**6)
    record_property("group with its page cache at most, MB", group.peak_bytes() // 10**6)
    record_property("milliseconds", round(1000 * ended.seconds))
    assert predicted <= MAX_MEMORY
    assert ended.resident_bytes <= MAX_MEMORY
    if case.command == "merge" and (tmp_path / "out.safetensors").exists():
        merged = open_checkpoint(tmp_path / "out.safetensors").tensors[f"{names[-1]}.weight"].read(((0, 4), (0, 4096)))
        assert np.count_nonzero(merged.astype(np.float32)) > 1000
    for path in tmp_path.iterdir():  # which pytest would keep for three runs
        shutil.rmtree(path) if path.is_dir() else path.unlink()
