"""(IA)^3 in networks: what a module of `surgery/network` looks like."""

from __future__ import annotations

from typing import Any

from mindspore import Parameter, nn
from mindspore.common.initializer import initializer

from examples.ia3_method import IA3, Ia3Config
from surgery.methods import TargetLayer
from surgery.network import PetAdapter, register_adapter
from surgery.network.layers import mindspore_dtype
from surgery.network.replacing import adopt_weights, replace_layers

__all__ = ["Ia3Adapter", "Ia3Dense"]


class Ia3Dense(nn.Dense):  # type: ignore[misc]  # MindSpore has no types
    """A dense layer whose outputs are multiplied by trained factors."""

    def __init__(self, layer: Any, target: TargetLayer, config: Ia3Config) -> None:
        super().__init__(target.in_channels, target.out_channels, has_bias=layer.has_bias, activation=layer.activation)
        ones = initializer("ones", (target.out_channels,), mindspore_dtype(config.dtype_of(target)))
        self.mindpet_delta_ia3_scale = Parameter(ones, name="mindpet_delta_ia3_scale")
        adopt_weights(self, layer)

    def construct(self, x: Any) -> Any:
        """The layer's output, scaled."""
        return super().construct(x) * self.mindpet_delta_ia3_scale


@register_adapter
class Ia3Adapter(PetAdapter):
    """Puts factors behind linear layers."""

    method = IA3

    @classmethod
    def get_pet_model(cls, model: nn.Cell | None = None, config: Any = None) -> nn.Cell:
        network, parsed = cls.start(model, config)
        assert isinstance(parsed, Ia3Config)
        return replace_layers(network, parsed, Ia3Dense, cls.kinds)
