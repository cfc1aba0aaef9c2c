"""What the ranks of a target are given of whole tensors."""

from __future__ import annotations

import numpy as np
import pytest
from rank_folders import assert_same_arrays, slices_of_rank, strategy_of
from transform_cases import ROWS, TARGET, TENSORS, WHOLE

from ckpt_tools.distributed import Gathered, scatter
from ckpt_tools.layout.model import Layout
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.views import Constant
from surgery.errors import MismatchError

TENSORS_BY_NAME = {name: Constant(array, dtype_of(array)) for name, array in TENSORS.items()}
SOURCE = Gathered(TENSORS_BY_NAME, {name: (1,) * array.ndim for name, array in TENSORS.items()})


def test_each_rank_gets_its_slices_and_all_scalars() -> None:
    scattered = scatter(SOURCE, TARGET)
    for rank in range(2):
        held = {name: tensor.read_all() for name, tensor in scattered.tensors(rank, TENSORS_BY_NAME)}
        assert_same_arrays(held, slices_of_rank(TENSORS, TARGET, rank))
        assert list(held) == list(TENSORS)
    assert scattered.parts == {
        "embedding.weight": (1, 2),
        "layer.weight": (2, 1),
        "norm.weight": (2,),
        "global_step": (),
    }
    assert (scattered.dropped, scattered.missing) == ((), ())


def test_what_a_rank_holds_whole_is_the_tensor_itself() -> None:
    layouts = dict(TARGET.stages[0]) | {"layer.weight": Layout((2,), WHOLE)}
    held = dict(scatter(SOURCE, strategy_of(layouts)).tensors(1, TENSORS_BY_NAME))
    assert held["layer.weight"] is TENSORS_BY_NAME["layer.weight"]
    assert held["global_step"] is TENSORS_BY_NAME["global_step"]


def test_a_stage_holds_its_own_parameters_alone() -> None:
    names = list(TARGET.stages[0])
    stages = [{names[0]: Layout((1,), ROWS)}, {name: TARGET.stages[0][name] for name in names[1:]}]
    stages[1] = {name: Layout((1,), layout.tensor_map) for name, layout in stages[1].items()}
    scattered = scatter(SOURCE, strategy_of(*stages))
    assert [name for name, _ in scattered.tensors(0, TENSORS_BY_NAME)] == ["embedding.weight", "global_step"]
    assert [name for name, _ in scattered.tensors(1, TENSORS_BY_NAME)] == [*names[1:], "global_step"]


def test_a_tensor_of_one_element_without_a_layout_goes_to_all_and_a_larger_one_is_refused() -> None:
    for size in (1, 2):
        array = np.ones(size, np.float32)
        tensors = TENSORS_BY_NAME | {"temperature": Constant(array, dtype_of(array))}
        source = Gathered(tensors, {})
        if size == 1:
            assert "temperature" in dict(scatter(source, TARGET).tensors(1, tensors))
            continue
        with pytest.raises(MismatchError, match="temperature: no layout in the target's strategy"):
            scatter(source, TARGET)


def test_problems_beyond_what_anyone_reads_are_counted() -> None:
    array = np.ones((3, 5), np.float32)
    tensors = {f"{number}.weight": Constant(array, dtype_of(array)) for number in range(70)}
    with pytest.raises(MismatchError) as caught:
        scatter(Gathered(tensors, {}), strategy_of({name: Layout((2,), ROWS) for name in tensors}))
    assert len(caught.value.problems) == 51
    assert "20 more problems" in str(caught.value)


def test_the_strategy_of_another_model_is_told_once_with_a_name_of_each() -> None:
    with pytest.raises(MismatchError) as caught:
        scatter(SOURCE, strategy_of({"model.w": Layout((2,), ROWS), "model.v": Layout((2,), ROWS)}))
    (problem,) = caught.value.problems
    assert "embedding.weight" in problem.found
    assert "model.w" in problem.found
    assert "--names" in problem.remedy
