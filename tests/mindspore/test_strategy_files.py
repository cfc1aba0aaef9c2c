"""Strategy files that MindSpore writes and merges are read to the facts that it reads itself, where it is right."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore.parallel import merge_pipeline_strategys
from mindspore.parallel._parallel_serialization import (
    _build_searched_strategy,
    _convert_to_list,
    _extract_pipeline_stage_num,
    _get_device_num_from_strategy,
)
from mindspore.parallel.shard import Layout as MindSporeLayout
from mindspore.train.node_strategy_pb2 import ParallelGroupMap, ParallelStrategyMap
from mindspore_strategies import mindspore_bytes
from soak import examples
from strategy_bytes import strategy_bytes, strategy_json
from strategy_cases import layouts_by_name, refusal

from ckpt_tools.layout import Layout, read_strategy

ROWS, COLUMNS = Layout((2, 2), ((1,), ())), Layout((2, 2), ((), (0,)), 1, 2)


def as_mindspore_reads(path: Path) -> dict[str, tuple[Layout, list[int]]]:
    """Name to layout and stages, by MindSpore's own functions; it passes over `indices_offset`."""
    found = {}
    for name, entry in _convert_to_list(_build_searched_strategy(str(path))).items():
        matrix, tensor_map, split_shape, field, step, size, stages = entry
        axes = [axis if isinstance(axis, list) else [axis] for axis in tensor_map]
        tensor_map = tuple(tuple(cut for cut in cuts if cut != -1) for cuts in axes)
        layout = Layout(tuple(matrix), tensor_map, step, size, tuple(split_shape), (), field)
        found[name] = (layout, stages)
    return found


def as_read(path: Path) -> dict[str, tuple[Layout, list[int]]]:
    """The same of `read_strategy`, for parameters that have one layout in all their stages."""
    found: dict[str, tuple[Layout, list[int]]] = {}
    for stage, layouts in enumerate(read_strategy(path).stages):
        for name, layout in layouts.items():
            plain = Layout(
                layout.device_matrix,
                layout.tensor_map,
                layout.shard_step,
                layout.shard_size,
                layout.split_shape,
                field=layout.field,
            )
            assert found.setdefault(name, (plain, []))[0] == plain
            found[name][1].append(stage)
    return found


@settings(max_examples=examples(100), deadline=None)
@given(layouts=layouts_by_name())
def test_protobuf_is_read_as_mindspore_reads_it(
    tmp_path_factory: pytest.TempPathFactory, layouts: dict[str, Layout]
) -> None:
    path = tmp_path_factory.getbasetemp() / "strategy.ckpt"
    path.write_bytes(mindspore_bytes(layouts))
    assert as_read(path) == as_mindspore_reads(path)
    assert read_strategy(path).stages == (layouts,)
    assert read_strategy(path).stage_devices == _get_device_num_from_strategy(str(path))


@settings(max_examples=examples(60), deadline=None)
@given(layouts=layouts_by_name(), stage=st.integers(0, 3))
def test_the_bytes_that_other_tests_build_are_protobufs_own(layouts: dict[str, Layout], stage: int) -> None:
    message = ParallelStrategyMap.FromString(strategy_bytes(layouts, stage))
    assert message.parallel_strategy_item[0].parallel_strategys.stage == stage
    assert message.SerializeToString() == strategy_bytes(layouts, stage)
    items = message.parallel_layout_item
    assert items == ParallelStrategyMap.FromString(mindspore_bytes(layouts)).parallel_layout_item
    assert items == ParallelStrategyMap.FromString(strategy_bytes(layouts, packed=True)).parallel_layout_item


def test_flat_json_is_read_as_mindspore_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    layouts = {"w": Layout((2, 4), ((1,), (), (0,)), 1, -1, (3, 4), (), 2), "s": Layout((8,), ())}
    path.write_bytes(strategy_json(layouts))
    assert as_read(path) == as_mindspore_reads(path)


def test_mindspore_cannot_read_json_with_nested_maps(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    layouts = {"w": Layout((2, 4), ((1, 0), ()))}
    path.write_bytes(strategy_json(layouts))
    with pytest.raises(TypeError):
        _build_searched_strategy(str(path))
    assert read_strategy(path).stages == (layouts,)


def test_a_layout_object_means_what_its_tensor_map_says(tmp_path: Path) -> None:
    made = MindSporeLayout((2, 2, 4), ("dp", "sp", "mp"))(("mp", "dp"), "None", "sp").to_dict()
    axes = [cuts if isinstance(cuts, tuple) else (cuts,) for cuts in made["tensor_map"]]
    layout = Layout(made["device_matrix"], tuple(tuple(cut for cut in cuts if cut != -1) for cuts in axes))
    assert layout.tensor_map == ((0, 2), (), (1,))
    path = tmp_path / "strategy.ckpt"
    path.write_bytes(mindspore_bytes({"w": layout}))
    assert as_read(path) == as_mindspore_reads(path) == {"w": (layout, [0])}


@pytest.mark.parametrize("suffix", ["ckpt", "json"])
def test_what_mindspore_merges_is_what_a_folder_means(tmp_path: Path, suffix: str) -> None:
    stages = [{"tied": ROWS, "model.a": ROWS}, {"model.b": COLUMNS}, {"tied": ROWS, "head": COLUMNS}]
    folder = tmp_path / "stages"
    folder.mkdir()
    for rank in range(12):
        layouts = stages[rank // 4]
        data = mindspore_bytes(layouts, [rank // 4]) if suffix == "ckpt" else strategy_json(layouts, rank // 4)
        (folder / f"rank_{rank}.{suffix}").write_bytes(data)
    merged = tmp_path / f"merged.{suffix}"
    merge_pipeline_strategys(str(folder), str(merged))
    assert list(read_strategy(folder).stages) == list(read_strategy(merged).stages) == stages
    assert len(stages) == _extract_pipeline_stage_num(str(merged))
    expected = {name: (layout, sorted(found)) for name, (layout, found) in as_mindspore_reads(merged).items()}
    assert as_read(merged) == as_read(folder) == expected


def test_mindspore_fails_on_names_with_a_dash(tmp_path: Path) -> None:
    for stage in range(2):
        (tmp_path / f"{stage}.ckpt").write_bytes(mindspore_bytes({"model.a-b": ROWS}, [stage]))
    merged = tmp_path / "merged"
    merge_pipeline_strategys(str(tmp_path), str(merged))
    for path in (tmp_path / "0.ckpt", merged):
        with pytest.raises(ValueError, match="Convert layout strategy to list failed"):
            _convert_to_list(_build_searched_strategy(str(path)))
    assert read_strategy(tmp_path / "0.ckpt").stages == ({"model.a-b": ROWS},)
    assert read_strategy(merged).stages == ({"model.a-b": ROWS},) * 2


def test_mindspore_merges_one_of_two_conflicting_files_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(mindspore_bytes({"w": ROWS}))
    (tmp_path / "b.ckpt").write_bytes(mindspore_bytes({"w": COLUMNS}))
    merge_pipeline_strategys(str(tmp_path), str(tmp_path / "merged"))
    assert len(_convert_to_list(_build_searched_strategy(str(tmp_path / "merged")))) == 1
    (tmp_path / "merged").unlink()
    assert "another layout" in str(refusal(tmp_path, exit_code=5))


def test_mindspore_takes_a_later_stage_for_stage_0_by_an_operator_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "0.ckpt").write_bytes(mindspore_bytes({"w": ROWS}))
    (tmp_path / "1.ckpt").write_bytes(mindspore_bytes({"v": ROWS}, [0, 1]))
    merge_pipeline_strategys(str(tmp_path), str(tmp_path / "merged"))
    assert len(_convert_to_list(_build_searched_strategy(str(tmp_path / "merged")))) == 1
    (tmp_path / "merged").unlink()
    assert read_strategy(tmp_path).stages == ({"w": ROWS}, {"v": ROWS})


def test_mindspore_takes_weights_for_an_empty_strategy(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    mindspore.save_checkpoint([{"name": "w", "data": mindspore.Tensor([1.0, 2.0])}], str(path))
    assert _build_searched_strategy(str(path)) == {}
    assert "the weights, not their strategy" in str(refusal(path))


def test_group_info_of_mindspore_is_named(tmp_path: Path) -> None:
    message = ParallelGroupMap()
    group = message.parallel_group_item.add(group_name="4-6301172352641561019")
    group.parallel_group_ranks.dim.extend([0, 1, 2, 3])
    message.ckpt_restore_rank_list.dim.extend([0, 2])
    path = tmp_path / "group_info.pb"
    assert "communication groups" in str(refusal(path, message.SerializeToString()))
    (tmp_path / "strategy.ckpt").write_bytes(mindspore_bytes({"w": ROWS}))
    assert read_strategy(tmp_path).stages == ({"w": ROWS},)


def test_json_of_mindspores_merge_keeps_the_layouts(tmp_path: Path) -> None:
    """The merged JSON keeps unknown members, as the compiler's `tensor_shape`."""
    document = json.loads(strategy_json({"w": ROWS}))
    document["parallel_layout_item"]["w"]["tensor_shape"] = [8, 8]
    (tmp_path / "0.json").write_text(json.dumps(document))
    merged = tmp_path / "merged"
    merge_pipeline_strategys(str(tmp_path), str(merged))
    assert "tensor_shape" in merged.read_text()
    assert read_strategy(merged).stages == ({"w": ROWS},)
