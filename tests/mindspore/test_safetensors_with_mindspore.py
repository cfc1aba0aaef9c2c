"""safetensors files and folders exchanged with real MindSpore, in both directions."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import mindspore
import ml_dtypes
import numpy as np
import pytest
from helpers import materialise
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

from ckpt_tools.formats import index_json, index_name, layout_safetensors, open_checkpoint, plan_shards
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.views import Constant

MINDSPORE_TYPES = {
    "bool": mindspore.bool_,
    "int8": mindspore.int8,
    "int16": mindspore.int16,
    "int32": mindspore.int32,
    "int64": mindspore.int64,
    "uint8": mindspore.uint8,
    "uint16": mindspore.uint16,
    "uint32": mindspore.uint32,
    "uint64": mindspore.uint64,
    "fp16": mindspore.float16,
    "fp32": mindspore.float32,
    "fp64": mindspore.float64,
    "bf16": mindspore.bfloat16,
}
VALUES = np.array([[0, 1, 2], [3, 1, 0]])


def constant(array: np.ndarray, dtype: str | None = None) -> Constant:
    return Constant(array, BY_NAME[dtype] if dtype else dtype_of(array))


def write(path: Path, tensors: list[NamedTensor], metadata: dict[str, str]) -> None:
    path.write_bytes(materialise(layout_safetensors(tensors, metadata), tensors))


def load(path: Path) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = mindspore.load_checkpoint(str(path), format="safetensors")
    return parameters


def test_every_type_that_mindspore_saves_is_read_with_its_values(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    saved = [{"name": name, "data": Tensor(VALUES, dtype)} for name, dtype in MINDSPORE_TYPES.items()]
    saved.append({"name": "scalar", "data": Tensor(7, mindspore.int32)})
    mindspore.save_checkpoint(saved, str(path), format="safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata == {"format": "ms"}
    assert checkpoint.warnings == ()
    assert checkpoint.tensors["scalar"].read_all().shape == ()
    for name in MINDSPORE_TYPES:
        assert checkpoint.tensors[name].dtype.name == name
        assert np.array_equal(checkpoint.tensors[name].read_all(), VALUES.astype(BY_NAME[name].numpy))


def test_every_type_loads_in_mindspore_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors: list[NamedTensor] = [("odd", constant(np.zeros(3, np.uint8)))]
    tensors += [(name, constant(VALUES.astype(BY_NAME[name].numpy), name)) for name in MINDSPORE_TYPES]
    tensors += [("empty", constant(np.zeros((0, 2), np.float32))), ("scalar", constant(np.full((), 7, np.int32)))]
    write(path, tensors, {"format": "ms", "odd": "anything", "crc_num": "1"})
    loaded = load(path)
    assert set(loaded) == {name for name, _ in tensors}
    assert loaded["empty"].shape == (0, 2)
    assert loaded["scalar"].shape == ()
    for name, dtype in MINDSPORE_TYPES.items():
        assert loaded[name].dtype == dtype
        assert np.array_equal(loaded[name].astype(mindspore.float32).asnumpy(), VALUES.astype(BY_NAME[name].numpy))


def test_int4_travels_in_both_directions(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    values = np.array([1, -8, 7], np.int8)
    write(ours, [("q", constant(values, "int4"))], {"format": "ms"})
    loaded = load(ours)
    assert loaded["q"].dtype == mstype.qint4x2
    mindspore.save_checkpoint([{"name": "q", "data": loaded["q"]}], str(theirs), format="safetensors")
    tensor = open_checkpoint(theirs).tensors["q"]
    assert tensor.dtype.name == "int4"
    assert tensor.read_all().tolist() == values.tolist()


def test_a_file_with_mindspores_checksum_is_read_and_written_without_it(tmp_path: Path) -> None:
    path, copy = tmp_path / "x.safetensors", tmp_path / "copy.safetensors"
    saved = [{"name": "w", "data": Tensor(VALUES, mindspore.float32)}]
    mindspore.save_checkpoint(saved, str(path), format="safetensors", crc_check=True)
    checkpoint = open_checkpoint(path)
    assert "crc_num" in checkpoint.metadata
    write(copy, list(checkpoint.tensors.items()), dict(checkpoint.metadata))
    assert open_checkpoint(copy).metadata == {"format": "ms"}
    assert np.array_equal(
        mindspore.load_checkpoint(str(copy), format="safetensors", crc_check=True)["w"].asnumpy(), VALUES
    )


def test_the_bytes_are_those_that_mindspore_writes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    arrays = {"a": VALUES.astype(np.float32), "b": VALUES.astype(np.float32), "c": VALUES.astype(ml_dtypes.bfloat16)}
    saved = [
        {"name": name, "data": Tensor(array.astype(np.float32)).astype(MINDSPORE_TYPES[dtype_of(array).name])}
        for name, array in arrays.items()
    ]
    mindspore.save_checkpoint(saved, str(theirs), format="safetensors")
    write(ours, [(name, constant(array)) for name, array in arrays.items()], {"format": "ms"})
    assert ours.read_bytes() == theirs.read_bytes()


def strategy_of_two_devices(path: Path, split: list[str]) -> None:
    """A strategy that cuts these parameters' first axis in two."""
    strategy = ParallelStrategyMap()
    strategy.current_stage = 0
    for name in split:
        item = strategy.parallel_layout_item.add()
        item.param_name = name
        layouts = item.parallel_layouts
        layouts.dev_matrix.add().dim.append(2)
        layouts.tensor_map.add().dim.extend([0, -1])
        layouts.param_split_shape.add()
        layouts.indices_offset.add()
        layouts.field = layouts.opt_weight_shard_step = layouts.opt_weight_shard_size = 0
    path.write_bytes(strategy.SerializeToString())


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """The folder that `unified_safetensors` makes of two ranks: parts, a name map and the hyper parameters."""
    for rank in (0, 1):
        saved = [
            {"name": name, "data": Tensor(np.full((2, 3), 10 * i + rank), mindspore.float32)}
            for i, name in enumerate(("u.weight", "v.weight"))
        ]
        saved.append({"name": "global_step", "data": Tensor(5, mindspore.int32)})
        folder = tmp_path / "ranks" / f"rank_{rank}"
        folder.mkdir(parents=True)
        mindspore.save_checkpoint(saved, str(folder / "x.safetensors"), format="safetensors")
    strategy_of_two_devices(tmp_path / "strategy.ckpt", ["u.weight", "v.weight"])
    mindspore.parallel.unified_safetensors(
        str(tmp_path / "ranks"), str(tmp_path / "strategy.ckpt"), str(tmp_path / "unified"), max_process_num=1
    )
    return tmp_path / "unified"


def test_a_folder_of_unified_safetensors_is_read(unified: Path) -> None:
    assert json.loads((unified / "param_name_map.json").read_text())["metadata"] == {"total_size": 96}
    for path in (unified, unified / "param_name_map.json"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == unified
        assert checkpoint.shards["global_step"] == "hyper_param.safetensors"
        assert checkpoint.tensors["v.weight"].read_all()[:, 0].tolist() == [10, 10, 11, 11]
        assert checkpoint.tensors["u.weight"].shape == (4, 3)
        assert checkpoint.metadata == {"format": "ms"}
        assert checkpoint.companions == ()
        assert checkpoint.warnings == ()


def test_ckpt_shards_have_the_names_and_the_index_that_mindformers_writes(tmp_path: Path) -> None:
    utils = importlib.import_module("mindformers.models.modeling_utils")
    state = {f"t{i}": Parameter(Tensor(np.zeros(size), mindspore.float32)) for i, size in enumerate((6, 6, 2, 6, 2, 2))}
    theirs, index = utils.shard_checkpoint(state, max_shard_size=40)
    tensors = [(name, constant(parameter.asnumpy())) for name, parameter in state.items()]
    ours = plan_shards(tensors, 40, ".ckpt")
    assert {file: list(shard) for file, shard in theirs.items()} == {
        f: [name for name, _ in group] for f, group in ours
    }
    assert index_json(ours, {}).decode() == json.dumps(index, indent=2, sort_keys=True) + "\n"
    assert index_name(".ckpt") == utils.WEIGHTS_INDEX_NAME
    for file, shard in theirs.items():
        mindspore.save_checkpoint(shard, str(tmp_path / file))
    (tmp_path / index_name(".ckpt")).write_bytes(index_json(ours, {}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "ckpt"
    assert checkpoint.shards == index["weight_map"]
