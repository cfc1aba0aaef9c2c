"""A run that was killed is taken up where it was: what it completed is not written again, unless it is not sound."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import write_inputs
from durable import Durable, put_tree, take_times, take_tree
from merge_cases import factors, mindpet, random, save, write_folder
from tracing import Call, Ended, Kill, run_traced

from ckpt_tools.cli.common import run
from ckpt_tools.cli.merge import merge_command
from ckpt_tools.cli.transform import transform_command

SHARDS = 10
TARGETS = [f"model.layers.{number}.attention.wq" for number in range(SHARDS)]


@pytest.fixture
def folder(disk: Path) -> Path:
    """A base of ten shards, an adapter of one, and an empty folder for outputs."""
    base = {f"{target}.weight": random(number, 16, 16) for number, target in enumerate(TARGETS)}
    write_folder(disk / "base", base, shards=SHARDS)
    save(disk / "lora.ckpt", mindpet(factors(TARGETS[:1], rank=2)))
    (disk / "work").mkdir()
    return disk


def merge(folder: Path, *options: str, act: Callable[[Call], Kill | None] = lambda call: None) -> Ended:
    arguments = [str(folder / "base"), str(folder / "lora.ckpt"), "--alpha", "8", "-o", str(folder / "work" / "out")]
    return run_traced(
        lambda: run(merge_command, [*arguments, "--threads", "1", "-q", *options]),
        folder / "work",
        folder / "log",
        act,
    )


def weights_written(ended: Ended) -> int:
    """Bytes that a run wrote to files of weights."""
    names = ("write", "pwrite64", "copy_file_range")
    return sum(call.length for call in ended.calls if call.name in names and "/parts/" in call.paths[-1])


def completed(call: Call) -> bool:
    """Whether a call gives a complete file its name."""
    return call.name == "rename" and "/content/" in call.paths[-1]


def killed_at_nine_tenths(folder: Path, *options: str) -> None:
    seen: list[Call] = []

    def act(call: Call) -> Kill | None:
        seen.extend([call] if completed(call) else [])
        return Kill() if len(seen) == SHARDS else None  # before the last is

    assert merge(folder, *options, act=act).code < 0
    assert len(list((folder / "work" / ".out.pet-surgery" / "content").glob("*.safetensors"))) == SHARDS - 1


def whole(folder: Path, *options: str) -> tuple[dict[str, bytes | None], int]:
    """What an undisturbed run leaves, and how much it writes; it is removed again."""
    ended = merge(folder, *options)
    assert ended.code == 0, ended.err
    tree = take_tree(folder / "work")
    (folder / "work" / "out").rename(folder / f"whole{len(options)}")
    return tree, weights_written(ended)


@pytest.mark.parametrize("options", [(), ("--no-digest",)])
def test_a_run_killed_at_nine_tenths_writes_a_tenth_again(folder: Path, options: tuple[str, ...]) -> None:
    expected, everything = whole(folder, *options)
    killed_at_nine_tenths(folder, *options)
    ended = merge(folder, *options)
    assert ended.code == 0, ended.err
    assert take_tree(folder / "work") == expected
    companions = sum(len(data or b"") for name, data in expected.items() if not name.endswith(".safetensors"))
    assert weights_written(ended) - companions < 0.12 * (everything - companions)


@pytest.mark.parametrize("options", [(), ("--no-digest",)])
def test_a_complete_file_that_was_written_to_is_written_again_and_the_others_are_not(
    folder: Path, options: tuple[str, ...]
) -> None:
    expected, everything = whole(folder, *options)
    killed_at_nine_tenths(folder, *options)
    damaged = folder / "work" / ".out.pet-surgery" / "content" / f"model-00003-of-{SHARDS:05}.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    ended = merge(folder, *options)
    assert ended.code == 0, ended.err
    assert take_tree(folder / "work") == expected
    assert weights_written(ended) < 0.5 * everything


@pytest.mark.parametrize("options", [(), ("--no-digest",)])
def test_a_complete_file_that_lost_its_end_is_written_again(folder: Path, options: tuple[str, ...]) -> None:
    expected, _ = whole(folder, *options)
    killed_at_nine_tenths(folder, *options)
    damaged = folder / "work" / ".out.pet-surgery" / "content" / f"model-00003-of-{SHARDS:05}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert merge(folder, *options).code == 0
    assert take_tree(folder / "work") == expected


def write_to(path: Path) -> None:
    """Other values of the same size."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_unseen(path: Path) -> None:
    """Another file of the same size and time."""
    info = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    other = path.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [write_to, replace_unseen])
@pytest.mark.parametrize("which", ["base", "adapter"])
def test_inputs_that_changed_since_are_noticed_and_nothing_is_taken_over(
    folder: Path, which: str, change: Callable[[Path], None]
) -> None:
    _, everything = whole(folder)
    killed_at_nine_tenths(folder)
    change(folder / "lora.ckpt" if which == "adapter" else folder / "base" / f"model-00002-of-{SHARDS:05}.safetensors")
    ended = merge(folder)
    assert ended.code == 0, ended.err
    assert weights_written(ended) >= everything
    resumed = take_tree(folder / "work")
    (folder / "work" / "out").rename(folder / "resumed")
    assert merge(folder).code == 0
    assert take_tree(folder / "work") == resumed


def test_a_part_that_ended_well_outlives_a_loss_of_power(disk: Path) -> None:
    write_inputs(disk / "in")
    put_tree(disk / "work", {})
    durable = Durable(disk / "work")
    ranks = ("--src-strategy", str(disk / "in" / "src.ckpt"), "--dst-strategy", str(disk / "in" / "dst.ckpt"))
    arguments = [str(disk / "in" / "ranks"), *ranks, "-o", str(disk / "work" / "out"), "--threads", "1"]
    part = run_traced(
        lambda: run(transform_command, [*arguments, "--ranks", "0", "-q"]),
        disk / "work",
        disk / "log",
        durable.before,
        after=durable.after,
    )
    assert part.code == 0, part.err
    put_tree(disk / "work", durable.forgetful(), take_times(disk / "work"))
    last = run_traced(lambda: run(transform_command, [*arguments, "--json"]), disk / "work", disk / "log")
    assert last.code == 0, last.err
    assert json.loads(last.err)["resumed"] == ["rank_0/checkpoint_0.ckpt"]
