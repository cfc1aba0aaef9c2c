"""`save_checkpoint` writes what the formats' readers read, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from lazy_cases import stored

from ckpt_tools import open_checkpoint
from ckpt_tools.saving import save_checkpoint
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.views import Cast
from surgery.errors import MismatchError, OutputExistsError, UsageError

ARRAYS = {
    "strided": np.arange(24, dtype=np.float32).reshape(4, 6).T[::2],
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.int8),
    "bf16": np.arange(4).astype(ml_dtypes.bfloat16),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".CKPT"])
def test_what_is_saved_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"x{suffix}"
    save_checkpoint(path, ARRAYS)
    found = open_checkpoint(path)
    assert found.format == suffix[1:].lower()
    assert sorted(found.tensors) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        read = found.tensors[name].read_all()
        assert read.dtype == array.dtype
        assert np.array_equal(read, array)


def test_lazy_tensors_and_metadata_are_saved(tmp_path: Path) -> None:
    tensor = Cast(stored(tmp_path / "in", np.arange(5, dtype=np.float32)), BY_NAME["fp16"])
    save_checkpoint(str(tmp_path / "x.safetensors"), {"a": tensor}, metadata={"format": "np", "who": "ä"})
    assert safetensors.numpy.load_file(tmp_path / "x.safetensors")["a"].dtype == np.float16
    with safetensors.safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "np", "who": "ä"}


def test_a_crc_is_appended_when_it_is_asked_for(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.ckpt", ARRAYS, crc=True)
    save_checkpoint(tmp_path / "y.ckpt", ARRAYS)
    x, y = ((tmp_path / name).read_bytes() for name in ("x.ckpt", "y.ckpt"))
    assert x[:-17] == y
    assert open_checkpoint(tmp_path / "x.ckpt").crc


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x", {}, r"suffix \(none\)"),
        ("x.bin", {}, "suffix .bin"),
        ("x.ckpt", {"metadata": {"a": "b"}}, "metadata for a .ckpt"),
        ("x.safetensors", {"crc": True}, "a CRC for a .safetensors"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused(
    tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        save_checkpoint(tmp_path / name, ARRAYS, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [">f4", "U3", "O", "M8[s]"])
def test_an_array_that_no_checkpoint_can_hold_is_named(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(MismatchError, match=r"odd: expected one of bool.*found elements of numpy's type"):
        save_checkpoint(tmp_path / "x.ckpt", {"odd": np.zeros(2, dtype)})


def test_a_type_that_the_format_lacks_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="complex128"):
        save_checkpoint(tmp_path / "x.safetensors", {"odd": np.zeros(2, np.complex128)})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_by_force_alone(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"old")
    with pytest.raises(OutputExistsError):
        save_checkpoint(tmp_path / "x.ckpt", ARRAYS)
    assert (tmp_path / "x.ckpt").read_bytes() == b"old"
    save_checkpoint(tmp_path / "x.ckpt", ARRAYS, force=True)
    assert open_checkpoint(tmp_path / "x.ckpt").tensors
