"""A plan says what will be written and read, and is told from every other plan, before a byte is written."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_cases import sliced, stored

from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.folding import LowRankTerm, Merged
from ckpt_tools.tensors.lazy import ByteRun, Stored, bands
from ckpt_tools.tensors.sources import open_source
from ckpt_tools.tensors.views import Cast, Constant, Sliced
from ckpt_tools.writing.plan import Entry, OutputBytes, OutputCopy, OutputFile, Plan
from ckpt_tools.writing.write import execute


def constant(*values: float) -> Constant:
    array = np.array(values, np.float32)
    return Constant(array, dtype_of(array))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=4).map(tuple) | st.tuples(st.integers(0, 300), st.integers(1, 9)), st.data()
)
def test_bands_cover_a_tensor_once_and_follow_each_other(shape: tuple[int, ...], data: st.DataObject) -> None:
    places = np.arange(math.prod(shape)).reshape(shape)
    limit = data.draw(st.integers(1, 400))
    pieces = [sliced(places, region) for region in bands(shape, limit)]
    flat = np.concatenate([piece.reshape(-1) for piece in pieces]) if pieces else np.arange(0)
    assert np.array_equal(flat, np.arange(places.size))
    longest_row = shape[-1] if len(shape) > 1 else 1
    assert all(piece.size <= max(limit, longest_row) for piece in pieces)


def test_bands_end_with_whole_tiles_where_they_can() -> None:
    assert [region[0] for region in bands((200, 10), 777)] == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert [region[0] for region in bands((10, 100), 777)] == [(0, 7), (7, 10)]


def test_a_tensor_without_axes_is_one_band() -> None:
    assert list(bands((), 1)) == [()]
    assert list(bands((0, 3), 1)) == []


def plan(*tensors: NamedTensor, **changes: object) -> Plan:
    file = OutputFile("x.safetensors", "safetensors", tensors)
    return Plan(Path("out"), True, (replace(file, **changes),))  # type: ignore[arg-type]


def merged(scaling: float = 0.5, dtype: str = "fp16") -> Merged:
    weight, left, right = (Constant(np.ones(s, np.float32), BY_NAME["fp32"]) for s in ((4, 5), (4, 2), (2, 5)))
    return Merged(weight, (LowRankTerm(left, right, scaling),), BY_NAME[dtype])


def test_a_plan_that_is_built_twice_or_travelled_has_one_digest(tmp_path: Path) -> None:
    stored(tmp_path / "x", np.ones((4, 5), np.float32))

    def build() -> Plan:
        source = open_source(tmp_path / "x")
        tensor = Stored(BY_NAME["fp32"], (4, 5), (ByteRun(source, 3, 80),))
        return plan(("a", tensor), ("b", merged()), ("c", constant(1, 2)), metadata={"k": "v"})

    digests = {build().digest(), build().digest(), pickle.loads(pickle.dumps(build())).digest()}
    elsewhere = replace(build(), output=Path("elsewhere"))
    assert digests == {elsewhere.digest()}
    assert len(digests.pop()) == 64


def test_all_that_decides_the_bytes_changes_the_digest(tmp_path: Path) -> None:
    a, b = ("a", constant(1, 2)), ("b", constant(3, 4))
    companion, other = tmp_path / "c", tmp_path / "d"
    for path in (companion, other):
        path.write_bytes(b"content")
    copies = OutputCopy("c", open_source(companion)), OutputCopy("c", open_source(other))
    plans = [
        plan(a, b),
        plan(b, a),
        plan(a),
        plan(a, ("c", b[1])),
        plan(a, ("b", constant(3, 5))),
        plan(a, ("b", Cast(b[1], BY_NAME["fp16"]))),
        plan(a, ("b", Cast(b[1], BY_NAME["bf16"]))),
        plan(a, ("b", Sliced(b[1], ((0, 1),)))),
        plan(a, ("b", Sliced(b[1], ((1, 2),)))),
        plan(("m", merged())),
        plan(("m", merged(scaling=0.5 + 2**-50))),
        plan(("m", merged(dtype="bf16"))),
        plan(a, b, metadata={"k": "v"}),
        plan(a, b, metadata={"k": "w"}),
        plan(a, b, name="y.safetensors"),
        plan(a, b, format="ckpt"),
        plan(a, b, format="ckpt", crc=True),
        replace(plan(a, b), is_folder=False),
        *(Plan(Path("out"), True, (*plan(a, b).entries, copy)) for copy in copies),
        *(Plan(Path("out"), True, (*plan(a, b).entries, OutputBytes("c", data))) for data in (b"1", b"2")),
    ]
    assert len({one.digest() for one in plans}) == len(plans)


@pytest.mark.parametrize("change", ["written to", "touched", "replaced", "moved"])
def test_another_input_changes_the_digest(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x"
    stored(path, np.ones(4, np.float32))

    def digest(path: Path) -> str:
        return plan(("a", Stored(BY_NAME["fp32"], (4,), (ByteRun(open_source(path), 3, 16),)))).digest()

    before, data = digest(path), path.read_bytes()
    changes: dict[str, Callable[[], object]] = {
        "written to": lambda: path.write_bytes(data + b"x"),
        "touched": lambda: os.utime(path, ns=(1, 1)),
        "replaced": lambda: (path.rename(tmp_path / "old"), path.write_bytes(data)),
        "moved": lambda: path.rename(tmp_path / "new"),
    }
    changes[change]()
    assert digest(tmp_path / "new" if change == "moved" else path) != before


def test_a_digest_is_of_any_name_even_one_that_no_file_could_hold() -> None:
    assert plan(("\ud800", constant(1))).digest() != plan(("\ud801", constant(1))).digest()


@pytest.mark.parametrize("crc", [False, True])
def test_what_will_be_written_is_what_is_written(tmp_path: Path, crc: bool) -> None:
    (tmp_path / "tokens").write_bytes(b"12345")
    tensors = (("a", constant(1, 2, 3)), ("m", merged()), ("empty", constant()))
    entries: Sequence[Entry] = (
        OutputFile("x.ckpt", "ckpt", tensors, crc=crc),
        OutputFile("y.safetensors", "safetensors", tensors, {"format": "pt"}),
        OutputCopy("tokens", open_source(tmp_path / "tokens")),
        OutputBytes("config.json", b"{}\n"),
    )
    whole = Plan(tmp_path / "out", True, tuple(entries))
    predicted = whole.bytes_written()
    outcome = execute(whole)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) == predicted
    assert outcome.bytes_written == predicted


def test_bytes_that_several_tensors_share_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    (tmp_path / "y").write_bytes(bytes(50))
    x, y = open_source(tmp_path / "x"), open_source(tmp_path / "y")

    def tensor(*runs: ByteRun) -> Stored:
        return Stored(BY_NAME["int8"], (sum(run.length for run in runs),), runs)

    def bytes_read(*tensors: Stored) -> int:
        return plan(*((str(n), tensor) for n, tensor in enumerate(tensors))).bytes_read()

    whole, first, middle = tensor(ByteRun(x, 0, 100)), tensor(ByteRun(x, 0, 30)), tensor(ByteRun(x, 20, 40))
    assert bytes_read(whole, whole) == 100
    assert bytes_read(first, middle) == 60
    assert bytes_read(middle, whole, first) == 100
    assert bytes_read(first, tensor(ByteRun(x, 90, 10))) == 40
    assert bytes_read(first, tensor(ByteRun(y, 0, 30))) == 60
    assert bytes_read(tensor(ByteRun(x, 0, 10), ByteRun(y, 10, 10))) == 20
    assert bytes_read() == 0
    copied = Plan(Path("out"), True, (*plan(("a", first)).entries, OutputCopy("y", y)))
    assert copied.bytes_read() == 80


def test_a_plan_knows_every_file_that_it_reads(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.ones(4, np.float32))
    (tmp_path / "tokens").write_bytes(b"1")
    entries = (*plan(("a", tensor), ("b", merged())).entries, OutputCopy("t", open_source(tmp_path / "tokens")))
    whole = Plan(Path("out"), True, entries)
    assert {Path(source.path).name for source in whole.sources()} == {"x", "tokens"}
    assert [name for name, _ in whole.tensors()] == ["a", "b"]
    assert [file.name for file in whole.files()] == ["x.safetensors"]


def test_planning_reads_and_writes_nothing(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.ones(4, np.float32))
    whole = plan(("a", tensor), ("b", Cast(tensor, BY_NAME["fp16"])))
    (tmp_path / "x").unlink()
    assert whole.bytes_read() == 16
    assert whole.bytes_written() > 24
    assert whole.digest()
    assert list(tmp_path.iterdir()) == []
