"""What a training checkpoint holds beside the weights: optimizer states and training scalars.

The names were collected from every optimizer, loss-scale cell and checkpoint callback of MindSpore 2.9.0 (`nn.optim`,
`mint.optim`, `experimental.optim`, `nn.wrap`, `train.callback`) and MindFormers 1.9.0 (`core.optim`, `wrapper`,
`core.callback`).
"""

from __future__ import annotations

import re
from collections.abc import Container

__all__ = ["is_training_scalar", "split_optimizer_state"]

_STATE_PREFIXES = frozenset(
    {
        *("adam_m", "adam_v"),  # AdamWeightDecay, MindFormers' AdamW and Muon
        *("moment1", "moment2", "vhat"),  # Adam, AdaMax, LazyAdam
        *("moments", "momentum_buf"),  # Momentum, LARS, Thor, FTRL; mint's SGD
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"),  # fused AdamW, AdaFactor, Came, NAdam, RAdam
        *("lamb_m", "lamb_v"),
        "muon_m",
        *("mean_grad", "mean_square"),  # RMSProp
        "accum_update",  # Adadelta
        "accu_grads",  # gradient accumulation
        *("pma_weight_ema", "pma_weight_sma", "pma_weight_wma"),  # PmaAdamW
    }
)

# States whose prefix could as well be the name of a network's own cell or the beginning of it: such a name is a state
# only where the parameter that it would belong to lies in the same checkpoint.
_AMBIGUOUS_PREFIXES = frozenset({"accum", "ax", "ax_", "linear", "moment", "prev", "stat", "step_size"})
_AMBIGUOUS_GLUED = ("eta_", "mu_")  # ASGD writes `mu_<name>`

# AdaFactor and Came glue the parameter's name to the state's with an underscore; the longest comes first.
_GLUED = (
    "exp_avg_insta_row_",
    "exp_avg_insta_col_",
    "exp_avg_sq_row_",
    "exp_avg_sq_col_",
    "exp_avg_sq_",
)

_SCALARS = frozenset(
    {
        *("global_step", "epoch_num", "step_num", "global_batch_size", "__exception_save__"),
        *("loss_scale", "scale_sense", "current_iterator_step", "last_overflow_iterator_step"),
        *("scale_window", "list_index", "scale_window_up_count", "scale_window_down_count"),
        *("learning_rate", "fake_lr", "fake_param", "momentum"),
        *("beta1_power", "beta2_power", "afactor_step", "cov_step", "state_step", "step_t"),
        *("graceful_exit", "graceful_init"),
        *("best", "cooldown_counter", "wait", "T_0", "T_i", "T_cur"),  # experimental.optim.lr_scheduler
    }
)
_NUMBERED_SCALAR = re.compile(r"(learning_rate_group_|matrix_max)\d+")


def is_training_scalar(name: str) -> bool:
    """Whether the whole name is that of a training scalar; `router.learning_rate` is a weight."""
    return name in _SCALARS or _NUMBERED_SCALAR.fullmatch(name) is not None


def split_optimizer_state(name: str, names: Container[str] = ()) -> tuple[str, str] | None:
    """The state and the parameter that an optimizer state's name is made of.

    Args:
        name: A key of a checkpoint.
        names: All keys of that checkpoint; decides where the prefix alone does not.

    Returns:
        (state, parameter), as ("adam_m", "model.layers.0.attention.wq.weight"); None where it is no optimizer state.
    """
    state, dot, parameter = name.partition(".")
    if dot and parameter:
        if state in _STATE_PREFIXES:
            return state, parameter
        if state in _AMBIGUOUS_PREFIXES and parameter in names:
            return state, parameter
    for prefix in _GLUED:
        if name.startswith(prefix) and len(name) > len(prefix):
            return prefix[:-1], name[len(prefix) :]
    for prefix in _AMBIGUOUS_GLUED:
        if name.startswith(prefix) and name[len(prefix) :] in names:
            return prefix[:-1], name[len(prefix) :]
    return None
