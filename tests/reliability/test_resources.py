"""What the machine gives is enough: few open files for a thousand ranks, little memory for a large model, checked room.

The kernel holds the limits (`ulimit`): what goes beyond one fails, and the test with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import PET_MERGE, environment
from merge_cases import mindpet, random, save
from rank_folders import strategy_of, write_ranks
from sparse_models import sparse_base, sparse_factors
from thoroughness import is_thorough
from transform_cases import write_strategy

from ckpt_tools.formats import open_checkpoint
from ckpt_tools.layout.model import Layout

Tell = Callable[[str, object], None]

RANKS, OPEN_FILES = 1024, 256
MIB = 2**20


# A process has the peak of the one that it was forked from, so that a small one is in between.
LIMITED = """
import resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
subprocess.run(sys.argv[2:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


FEW_FILES = """
import importlib, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
from ckpt_tools.cli.common import run
name = sys.argv[2]
run(getattr(importlib.import_module(f"ckpt_tools.cli.{name}"), f"{name}_command"), sys.argv[3:])
"""


def with_few_files(folder: Path, *arguments: str) -> None:
    """Run a command to its end in a process of its own, which has none of the files that other tests left open."""
    command = [sys.executable, "-c", FEW_FILES, str(OPEN_FILES), *arguments, "-q", "--threads", "2"]
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[:2000]


@pytest.fixture
def ranks(disk: Path) -> Path:
    """A checkpoint whole and in 1,024 rank folders, and the strategy that cuts it."""
    tensors = {"a.weight": random(0, RANKS, 4), "norm.weight": random(1, 4)}
    strategy = strategy_of({"a.weight": Layout((RANKS,), ((0,), ())), "norm.weight": Layout((RANKS,), ((),))})
    save(disk / "whole.ckpt", tensors)
    write_ranks(disk / "ranks", tensors, strategy)
    write_strategy(disk / "cut.ckpt", strategy)
    return disk


def test_a_thousand_ranks_are_read_and_written_with_256_open_files(ranks: Path) -> None:
    cut = str(ranks / "cut.ckpt")
    ways = {
        "joined.ckpt": ("ranks", "--src-strategy", cut),
        "cut": ("whole.ckpt", "--dst-strategy", cut),
    }
    if is_thorough():
        ways["again"] = ("ranks", "--src-strategy", cut, "--dst-strategy", cut)
    for output, (source, *options) in ways.items():
        with_few_files(ranks, "transform", source, *options, "-o", output)
    whole = open_checkpoint(ranks / "whole.ckpt").tensors
    joined = open_checkpoint(ranks / "joined.ckpt").tensors
    for name, tensor in whole.items():
        assert np.array_equal(joined[name].read_all(), tensor.read_all())
    for folder in [name for name in ways if name != "joined.ckpt"]:
        for rank in range(RANKS):
            found = open_checkpoint(ranks / folder / f"rank_{rank}" / f"checkpoint_{rank}.ckpt").tensors
            assert np.array_equal(found["a.weight"].read_all(), whole["a.weight"].read_all()[rank : rank + 1])
            assert np.array_equal(found["norm.weight"].read_all(), whole["norm.weight"].read_all())


LAYER = "model.layers.0.attention.wq"
NORM = "model.norm_out.weight"
BASE = {f"{LAYER}.weight": random(0, RANKS, 16), NORM: random(1, 16)}
LORA = mindpet({f"{LAYER}.A": random(2, 2, 16), f"{LAYER}.B": random(3, RANKS, 2)})
CUT = strategy_of({f"{LAYER}.weight": Layout((RANKS,), ((0,), ())), NORM: Layout((RANKS,), ((),))})
CUT_OF_BOTH = strategy_of(
    {
        f"{LAYER}.weight": Layout((RANKS,), ((0,), ())),
        NORM: Layout((RANKS,), ((),)),
        f"{LAYER}.mindpet_delta_lora_a": Layout((RANKS,), ((), ())),
        f"{LAYER}.mindpet_delta_lora_b": Layout((RANKS,), ((0,), ())),
    }
)
_BASE, _ALPHA = ("base", "--src-strategy", "cut.ckpt"), ("--alpha", "8")
READING = {
    "split": ("split", "both", "--src-strategy", "cut-both.ckpt", *_ALPHA, "-o", "lora-2", "--remainder", "rest.ckpt"),
    "merge": ("merge", *_BASE, "lora.ckpt", *_ALPHA, "-o", "out.ckpt", "--unmerge-patch", "undo.safetensors"),
    "unmerge": (
        "merge",
        "--unmerge",
        "undo.safetensors",
        "merged",
        "lora.ckpt",
        "--src-strategy",
        "cut.ckpt",
        "-o",
        "b",
    ),
    "verify": ("verify", *_BASE, "lora.ckpt", "merged", "--merged-strategy", "cut.ckpt", *_ALPHA),
    "verify by manifest": ("verify", "merged", "--src-strategy", "cut.ckpt"),
    "extraction": (
        "split",
        "merged",
        "--base",
        *_BASE,
        "--base-strategy",
        "cut.ckpt",
        "--rank",
        "2",
        "-o",
        "extracted",
    ),
    "inspect": ("inspect", *_BASE),
    "difference": ("inspect", *_BASE, "merged", "--other-strategy", "cut.ckpt"),
    "inject": ("inject", *_BASE, "--config", "run.json", "--dst-strategy", "cut-both.ckpt", "-o", "injected"),
}


def test_every_command_reads_a_thousand_ranks_with_256_open_files(disk: Path) -> None:
    write_ranks(disk / "base", BASE, CUT)
    write_strategy(disk / "cut.ckpt", CUT)
    write_ranks(disk / "both", BASE | LORA, CUT_OF_BOTH)
    write_strategy(disk / "cut-both.ckpt", CUT_OF_BOTH)
    save(disk / "lora.ckpt", LORA)
    pet = {"pet_type": "lora", "lora_rank": 2, "lora_alpha": 8, "target_modules": ".*wq"}
    (disk / "run.json").write_text(json.dumps({"model": {"model_config": {"pet_config": pet}}}))
    if is_thorough():
        with_few_files(disk, "merge", *_BASE, "lora.ckpt", "--dst-strategy", "cut.ckpt", *_ALPHA, "-o", "merged")
    for name in READING if is_thorough() else ("split",):
        with_few_files(disk, *READING[name])
    rest = open_checkpoint(disk / "rest.ckpt").tensors
    assert all(np.array_equal(rest[name].read_all(), array) for name, array in BASE.items())


def test_a_model_larger_than_the_memory_allowed_is_merged(tmp_path: Path, record_property: Tell) -> None:
    nbytes, allowed = (4096 if is_thorough() else 384) * MIB, 160 * 10**6
    names = sparse_base(tmp_path / "base.safetensors", nbytes // MIB)
    save(tmp_path / "lora.safetensors", mindpet(sparse_factors(names)))
    arguments = [tmp_path / "base.safetensors", tmp_path / "lora.safetensors", "--alpha", "8", "-q"]
    arguments += ["-o", tmp_path / "out.safetensors", "--threads", "2", "--max-memory", str(allowed)]
    # Stacks and buffers count for the kernel that are mapped and never touched.
    launcher = [sys.executable, "-c", LIMITED, str(allowed + 64 * MIB), *PET_MERGE, *map(str, arguments)]
    result = subprocess.run(launcher, env=environment(), capture_output=True, text=True, check=True)
    resident_bytes = int(result.stdout) * 1024
    record_property("model, MiB", nbytes // MIB)
    record_property("resident at most, MiB", resident_bytes // MIB)
    assert resident_bytes <= allowed
    merged = open_checkpoint(tmp_path / "out.safetensors").tensors[f"{names[-1]}.weight"].read(((0, 4), (0, 4096)))
    assert np.count_nonzero(merged.astype(np.float32)) > 1000
    (tmp_path / "out.safetensors").unlink()  # which pytest would keep for three runs
