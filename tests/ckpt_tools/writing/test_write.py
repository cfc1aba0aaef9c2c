"""What is executed is what was laid out, byte for byte, whatever the threads and the bands."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers import materialise
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_cases import arrays, shapes, stored

from ckpt_tools.formats.ckpt import layout_ckpt, read_ckpt
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.assembled import concatenated
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.folding import LowRankTerm, Merged
from ckpt_tools.tensors.lazy import LazyTensor, Statistics
from ckpt_tools.tensors.sources import close_sources, open_source
from ckpt_tools.tensors.views import Cast, Constant, Reshaped, Sliced, Transposed
from ckpt_tools.writing import plan as planning
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import Entry, OutputBytes, OutputCopy, OutputFile, Plan
from ckpt_tools.writing.write import execute

SMALL_SLICE = 100


def constant(array: np.ndarray) -> Constant:
    return Constant(array, dtype_of(array))


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def merged(weight: LazyTensor, dtype: str = "bf16") -> Merged:
    *stack, rows, columns = weight.shape
    term = LowRankTerm(constant(random(1, *stack, rows, 2)), constant(random(2, *stack, 2, columns)), 0.5)
    return Merged(weight, (term,), BY_NAME[dtype])


def folder_of(path: Path, *entries: Entry) -> Plan:
    return Plan(path, True, entries)


@st.composite
def tensor_lists(draw: st.DrawFn, folder: Path) -> list[NamedTensor]:
    """Stored, cast, folded and constant tensors; several of the stored ones share files or follow each other."""
    tensors: list[NamedTensor] = []
    for number in range(draw(st.integers(0, 6))):
        shape = draw(shapes(3, 12))
        dtype = BY_NAME[draw(st.sampled_from(["int8", "fp16", "bf16", "fp32", "int64"]))]
        array = draw(arrays(shape, dtype))
        cuts = tuple(draw(st.lists(st.integers(0, 500), max_size=2)))
        tensor: LazyTensor = stored(folder / f"in{number}", array, cuts)
        kind = draw(st.sampled_from(["stored", "cast", "folded", "constant", "twice"]))
        if kind == "constant":
            tensor = constant(array)
        elif kind == "cast" and dtype.is_float:
            tensor = Cast(tensor, BY_NAME["fp32"])
        elif kind == "folded" and dtype.is_float and len(shape) >= 2:
            tensor = Reshaped(merged(tensor, dtype.name), (array.size,))
        elif kind == "twice" and shape:
            tensor = concatenated((tensor, tensor))
        tensors.append((f"tensor {number}", tensor))
    return tensors


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_file_holds_what_was_laid_out(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        # MindSpore's 512 MiB would make large tests.
        patch.setattr(planning, "layout_ckpt", functools.partial(layout_ckpt, slice_bytes=SMALL_SLICE))
        tensors = tuple(data.draw(tensor_lists(folder)))
        format = data.draw(st.sampled_from(["ckpt", "safetensors"]))
        crc = format == "ckpt" and data.draw(st.booleans())
        file = OutputFile(f"out.{format}", format, tensors, crc=crc)
        expected = materialise(file.layout(), tensors)
        if crc:
            expected += b"crc_num" + zlib.crc32(expected).to_bytes(10, "big")
        budget = Budget(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 200)))
        outcome = execute(Plan(folder / file.name, False, (file,)), budget=budget)
        assert (folder / file.name).read_bytes() == expected
        assert outcome.bytes_written == len(expected)
        assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("in")) == [file.name]
        close_sources()


def test_a_crc_is_the_one_that_mindspore_appends(tmp_path: Path) -> None:
    tensors = (("a", constant(random(0, 5, 6))),)
    execute(folder_of(tmp_path / "out", OutputFile("x.ckpt", "ckpt", tensors, crc=True)))
    data = (tmp_path / "out" / "x.ckpt").read_bytes()
    assert data[-17:-10] == b"crc_num"
    assert int.from_bytes(data[-10:], "big") == zlib.crc32(data[:-17])
    assert list(read_ckpt(tmp_path / "out" / "x.ckpt").crc.values()) == [zlib.crc32(data[:-17])]


def test_every_number_of_threads_and_every_band_gives_the_same_bytes(tmp_path: Path) -> None:
    weight = stored(tmp_path / "w", random(0, 70, 90))
    tensors = (("a", merged(weight)), ("b", weight), ("c", Cast(Transposed(weight), BY_NAME["fp16"])))
    outputs = set()
    for threads in (1, 2, 7):
        for band in (1, 90, 1000, 10**6):
            path = tmp_path / f"{threads}-{band}.safetensors"
            file = OutputFile(path.name, "safetensors", tensors)
            execute(Plan(path, False, (file,)), budget=Budget(threads, band))
            outputs.add(path.read_bytes())
    assert len(outputs) == 1


def test_files_lie_in_the_folders_of_their_names(tmp_path: Path) -> None:
    tensors = (("a", constant(random(0, 3))),)
    files = [OutputFile(f"rank_{rank}/x.ckpt", "ckpt", tensors) for rank in range(3)]
    (tmp_path / "tokens").write_bytes(b"12")
    copy, small = OutputCopy("extra/tokens", open_source(tmp_path / "tokens")), OutputBytes("extra/more/x.json", b"{}")
    outcome = execute(folder_of(tmp_path / "out", *files, copy, small))
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    whole = materialise(layout_ckpt(tensors), tensors)
    assert found == {f"rank_{n}/x.ckpt": whole for n in range(3)} | {"extra/tokens": b"12", "extra/more/x.json": b"{}"}
    assert outcome.bytes_written == 3 * len(whole) + 4


def test_a_file_without_tensors_and_a_folder_without_files_are_written(tmp_path: Path) -> None:
    execute(folder_of(tmp_path / "none", OutputFile("x.safetensors", "safetensors", ())))
    assert (tmp_path / "none" / "x.safetensors").read_bytes() == b"\x08\0\0\0\0\0\0\0{}      "
    execute(folder_of(tmp_path / "empty"))
    assert list((tmp_path / "empty").iterdir()) == []


def test_tensors_without_elements_are_kept(tmp_path: Path) -> None:
    tensors = tuple((str(n), constant(np.zeros(shape, np.float32))) for n, shape in enumerate([(0,), (0, 3), (2, 0)]))
    execute(Plan(tmp_path / "x.ckpt", False, (OutputFile("x.ckpt", "ckpt", tensors),)))
    read = read_ckpt(tmp_path / "x.ckpt").tensors
    assert {name: tensor.shape for name, tensor in read.items()} == {"0": (0,), "1": (0, 3), "2": (2, 0)}


def test_many_small_tensors_are_written(tmp_path: Path) -> None:
    source = stored(tmp_path / "in", np.arange(10_000, dtype=np.int16))
    tensors: list[NamedTensor] = []
    for number in range(5000):
        part = Constant(np.int16([number]), BY_NAME["int16"]) if number % 100 == 0 else source
        tensors.append((f"t{number}", part if number % 100 == 0 else _element(source, number)))
    file = OutputFile("x.safetensors", "safetensors", tuple(tensors))
    execute(Plan(tmp_path / "x.safetensors", False, (file,)), budget=Budget(2))
    data = (tmp_path / "x.safetensors").read_bytes()
    assert np.array_equal(np.frombuffer(data[-10_000:], np.int16), np.arange(5000))


def _element(source: LazyTensor, number: int) -> LazyTensor:
    return Sliced(source, ((number, number + 1),))


class Meter:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def start(self, total_bytes: int, what: str) -> None:
        self.calls.append(("start", total_bytes))

    def advance(self, done_bytes: int) -> None:
        self.calls.append(("advance", done_bytes))

    def finish(self) -> None:
        self.calls.append(("finish", 0))


@pytest.mark.parametrize("crc", [False, True])
def test_progress_ends_where_it_said_it_would(tmp_path: Path, crc: bool) -> None:
    weight = stored(tmp_path / "w", random(0, 70, 90))
    file = OutputFile("x.ckpt", "ckpt", (("a", merged(weight)), ("b", weight)), crc=crc)
    meter = Meter()
    execute(Plan(tmp_path / "x.ckpt", False, (file,)), progress=meter, budget=Budget(2, 500))
    assert meter.calls[0] == ("start", (tmp_path / "x.ckpt").stat().st_size)
    assert meter.calls[-1] == ("finish", 0)
    assert sum(count for call, count in meter.calls if call == "advance") == meter.calls[0][1]


def test_what_was_measured_is_told_by_name_and_does_not_depend_on_the_order_of_the_threads(tmp_path: Path) -> None:
    weight = stored(tmp_path / "w", random(0, 70, 90))
    tensors = (("a", merged(weight)), ("b", weight), ("c", Reshaped(merged(weight), (70, 9, 10))))
    outcomes = [
        execute(folder_of(tmp_path / str(n), OutputFile("x.ckpt", "ckpt", tensors)), budget=Budget(threads, 300))
        for n, threads in enumerate((1, 2, 5))
    ]
    statistics = [{name: asdict(s) for name, s in outcome.statistics.items()} for outcome in outcomes]
    assert statistics[0] == statistics[1] == statistics[2]
    assert set(statistics[0]) == {"a", "c"}
    assert statistics[0]["a"]["elements"] == statistics[0]["c"]["elements"] == 6300
    direct = Statistics()
    merged(weight).read(((0, 70), (0, 90)), direct)
    assert np.isclose(statistics[0]["a"]["delta_square"], direct.delta_square)


def dead_run(plan: Plan, complete: Callable[[Path], object]) -> None:
    """What a killed run leaves behind."""
    hidden = plan.output.parent / f".{plan.output.name}.pet-surgery"
    (hidden / "content").mkdir(parents=True)
    (hidden / "plan.sha256").write_text(plan.digest())
    complete(hidden)


def test_what_a_killed_run_completed_is_taken_over(tmp_path: Path) -> None:
    files = [OutputFile(f"{n}.ckpt", "ckpt", (("a", merged(constant(random(n, 4, 5)))),)) for n in range(2)]
    plan = folder_of(tmp_path / "out", *files)
    data = b"of the killed run"
    measured = {"a": {"0:4,0:5": asdict(Statistics(elements=123))}}

    def complete(hidden: Path) -> None:
        (hidden / "content" / "0.ckpt").write_bytes(data)
        mtime_ns = (hidden / "content" / "0.ckpt").stat().st_mtime_ns
        known = {"size": len(data), "mtime_ns": mtime_ns, "measured": measured, "digests": {}}
        (hidden / "parts" / "of the killed run").mkdir(parents=True)
        (hidden / "parts" / "of the killed run" / "1.ckpt").write_bytes(b"half")
        (hidden / "0.ckpt.statistics.json").write_text(json.dumps(known))

    dead_run(plan, complete)
    outcome = execute(plan)
    assert outcome.resumed == ["0.ckpt"]
    assert (tmp_path / "out" / "0.ckpt").read_bytes() == b"of the killed run"
    expected = materialise(files[1].layout(), files[1].tensors)
    assert (tmp_path / "out" / "1.ckpt").read_bytes() == expected
    assert outcome.bytes_written == len(expected)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    "left",
    [
        None,
        "",
        "{",
        "[]",
        '{"a": 1}',
        '{"size": 17, "mtime_ns": 1000, "measured": {"a": {"0:4": {"unknown": 1}}}, "digests": {}}',
        '{"size": 18, "mtime_ns": 1000, "measured": {}, "digests": {}}',
        '{"size": 17, "mtime_ns": 1001, "measured": {}, "digests": {}}',
        '{"size": 17, "mtime_ns": 1000, "measured": {}}',
    ],
)
def test_a_file_that_was_touched_or_whose_facts_were_lost_is_written_again(tmp_path: Path, left: str | None) -> None:
    file = OutputFile("0.ckpt", "ckpt", (("a", merged(constant(random(0, 4, 5)))),))
    plan = folder_of(tmp_path / "out", file)

    def complete(hidden: Path) -> None:
        (hidden / "content" / "0.ckpt").write_bytes(b"of the killed run")
        os.utime(hidden / "content" / "0.ckpt", ns=(1000, 1000))
        if left is not None:
            (hidden / "0.ckpt.statistics.json").write_text(left)

    dead_run(plan, complete)
    outcome = execute(plan)
    assert outcome.resumed == []
    assert outcome.statistics["a"].elements == 20
    assert (tmp_path / "out" / "0.ckpt").read_bytes() == materialise(file.layout(), file.tensors)
