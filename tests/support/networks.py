"""Tiny networks to adapt: plain ones, and MindFormers' own as a CPU runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mindformers
import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

import surgery.network  # gives MindFormers' classes what MindSpore took from them

IS_CLASSIC = mindformers.__version__.startswith("1.3")
PAIR = "classic" if IS_CLASSIC else "modern"
MODES = {"pynative": mindspore.PYNATIVE_MODE, "graph": mindspore.GRAPH_MODE}
WIDTH, CLASSES, VOCABULARY, TOKENS = 16, 4, 120, 16

assert surgery.network.__all__


def use_mode(mode: str) -> None:
    mindspore.set_context(mode=MODES[mode], device_target="CPU")


class Block(nn.Cell):
    """A dense layer, a norm, and two more of them in a SequentialCell."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Dense(WIDTH, WIDTH)
        self.norm = nn.LayerNorm((WIDTH,))
        self.mlp = nn.SequentialCell(nn.Dense(WIDTH, 2 * WIDTH, activation="relu"), nn.Dense(2 * WIDTH, WIDTH))

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(x + self.mlp(self.dense(x)))


class PlainNet(nn.Cell):
    """Blocks in a CellList, and a head without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.CellList([Block(), Block()])
        self.head = nn.Dense(WIDTH, CLASSES, has_bias=False)

    def construct(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class PrefixNet(nn.Cell):
    """Attention of one token to two that takes a prefix, of fewer heads for keys and values than for queries."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_layers=1, num_heads=4, n_kv_heads=2, hidden_size=WIDTH)
        self.query = nn.Dense(WIDTH, WIDTH)
        self.key = nn.Dense(WIDTH, WIDTH // 2, has_bias=False)  # a bias of all keys alike changes no attention
        self.value = nn.Dense(WIDTH, WIDTH // 2)
        self.head = nn.Dense(WIDTH, CLASSES, has_bias=False)

    def construct(self, x: Tensor, prefix_keys_values: Any = None) -> Tensor:
        batch = x.shape[0]
        x = ops.stack((x, ops.tanh(x)), 1)
        query, key, value = self.query(x[:, :1]), self.key(x), self.value(x)
        if prefix_keys_values is not None:
            prefix = prefix_keys_values[0].astype(key.dtype)
            key, value = ops.cat((prefix[0], key), 1), ops.cat((prefix[1], value), 1)
        query = query.reshape((batch, 1, 2, 2, WIDTH // 4)).transpose((0, 2, 3, 1, 4))
        key = key.reshape((batch, -1, 2, 1, WIDTH // 4)).transpose((0, 2, 3, 1, 4))
        value = value.reshape((batch, -1, 2, 1, WIDTH // 4)).transpose((0, 2, 3, 1, 4))
        weights = ops.softmax((query * key).sum(-1, keepdims=True), 3)
        return self.head((weights * value).sum(3).reshape((batch, WIDTH)))


FLOAT32 = dict.fromkeys(("compute_dtype", "param_init_type", "layernorm_compute_type"), "float32")
TINY = {"batch_size": 2, "seq_length": TOKENS, "vocab_size": 128, "hidden_size": 64, "num_layers": 1, "num_heads": 4}
_LLAMA = {"multiple_of": 32, "rotary_dtype": "float32", "softmax_compute_type": "float32"}
_ON_CPU = {"use_flash_attention": False, "fused_rms_norm": False}


def llama_config(**options: Any) -> Any:
    from mindformers import LlamaConfig

    return LlamaConfig(**TINY, **FLOAT32, **_LLAMA, **_ON_CPU, use_rope_slice=True, **options)


def llama(**options: Any) -> nn.Cell:
    from mindformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(**options))


def gpt2() -> nn.Cell:
    from mindformers import GPT2Config, GPT2LMHeadModel

    dropouts = ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate")
    options = {**TINY, **FLOAT32, **dict.fromkeys(dropouts, 0.0), "softmax_compute_type": "float32", "expand_ratio": 4}
    return GPT2LMHeadModel(GPT2Config(use_flash_attention=False, **options))


def bloom() -> nn.Cell:
    from mindformers import BloomConfig, BloomLMHeadModel

    dropouts = dict.fromkeys(("hidden_dropout_rate", "attention_dropout_rate"), 0.0)
    types = dict.fromkeys(("embedding_init_type", "softmax_compute_type"), "float32")
    return BloomLMHeadModel(
        BloomConfig(use_flash_attention=False, expand_ratio=4, **TINY, **FLOAT32, **types, **dropouts)
    )


def glm2() -> nn.Cell:
    from mindformers import ChatGLM2Config, ChatGLM2ForConditionalGeneration
    from mindformers.models.glm2 import glm2_modules

    glm2_modules.check_rmsnorm_big_kernel_valid = lambda *_: False  # a CPU has no such kernel
    sizes = {"num_layers": 1, "padded_vocab_size": 128, "hidden_size": 64, "ffn_hidden_size": 96, "kv_channels": 16}
    heads = {"num_attention_heads": 4, "multi_query_group_num": 2}
    return ChatGLM2ForConditionalGeneration(
        ChatGLM2Config(batch_size=2, seq_length=TOKENS, **sizes, **heads, **FLOAT32, **_ON_CPU)
    )


class ParallelCoreNet(nn.Cell):
    """The parallel core's linear layers, of which a CPU runs no more."""

    def __init__(self) -> None:
        from mindformers.parallel_core.training_graph.tensor_parallel.layers import (
            ColumnParallelLinear,
            RowParallelLinear,
        )
        from mindformers.parallel_core.transformer_config import TransformerConfig
        from mindformers.parallel_core.utils.init_method import init_method_normal

        super().__init__()
        config = TransformerConfig(
            num_attention_heads=4, num_layers=1, hidden_size=WIDTH, compute_dtype="float32", params_dtype="float32"
        )
        init = init_method_normal(0.02, mindspore.float32)
        self.linear_qkv = ColumnParallelLinear(WIDTH, 3 * WIDTH, config, init_method=init)
        self.linear_proj = RowParallelLinear(3 * WIDTH, WIDTH, config, init_method=init, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        return self.linear_proj(self.linear_qkv(x)[0])[0]


@dataclass(frozen=True)
class Model:
    """A network to test on.

    Attributes:
        make: Makes one; the same seed makes the same.
        rule: Layers for the methods that change layers.
        inputs: What is fed to look at its output.
        training: What is fed to train it.
    """

    make: Callable[[], nn.Cell]
    rule: str
    inputs: tuple[np.ndarray, ...]
    training: tuple[np.ndarray, ...]


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, VOCABULARY, (2, count)).astype(np.int32)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


_IDS = (tokens(TOKENS),)
MODELS = {
    "plain": Model(PlainNet, r".*\.dense|.*\.mlp\.\d", (floats(3, WIDTH),), (floats(3, WIDTH),)),
    "llama": Model(llama, ".*wq|.*wk|.*wv|.*wo", _IDS, (tokens(TOKENS + 1),)),
    "glm2": Model(glm2, ".*query_key_value|.*dense_4h_to_h", _IDS, (tokens(TOKENS), tokens(TOKENS))),
}
if IS_CLASSIC:
    MODELS["gpt2"] = Model(gpt2, ".*dense1|.*dense2|.*dense3", _IDS, (tokens(TOKENS + 1),))
    MODELS["bloom"] = Model(bloom, ".*dense3|.*mapping", _IDS, (tokens(TOKENS + 1),))
else:
    MODELS["parallel_core"] = Model(
        ParallelCoreNet,
        "linear_.*",
        (floats(2, 5, WIDTH),),
        (floats(2, 5, WIDTH),),
    )


def seed(value: int = 1) -> None:
    mindspore.set_seed(value)
    np.random.seed(value)


def output(network: nn.Cell, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """What a network computes: MindFormers' logits."""
    network.set_train(False)
    result = network(*(Tensor(one) for one in inputs))
    return (result[0] if isinstance(result, tuple) else result).asnumpy()


def train(network: nn.Cell, inputs: tuple[np.ndarray, ...], steps: int = 3) -> list[float]:
    """Losses of some steps; networks that compute no loss are trained to give ones."""
    seed(5)
    network.set_train(True)
    with_loss = network if inputs[0].dtype == np.int32 else _ToOnes(network)
    step = nn.TrainOneStepCell(with_loss, nn.Adam(network.trainable_params(), learning_rate=1e-2))
    step.set_train()
    return [float(step(*(Tensor(one) for one in inputs)).asnumpy().reshape(-1)[0]) for _ in range(steps)]


class _ToOnes(nn.Cell):
    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x: Tensor) -> Tensor:
        return ops.square(self.network(x) - 1.0).mean()


def values(network: nn.Cell) -> dict[str, np.ndarray]:
    """Every parameter, copied."""
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def changed(before: dict[str, np.ndarray], network: nn.Cell) -> set[str]:
    return {name for name, array in values(network).items() if array.tobytes() != before[name].tobytes()}
