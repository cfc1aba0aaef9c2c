"""The few training steps of the demo: SmolLM2 as MindFormers builds it, on the CPU, with what `pet-inject` added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import yaml
from mindspore import Tensor, nn

from surgery.network import PetAdapter, get_pet_model, load_ckpt

__all__ = ["Training", "logits_of", "train", "write_run"]

_TYPES = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")


@dataclass(frozen=True, slots=True)
class Training:
    """What came of a training.

    Attributes:
        losses: The loss before each step.
        logits: What the trained network says to the text, `(tokens, vocabulary)`.
    """

    losses: tuple[float, ...]
    logits: np.ndarray


def write_run(path: Path, config: Mapping[str, Any], length: int, pet_config: Mapping[str, Any]) -> None:
    """Write the YAML of a run of MindFormers.

    Args:
        path: Where it goes.
        config: The network, as Hugging Face's `config.json` has it.
        length: Tokens of a sequence.
        pet_config: The tuning method.
    """
    model_config = {
        "type": "LlamaConfig",
        "batch_size": 1,
        "seq_length": length,
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "vocab_size": config["vocab_size"],
        "rms_norm_eps": config["rms_norm_eps"],
        "theta": config["rope_theta"],
        "max_position_embedding": length,
        "tie_word_embeddings": config["tie_word_embeddings"],
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
        **dict.fromkeys(_TYPES, "float32"),
        # What a CPU has no kernels for.
        "use_flash_attention": False,
        "fused_rms_norm": False,
        "use_rope_slice": True,
        "pet_config": dict(pet_config),
    }
    run = {"model": {"model_config": model_config, "arch": {"type": "LlamaForCausalLM"}}}
    path.write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")


def train(run: Path, injected: Path, tokens: Sequence[int], steps: int, trained: Path) -> Training:
    """Train what `pet-inject` added, and save network and optimizer as training does.

    Args:
        run: The run's YAML.
        injected: The checkpoint with fresh parameters; it has to fit the network exactly.
        tokens: A text; the last token is only predicted.
        steps: Steps of Adam.
        trained: Where the checkpoint goes; replaced if it is there.
    """
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE, device_target="CPU")  # a graph takes longer to compile
    network = get_pet_model(PetAdapter.get_pretrained_model(run), _pet_config(run))
    load_ckpt(network, injected)
    network.set_train()
    step = nn.TrainOneStepCell(network, nn.Adam(network.trainable_params(), learning_rate=1e-3)).set_train()
    text = Tensor(np.array([tokens]), mindspore.int32)
    losses = tuple(float(step(text).asnumpy().reshape(-1)[0]) for _ in range(steps))
    mindspore.save_checkpoint(step, str(trained))
    return Training(losses, _logits(network, tokens[:-1]))


def logits_of(run: Path, checkpoint: Path, tokens: Sequence[int]) -> np.ndarray:
    """What the plain network says to a text with the weights of a checkpoint, `(tokens, vocabulary)`."""
    network = PetAdapter.get_pretrained_model(run)
    load_ckpt(network, checkpoint)
    return _logits(network, tokens)


def _pet_config(run: Path) -> Any:
    return yaml.safe_load(run.read_text(encoding="utf-8"))


def _logits(network: Any, tokens: Sequence[int]) -> np.ndarray:
    network.set_train(False)
    return network(Tensor(np.array([tokens]), mindspore.int32))[0].asnumpy()[0]
