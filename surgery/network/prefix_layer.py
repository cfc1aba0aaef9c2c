"""A prefix for attention that is written by hand: MindPet's `PrefixLayer`, as one that trains."""

from __future__ import annotations

from typing import Any

from surgery.network.packages import Parameter, mindspore, nn, ops

__all__ = ["TrainablePrefixLayer"]


class TrainablePrefixLayer(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
    """Keys and values to put before those of one attention.

    MindPet 1.0.4's `PrefixLayer` has no `construct`: it computes its prefix once, when it is made, so that training
    never changes it, and its key is its value. This one computes both at every call. Parameters have MindPet's names;
    the second dense layer is twice as wide, for a key and a value.

    Args:
        prefix_token_num: Tokens of the prefix.
        num_heads: Heads of the attention.
        hidden_dim: The width of all heads together.
        embed_dim: The width of the tokens' embedding.
        mid_dim: The width between the two dense layers.
        dropout_rate: The share of the prefix that training drops.
    """

    def __init__(
        self,
        prefix_token_num: int,
        num_heads: int,
        hidden_dim: int,
        embed_dim: int,
        mid_dim: int = 512,
        dropout_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim {hidden_dim} is no multiple of num_heads {num_heads}")
        self.shape = (2, prefix_token_num, num_heads, hidden_dim // num_heads)
        tokens = mindspore.numpy.arange(0, prefix_token_num, 1)
        self.input_tokens = Parameter(tokens, name="mindpet_delta_prefixtuning_input_tokens", requires_grad=False)
        self.mindpet_delta_prefixtuning_wte = nn.Embedding(prefix_token_num, embed_dim)
        self.mindpet_delta_prefixtuning_control_trans = nn.SequentialCell(
            nn.Dense(embed_dim, mid_dim), nn.Tanh(), nn.Dense(mid_dim, 2 * hidden_dim)
        )
        self.dropout = nn.Dropout(p=dropout_rate)

    def construct(self, batch_size: int) -> Any:
        """The prefix of a batch.

        Args:
            batch_size: Samples of the batch; all have the same prefix.

        Returns:
            (keys, values), each `(batch, heads, tokens, width of a head)`.
        """
        embedded = self.mindpet_delta_prefixtuning_wte(self.input_tokens)
        prefix = self.dropout(self.mindpet_delta_prefixtuning_control_trans(embedded))
        _, tokens, heads, width = self.shape
        halves = prefix.reshape((tokens, 2, heads, width)).transpose((1, 2, 0, 3))
        wide = ops.broadcast_to(halves.expand_dims(1), (2, batch_size, heads, tokens, width))
        return wide[0], wide[1]
