"""What every reader promises, whatever the format: a subclass says how its kind of checkpoint is written."""

import pickle
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from helpers import materialise

from ckpt_tools.formats import index_json, index_name, layout_ckpt, layout_safetensors, open_checkpoint, plan_shards
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.views import Constant
from surgery.errors import PetSurgeryError

ARRAYS: dict[str, np.ndarray] = {
    "model.w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "model.half": np.arange(4).astype(ml_dtypes.bfloat16),
    "count": np.array([[-1], [2]], np.int64),
    "mask": np.array([True, False, True, True, False, True, True, False]),
    "none": np.zeros((0, 2), np.float16),
}


def named(arrays: Mapping[str, np.ndarray]) -> list[NamedTensor]:
    return [(name, Constant(array, dtype_of(array))) for name, array in arrays.items()]


def write_file(path: Path, tensors: list[NamedTensor]) -> Path:
    layout = layout_ckpt(tensors) if path.suffix == ".ckpt" else layout_safetensors(tensors, {"format": "ms"})
    path.write_bytes(materialise(layout, tensors))
    return path


def write_shards(folder: Path, extension: str, with_index: bool) -> Path:
    shards = plan_shards(named(ARRAYS), 60, extension)
    for file, group in shards:
        write_file(folder / file, group)
    if with_index:
        (folder / index_name(extension)).write_bytes(index_json(shards, {}))
    return folder


def contents(path: Path) -> dict[str, bytes]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


class ReaderContract(ABC):
    """Behaviour that all readers share."""

    keeps_order = True

    @abstractmethod
    def write(self, folder: Path) -> Path:
        """Write `ARRAYS` into an empty folder; the path to open."""

    def test_names_types_shapes_and_values_are_those_that_were_written(self, tmp_path: Path) -> None:
        tensors = open_checkpoint(self.write(tmp_path)).tensors
        assert list(tensors) == list(ARRAYS) if self.keeps_order else set(tensors) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert tensors[name].dtype == dtype_of(array)
            assert tensors[name].shape == array.shape
            assert tensors[name].read_all().tobytes() == array.tobytes()

    def test_a_slice_is_the_slice_of_what_was_written(self, tmp_path: Path) -> None:
        tensor = open_checkpoint(self.write(tmp_path)).tensors["model.w"]
        assert np.array_equal(tensor.read(((1, 3), (2, 3))), ARRAYS["model.w"][1:3, 2:3])

    def test_the_path_sources_and_bytes_are_reported(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == path
        assert checkpoint.is_folder == path.is_dir()
        assert checkpoint.nbytes == sum(array.nbytes for array in ARRAYS.values())
        assert {run.source for tensor in checkpoint.tensors.values() for run in tensor.runs} <= set(checkpoint.sources)
        assert checkpoint.warnings == ()

    def test_every_tensor_of_a_folder_has_a_shard_that_is_a_file_and_those_of_a_file_have_none(
        self, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path)
        checkpoint = open_checkpoint(path)
        assert set(checkpoint.shards) == (set(ARRAYS) if path.is_dir() else set())
        assert all((path / file).is_file() for file in checkpoint.shards.values())

    def test_the_input_is_not_touched(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        before = contents(path), path.stat().st_mtime_ns
        open_checkpoint(path).tensors["model.w"].read_all()
        assert (contents(path), path.stat().st_mtime_ns) == before

    def test_tensors_travel_to_other_processes(self, tmp_path: Path) -> None:
        tensors = open_checkpoint(self.write(tmp_path)).tensors
        assert pickle.loads(pickle.dumps(dict(tensors))) == tensors

    def test_a_damaged_file_is_read_or_refused_but_never_a_crash(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for seed in range(150):
            chance = random.Random(seed)
            file = chance.choice(files)
            sound = file.read_bytes()
            damaged = bytearray(sound)
            for _ in range(chance.randint(1, 3)):
                start = chance.randint(0, len(damaged))
                stop = min(start + chance.randint(0, 4), len(damaged))
                damaged[start:stop] = chance.randbytes(chance.randint(0, 4))
            file.write_bytes(damaged)
            try:
                checkpoint = open_checkpoint(path)
            except PetSurgeryError as error:
                assert error.exit_code in (3, 4)  # noqa: PT017 - a damage may be harmless
            else:
                assert all(tensor.read_all().nbytes == tensor.nbytes for tensor in checkpoint.tensors.values())
            file.write_bytes(sound)


class TestSafetensorsFile(ReaderContract):
    def write(self, folder: Path) -> Path:
        return write_file(folder / "x.safetensors", named(ARRAYS))


class TestFileOfTheSafetensorsPackage(ReaderContract):
    keeps_order = False

    def write(self, folder: Path) -> Path:
        safetensors.numpy.save_file(ARRAYS, folder / "x.safetensors", {"format": "np"})
        return folder / "x.safetensors"


class TestCkptFile(ReaderContract):
    def write(self, folder: Path) -> Path:
        return write_file(folder / "x.ckpt", named(ARRAYS))


class TestFolderOfOneFile(ReaderContract):
    def write(self, folder: Path) -> Path:
        write_file(folder / "model.safetensors", named(ARRAYS))
        return folder


class TestSafetensorsShards(ReaderContract):
    def write(self, folder: Path) -> Path:
        return write_shards(folder, ".safetensors", with_index=False)


class TestSafetensorsShardsWithIndex(ReaderContract):
    def write(self, folder: Path) -> Path:
        return write_shards(folder, ".safetensors", with_index=True)


class TestCkptShards(ReaderContract):
    def write(self, folder: Path) -> Path:
        return write_shards(folder, ".ckpt", with_index=False)


class TestCkptShardsWithIndex(ReaderContract):
    def write(self, folder: Path) -> Path:
        return write_shards(folder, ".ckpt", with_index=True)
