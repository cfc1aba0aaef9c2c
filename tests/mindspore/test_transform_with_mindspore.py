"""Transforms beside MindSpore's own, where it is right, and their outputs in MindSpore's and MindFormers' loaders."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import mindspore
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import layouts
from merge_cases import random
from mindformers.tools.ckpt_transform import TransformCkpt
from mindformers.utils.load_checkpoint_utils import (
    CheckpointFileMode,
    _get_checkpoint_mode,
    _get_src_file,
    get_last_checkpoint,
)
from mindspore import Parameter, Tensor, nn
from mindspore.parallel import merge_pipeline_strategys
from mindspore_strategies import mindspore_bytes
from rank_folders import slices_of_rank, strategy_of
from soak import examples

from ckpt_tools import transform
from ckpt_tools.layout.model import Layout, Strategy

Arrays = dict[str, np.ndarray]

TYPES = ("fp32", "fp16", "bf16")
SCALARS: Arrays = {"global_step": np.array([7], np.int32), "learning_rate": np.array([0.1], np.float32)}

# Of each pair one divides the other, as MindSpore asks for.
DEVICES = st.sampled_from([(8, 4), (4, 8), (4, 4), (2, 4), (1, 4), (4, 1), (8, 2)])


def tensor_of(array: np.ndarray) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return Tensor(array.astype(np.float32), mindspore.bfloat16)
    return Tensor(np.ascontiguousarray(array))


def write_ranks(folder: Path, tensors: Arrays, strategy: Strategy) -> Path:
    """What MindSpore saves for each rank."""
    for rank in range(strategy.ranks):
        (folder / f"rank_{rank}").mkdir(parents=True)
        held = slices_of_rank(tensors, strategy, rank)
        path = folder / f"rank_{rank}" / f"llama_rank_{rank}-3_2.ckpt"
        mindspore.save_checkpoint([{"name": name, "data": tensor_of(a)} for name, a in held.items()], str(path))
    return folder


def write_strategy(folder: Path, strategy: Strategy) -> tuple[Path, Path]:
    """A folder with the files of all stages, and the file that MindSpore merges them into."""
    folder.mkdir()
    for number, stage in enumerate(strategy.stages):
        (folder / f"stage_{number}.ckpt").write_bytes(mindspore_bytes(stage, [number]))
    if len(strategy.stages) == 1:
        return folder, folder / "stage_0.ckpt"
    merged = folder.with_suffix(".ckpt")
    merge_pipeline_strategys(str(folder), str(merged))
    return folder, merged


def loaded(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name to type, shape and bits of what MindSpore loads."""
    found = {}
    for name, parameter in mindspore.load_checkpoint(str(path)).items():
        # float32 holds every value of the 16-bit types.
        wide = parameter.astype(mindspore.float32) if parameter.dtype == mindspore.bfloat16 else parameter
        found[name] = (str(parameter.dtype), tuple(parameter.shape), wide.asnumpy().tobytes())
    return found


def assert_same_as_mindspore(folder: Path, tensors: Arrays, before: Strategy, after: Strategy) -> None:
    source = write_ranks(folder / "in", tensors, before)
    src, src_file = write_strategy(folder / "src", before)
    dst, dst_file = write_strategy(folder / "dst", after)
    mindspore.transform_checkpoints(str(source), str(folder / "theirs"), "checkpoint_", str(src_file), str(dst_file))
    transform(source, src_strategy=src, dst_strategy=dst, output=folder / "ours", check_replicas=True)
    files = sorted(path.relative_to(folder / "theirs") for path in (folder / "theirs").rglob("*.ckpt"))
    assert files == sorted(path.relative_to(folder / "ours") for path in (folder / "ours").rglob("*.ckpt"))
    assert len(files) == after.ranks
    for file in files:
        assert loaded(folder / "ours" / file) == loaded(folder / "theirs" / file)


def is_swapped(layout: Layout) -> bool:
    """Whether MindSpore puts the parts of such a tensor into the wrong places.

    Where optimizer shards lie over the leftmost device axis, it takes the device axes behind it for those of the tensor
    axes in their order (`_construct_tensor_layout_for_opt_shard`), whatever the tensor map says.
    """
    cuts = [axis for axes in layout.tensor_map for axis in axes]
    return bool(layout.shard_step and layout.shard_size) and cuts != sorted(cuts, reverse=True)


@st.composite
def twice_cut(draw: st.DrawFn, names: list[str], sizes: tuple[int, int]) -> tuple[Arrays, list[dict[str, Layout]]]:
    """Parameters with an optimizer state each, and two ways to cut them."""
    tensors: Arrays = {}
    sides: list[dict[str, Layout]] = [{}, {}]
    for number, name in enumerate(names):
        axes = draw(st.integers(1, 3))
        pair = [draw(layouts(axes, devices).filter(lambda drawn: not is_swapped(drawn[0]))) for devices in sizes]
        shape = tuple(int(np.lcm(a, b)) for a, b in zip(pair[0][1], pair[1][1], strict=True))
        tensors[name] = random(number, *shape, dtype=draw(st.sampled_from(TYPES)), size=9.0)
        tensors[f"adam_m.{name}"] = random(number + 100, *shape)
        for side, (layout, _) in zip(sides, pair, strict=True):
            side[name] = side[f"adam_m.{name}"] = layout
    return tensors, sides


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_any_layout_becomes_what_mindspore_makes_of_it(data: st.DataObject) -> None:
    names = [f"layers.{number}.weight" for number in range(4)]
    tensors, (before, after) = data.draw(twice_cut(names, data.draw(DEVICES)))
    with tempfile.TemporaryDirectory() as name:
        assert_same_as_mindspore(Path(name), SCALARS | tensors, strategy_of(before), strategy_of(after))


@settings(max_examples=examples(25), deadline=None)
@given(data=st.data(), sizes=st.sampled_from([(2, 4), (4, 4), (4, 2), (2, 2)]))
def test_a_pipeline_becomes_what_mindspore_makes_of_it(data: st.DataObject, sizes: tuple[int, int]) -> None:
    names = ["embedding.weight", "layers.0.weight", "layers.1.weight", "head.weight"]
    tensors, (before, after) = data.draw(twice_cut(names, sizes))
    stages = [{name: layout for name, layout in before.items() if any(p in name for p in parts)}
              for parts in (["embedding", "layers.0"], ["layers.1", "head"])]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        assert_same_as_mindspore(Path(name), SCALARS | tensors, strategy_of(*stages), strategy_of(after))


def test_mindspore_exchanges_axes_behind_optimizer_shards(tmp_path: Path) -> None:
    before = strategy_of({"w": Layout((2, 2, 2), ((0,), (1,)), 4, 2)})
    after = strategy_of({"w": Layout((2,), ((), ()))})
    tensors = {"w": random(0, 4, 4)}
    with pytest.raises(AssertionError):
        assert_same_as_mindspore(tmp_path, tensors, before, after)
    ours = mindspore.load_checkpoint(str(tmp_path / "ours" / "rank_0" / "checkpoint_0.ckpt"))
    theirs = mindspore.load_checkpoint(str(tmp_path / "theirs" / "rank_0" / "checkpoint_0.ckpt"))
    assert np.array_equal(ours["w"].asnumpy(), tensors["w"])
    assert not np.array_equal(theirs["w"].asnumpy(), tensors["w"])


ROWS, COLUMNS = Layout((2, 2), ((0,), ())), Layout((2, 2), ((), (0,)), 2, -1)
NETWORK = {
    "model.embedding.weight": (random(0, 8, 4), ROWS),
    "model.wq.weight": (random(1, 4, 8, dtype="bf16"), COLUMNS),
    "model.wo.weight": (random(2, 8, 8, dtype="fp16"), ROWS),
}
TENSORS = {name: array for name, (array, _) in NETWORK.items()}
SHARDED = strategy_of({name: layout for name, (_, layout) in NETWORK.items()})


class Network(nn.Cell):
    """Parameters under the names of the tensors, to be loaded into."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        zeros = [Parameter(tensor_of(np.zeros_like(array)), name=name) for name, array in arrays.items()]
        self.all = mindspore.ParameterTuple(zeros)


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """Four ranks of a whole file of MindSpore's, in `out`, and `dst/stage_0.ckpt`, their strategy."""
    mindspore.save_checkpoint([{"name": n, "data": tensor_of(a)} for n, a in TENSORS.items()], str(tmp_path / "w.ckpt"))
    dst, _ = write_strategy(tmp_path / "dst", SHARDED)
    transform(tmp_path / "w.ckpt", dst_strategy=dst, output=tmp_path / "out")
    return tmp_path


def test_each_ranks_file_loads_strictly_into_its_network(ranks: Path) -> None:
    for rank in range(4):
        held = slices_of_rank(TENSORS, SHARDED, rank)
        network = Network(held)
        parameters = mindspore.load_checkpoint(str(ranks / "out" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt"))
        assert mindspore.load_param_into_net(network, parameters, strict_load=True) == ([], [])
        for parameter in network.get_parameters():
            found = parameter.astype(mindspore.float32).asnumpy()
            assert np.array_equal(found, held[parameter.name].astype(np.float32))


def test_mindspore_joins_the_ranks_files_again(ranks: Path) -> None:
    network = Network(TENSORS)
    files = [str(ranks / "out" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt") for rank in range(4)]
    strategy = str(ranks / "dst" / "stage_0.ckpt")
    mindspore.load_distributed_checkpoint(network, files, train_strategy_filename=strategy)
    for parameter in network.get_parameters():
        found = parameter.astype(mindspore.float32).asnumpy()
        assert np.array_equal(found, TENSORS[parameter.name].astype(np.float32))


def test_mindformers_finds_a_file_for_each_rank(ranks: Path) -> None:
    out = ranks / "out"
    config = SimpleNamespace(checkpoint=SimpleNamespace(load_path=str(out)), load_ckpt_format="ckpt")
    assert _get_checkpoint_mode(config) == CheckpointFileMode.MULTI_CHECKPOINT_FILE_WITH_RANK_ID.value
    TransformCkpt.check_src_checkpoint_and_strategy(str(out), str(ranks / "dst"))
    assert _get_src_file(str(out)) == str(out / "rank_0" / "checkpoint_0.ckpt")
    for rank in range(4):
        expected = out / f"rank_{rank}" / f"checkpoint_{rank}.ckpt"
        assert get_last_checkpoint(str(out / f"rank_{rank}")) == str(expected)


def test_mindformers_transforms_an_output_as_it_does_its_own(ranks: Path) -> None:
    flat = strategy_of({name: Layout((2,), ((0,), ())) for name in TENSORS})
    dst, dst_file = write_strategy(ranks / "flat", flat)
    options = {"src_strategy": str(ranks / "dst" / "stage_0.ckpt"), "dst_strategy": str(dst_file)}
    theirs = TransformCkpt(auto_trans_ckpt=False, rank_id=0, world_size=1)(
        str(ranks / "out"), str(ranks / "theirs"), **options
    )
    transform(ranks / "out", src_strategy=ranks / "dst", dst_strategy=dst, output=ranks / "ours")
    for rank in range(2):
        file = f"rank_{rank}/checkpoint_{rank}.ckpt"
        (found,) = Path(theirs).rglob(file)
        assert loaded(ranks / "ours" / file) == loaded(found)


def test_safetensors_of_ranks_load_too(ranks: Path) -> None:
    transform(ranks / "w.ckpt", dst_strategy=ranks / "dst", output=ranks / "sf", format="safetensors")
    for rank in range(4):
        path = ranks / "sf" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors"
        parameters = mindspore.load_checkpoint(str(path), format="safetensors")
        for name, array in slices_of_rank(TENSORS, SHARDED, rank).items():
            assert np.array_equal(parameters[name].astype(mindspore.float32).asnumpy(), array.astype(np.float32))
