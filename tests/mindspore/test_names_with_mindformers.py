"""Names, selection and configuration against what real MindSpore, MindPet and MindFormers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore.experimental.optim as experimental
import mindspore.mint.optim as mint
import pytest
from mindformers.core import optim as mindformers_optim
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.qwen2.utils import Qwen2PreTrainedModel
from mindformers.models.qwen3.utils import Qwen3PreTrainedModel
from mindformers.pet.models.lora import LoraModel
from mindformers.pet.pet_config import LoraConfig as MindFormersLoraConfig
from mindformers.pet.tuners.lora_adapter import recursive_replace_dense_cell
from mindpet.delta.lora import LoRADense
from mindspore import Tensor, nn

from surgery.config import LoraConfig, Selection
from surgery.naming import Role, classify
from surgery.peft_config import read_peft_config
from surgery.targets import selects
from surgery.translation import to_huggingface, to_mindformers

RANK, WIDTH = 2, 4


class Attention(nn.Cell):
    """Two linear layers and one that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Dense(WIDTH, WIDTH)
        self.wk = nn.Dense(WIDTH, WIDTH)
        self.norm = nn.LayerNorm((WIDTH,))

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(self.wq(x) + self.wk(x))


class Network(nn.Cell):
    """Layers in a list below a body, as MindFormers' networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.CellList([Attention(), Attention()])
        self.dense = nn.Dense(WIDTH, WIDTH)

    def construct(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.dense(x)


def test_mindpets_own_layer_has_bare_names() -> None:
    cell = LoRADense(WIDTH, WIDTH, RANK, 4)
    roles = {classify(parameter.name).role for parameter in cell.get_parameters() if "lora" in parameter.name}
    families = {classify(parameter.name).family for parameter in cell.get_parameters() if "lora" in parameter.name}
    assert (roles, families) == ({Role.LORA_A, Role.LORA_B}, {"mindpet-bare"})


def adapted(**options: Any) -> list[str]:
    """Layers that MindFormers gives an adapter to, told by the names of its parameters."""
    network = recursive_replace_dense_cell(Network(), MindFormersLoraConfig(lora_rank=RANK, **options))
    network.update_parameters_name()
    names = [classify(parameter.name) for parameter in network.get_parameters()]
    assert {name.family for name in names} <= {"mindpet", "plain"}
    return [name.layer for name in names if name.role is Role.LORA_A]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ".*wq|.*wk"},
        {"target_modules": "w"},
        {"target_modules": ".*"},
        {"target_modules": "q"},
        {"target_modules": ".*wq|dense"},
        {"target_modules": "attention.wq"},
        {"target_modules": "w|dense", "exclude_layers": ["0", "dense"]},
        {"target_modules": "w|norm", "exclude_layers": ["wk"]},
    ],
)
def test_layers_are_selected_as_mindformers_selects_them(options: dict[str, Any]) -> None:
    config = LoraConfig(
        "run.yaml",
        target_modules=options["target_modules"],
        exclude_modules=tuple(options.get("exclude_layers", ())),
        selection=Selection.MINDFORMERS,
    )
    linear = [name for name, cell in Network().cells_and_names() if isinstance(cell, nn.Dense)]
    assert [layer for layer in linear if selects(config, layer)] == adapted(**options)


STEP = {"learning_rate": 0.1}
MOMENTUM = {"learning_rate": 0.1, "momentum": 0.9}
FIXED_STEP = {**STEP, "relative_step": False, "scale_parameter": False, "warmup_init": False}
OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    *((optimizer, {}) for optimizer in (nn.Adam, nn.AdamWeightDecay, nn.LazyAdam, nn.AdamOffload, nn.AdaMax, nn.FTRL)),
    *((optimizer, {}) for optimizer in (nn.ASGD, nn.Rprop, nn.SGD, nn.RMSProp, nn.Adadelta, nn.Adagrad)),
    *((nn.ProximalAdagrad, {}), (nn.Lamb, STEP), (nn.Momentum, MOMENTUM), (nn.AdaFactor, FIXED_STEP)),
    *((optimizer, {}) for optimizer in (mint.Adam, mint.AdamW)),
    (mint.SGD, {"lr": 0.1, "momentum": 0.9}),
    *((getattr(experimental, name), {}) for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD")),
    *((getattr(experimental, name), {}) for name in ("NAdam", "RAdam", "RMSprop", "Rprop")),
    *(
        (getattr(mindformers_optim, name), {})
        for name in ("BasicAdamW", "FusedAdamW", "BasicPmaAdamW", "FusedPmaAdamW")
    ),
    (mindformers_optim.Came, FIXED_STEP),
]


@pytest.mark.parametrize(
    ("optimizer", "arguments"), OPTIMIZERS, ids=[f"{made.__module__}.{made.__name__}" for made, _ in OPTIMIZERS]
)
def test_all_that_an_optimizer_adds_is_known_and_no_weight_is_taken_for_it(
    optimizer: Any, arguments: dict[str, Any]
) -> None:
    network = Network()
    weights = {parameter.name for parameter in network.get_parameters()}
    made = optimizer(network.trainable_params(), **arguments)
    names = weights | {parameter.name for parameter in made.get_parameters()}
    assert names > weights
    assert {name for name in names if classify(name, names).role not in (Role.OPTIMIZER, Role.SCALAR)} == weights


def test_all_that_a_training_cell_adds_is_known() -> None:
    network = nn.WithLossCell(Network(), nn.MSELoss())
    manager = nn.DynamicLossScaleUpdateCell(loss_scale_value=2**12, scale_factor=2, scale_window=1000)
    cell = nn.TrainOneStepWithLossScaleCell(network, nn.Adam(network.trainable_params()), scale_sense=manager)
    names = {parameter.name for parameter in cell.get_parameters()}
    weights = {parameter.name for parameter in network.get_parameters()}
    left = {name for name in names if classify(name, names).role not in (Role.OPTIMIZER, Role.SCALAR)}
    assert left == weights


LLAMA = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(
        f"model.layers.11.{part}"
        for part in (
            *("self_attn.q_proj.weight", "self_attn.k_proj.bias", "self_attn.v_proj.weight", "self_attn.o_proj.weight"),
            *("mlp.gate_proj.weight", "mlp.down_proj.weight", "mlp.up_proj.weight"),
            *("input_layernorm.weight", "post_attention_layernorm.weight"),
        )
    ),
]


@pytest.mark.parametrize("name", LLAMA)
def test_llama_names_are_translated_as_mindformers_translates_them(name: str) -> None:
    assert to_mindformers(name) == LlamaForCausalLM.convert_name(name)


@pytest.mark.parametrize("network", [Qwen2PreTrainedModel, Qwen3PreTrainedModel])
@pytest.mark.parametrize("name", LLAMA)
def test_names_of_the_parallel_core_are_translated_back(network: Any, name: str) -> None:
    converted = name
    for theirs, ours in network.weight_mapping:  # as ModelMixin.convert_name goes through them
        converted = converted.replace(theirs, ours)
    assert to_huggingface(converted) == name


def test_the_configuration_that_mindformers_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    pet_config = MindFormersLoraConfig(lora_rank=4, lora_alpha=32, target_modules=".*wq|.*wk")
    LoraModel.save_pet_config(SimpleNamespace(config=SimpleNamespace(pet_config=pet_config)), str(path))
    config = read_peft_config(path)
    assert json.loads(path.read_text())["target_modules"] == [".*wq", ".*wk"]
    assert (config.rank, config.alpha, config.target_modules) == (4, 32.0, ".*wq|.*wk")
    assert config.selection is Selection.MINDFORMERS
