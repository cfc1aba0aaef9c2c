"""From adapters and a base to what is done to each weight: every adapter key is used, or is a problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ckpt_tools.fingerprint import same_values
from ckpt_tools.merging.adapters import Adapter, pair_keys, scale_of
from ckpt_tools.merging.fitting import Fit, fit_pair, term_of
from ckpt_tools.merging.fold_plan import Fold, FoldedPair, FoldPlan
from ckpt_tools.merging.orientation import square_orientations
from ckpt_tools.merging.refusals import holds_base, replaced_and_changed, unfoldable, weighed_dora, weighed_whole
from ckpt_tools.merging.tying import settle_ties
from ckpt_tools.reports import AdapterUse, DroppedTensor
from ckpt_tools.tensors.folding import VectorTerm
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import MismatchError, Problem
from surgery.grouping import LoraPair
from surgery.naming import ParameterName
from surgery.near import ENOUGH_PROBLEMS, near_names
from surgery.resolution import Resolution, resolve_names
from surgery.targets import selects
from surgery.ties import tied_partner

__all__ = ["plan_folds"]

# What `all-linear` leaves out.
_OUTPUT_HEADS = frozenset({"lm_head", "embed_out", "output_layer", "output"})
_UNFOLDABLE_REMEDY = "Load it into a network that was built with the same pet_config, and serve that"


def plan_folds(
    base: Mapping[str, LazyTensor],
    adapters: Sequence[Adapter],
    *,
    config: Mapping[str, Any] | None,
    is_combined: bool,
    allow_unused: Sequence[str] = (),
) -> FoldPlan:
    """Decide what happens to each weight of a base.

    Args:
        base: Name to tensor of the base's weights.
        adapters: What is folded in, in order.
        config: The base's Hugging Face `config.json`.
        is_combined: Whether the adapter's plain weights are the base itself.
        allow_unused: Patterns (`fnmatch`) of adapter keys that may stay unused.
    """
    plan = FoldPlan()
    for number, adapter in enumerate(adapters):
        _Folder(plan, base, number, adapter, config, is_combined, allow_unused).run()
    settle_ties(plan, base, config)
    return plan


class _Folder:
    """Folds one adapter into a plan."""

    def __init__(
        self,
        plan: FoldPlan,
        base: Mapping[str, LazyTensor],
        number: int,
        adapter: Adapter,
        config: Mapping[str, Any] | None,
        is_combined: bool,
        allow_unused: Sequence[str],
    ) -> None:
        self._number = number
        self._plan = plan
        self._base = base
        self._adapter = adapter
        self._config = config
        self._allow_unused = allow_unused
        group = adapter.group
        self._weights = () if is_combined else group.weights
        self._pairs = {f"pair {pair.layer} {pair.kind}": pair for pair in group.pairs}
        self._resolution = Resolution({}, "", lambda name: name)
        self._replaced: set[str] = set()

    def run(self) -> None:
        """Add all of the adapter to the plan, or say why not."""
        group = self._adapter.group
        for problem in group.problems:
            if self._is_allowed(problem.where):
                self._drop_unused(problem.where.split(" and "))
            else:
                self._plan.problems.append(self._of_adapter(problem))
        self._refuse_methods(group.methods)
        self._drop(group.states, "optimizer state or training scalar")
        self._drop(group.dropped, "a copy or an aid of the training, which the merged model does not need")
        self._resolve()
        if not group.pairs and not self._weights:
            self._nothing_to_fold()
            return
        if not group.pairs and self._base.keys() <= {self._resolution.found.get(p.name) for p in self._weights}:
            found = "a whole model, with every weight of the base and no adapter parameter"
            self._plan.problems.append(Problem(str(self._adapter.path), found, "an adapter", "Is it the right file?"))
            return
        fits = {key: fit for key, pair in self._pairs.items() if (fit := self._fit(key, pair)) is not None}
        fits = self._settle_squares(fits)
        for parameter in self._weights:
            self._replace(parameter)
        for key, fit in fits.items():
            self._fold_pair(self._pairs[key], self._resolution.found[key], fit)

    def _resolve(self) -> None:
        wanted: dict[str, tuple[str, ...]] = {key: pair.bases for key, pair in self._pairs.items()}
        wanted |= {key: (pair.bias_base,) for key, pair in self._bias_pairs().items()}
        wanted |= {parameter.name: (parameter.base or parameter.name,) for parameter in self._weights}
        try:
            resolution = resolve_names(wanted, self._base.keys())
        except MismatchError as error:
            self._plan.problems += map(self._of_adapter, error.problems)
            resolution = Resolution({}, "", lambda name: name)
        found = dict(resolution.found)
        for key, names in wanted.items():
            if key not in found and (partner := self._tied(resolution.apply, names)) is not None:
                found[key] = partner
        self._resolution = Resolution(found, resolution.rule, resolution.apply)
        self._plan.rules.append(resolution.rule)
        for key, names in wanted.items():
            if key not in found:
                self._no_home(key, resolution.apply(names[0]))

    def _bias_pairs(self) -> dict[str, LoraPair]:
        return {f"bias of {key}": pair for key, pair in self._pairs.items() if pair.b_bias is not None}

    def _tied(self, apply: Callable[[str], str], names: tuple[str, ...]) -> str | None:
        """The name of a weight that the base keeps under the name of its tied partner."""
        # A base without its first component may have it on the head all the same: GPT-2's first checkpoints do.
        for name in (*map(apply, names), *names):
            partner = tied_partner(name, self._base.keys(), self._config)
            if partner is not None and partner in self._base:
                self._plan.untied[name] = partner
                return name
        return None

    def _is_tied(self, name: str) -> bool:
        return name in self._plan.untied or name in self._plan.untied.values()

    def _no_home(self, key: str, name: str) -> None:
        pair = self._pairs.get(key.removeprefix("bias of "))
        keys = (key,) if pair is None else (pair.b_bias or "",) if key.startswith("bias of ") else pair_keys(pair)
        if all(self._is_allowed(adapter_key) for adapter_key in keys):
            self._drop_unused(keys)
            return
        near = near_names(name, self._base) if len(self._plan.problems) < ENOUGH_PROBLEMS else []
        remedy = f"Near names: {', '.join(near)}" if near else "Do base and adapter belong together?"
        config = self._adapter.config
        if pair is None and config is not None and config.saves_module(name.rpartition(".")[0]):
            remedy = (
                "The training added this layer to the network: save the base with it first, as transformers' "
                "AutoModelFor... class of the training does (from_pretrained, then save_pretrained)"
            )
        self._plan.problems.append(
            Problem(
                f"{self._adapter.path}, {keys[0]}",
                f"no {name} in the base",
                "a weight of the base for every key of the adapter",
                remedy,
            )
        )

    def _fit(self, key: str, pair: LoraPair) -> Fit | None:
        name = self._resolution.found.get(key)
        if name is None:
            return None
        if not self._is_selected(pair, name):
            return None
        weight = self._weight(name)
        if not weight.dtype.is_float:
            self._plan.problems.append(
                Problem(
                    name,
                    f"elements of type {weight.dtype} in the base",
                    "floating-point weights",
                    "A quantised base cannot take an adapter: merge into the weights it was quantised from",
                )
            )
            return None
        tensors = self._adapter.tensors
        fit = fit_pair(pair, tensors[pair.a].shape, tensors[pair.b].shape, weight.shape)
        if isinstance(fit, Problem):
            self._plan.problems.append(self._of_adapter(fit))
            return None
        return fit

    def _is_selected(self, pair: LoraPair, name: str) -> bool:
        """Whether the configuration selects the layer; the program that trained it would ignore it otherwise."""
        config = self._adapter.config
        if config is None or config.target_modules is None or not pair.layer:
            return True
        is_output_head = pair.layer.rpartition(".")[2] in _OUTPUT_HEADS
        is_linear = pair.kind == "linear"
        verdict = selects(config, pair.layer, is_linear=is_linear, is_output_head=is_output_head)
        if verdict or (config.ensure_weight_tying and self._is_tied(name)):
            return True
        keys = pair_keys(pair)
        if all(self._is_allowed(key) for key in keys):
            self._drop_unused(keys)
            return False
        self._plan.problems.append(
            Problem(
                f"{self._adapter.path}, {pair.a}",
                f"layer {pair.layer} {verdict.reason}, says {config.source}",
                "LoRA matrices of selected layers only",
                "Give the configuration of this adapter, or leave the layer out with --allow-unused",
            )
        )
        return False

    def _settle_squares(self, fits: dict[str, Fit]) -> dict[str, Fit]:
        """Find out which way round the square weights are."""
        linear = {self._resolution.found[key]: fit for key, fit in fits.items() if self._pairs[key].kind == "linear"}
        config = self._adapter.config
        transposed = square_orientations(
            [name for name, fit in linear.items() if fit.is_square],
            {name: fit.transposed for name, fit in linear.items() if not fit.is_square},
            {name: tensor.shape for name, tensor in self._base.items()},
            fan_in_fan_out=config is not None and config.fan_in_fan_out,
        )
        settled = {
            key: replace(fit, transposed=transposed[self._resolution.found[key]])
            for key, fit in fits.items()
            if fit.is_square
        }
        return {**fits, **settled}

    def _fold_pair(self, pair: LoraPair, name: str, fit: Fit) -> None:
        tensors = self._adapter.tensors
        try:
            scale = scale_of(self._adapter, pair)
        except MismatchError as error:
            # An unknown alpha is one problem, not one for each layer.
            self._plan.problems += [problem for problem in error.problems if problem not in self._plan.problems]
            return
        fold = self._fold(name)
        if pair.magnitude is not None:
            fold.magnitude = (tensors[pair.magnitude], 1 if fit.transposed else 0)
        weight = self._adapter.weight
        a, b = tensors[pair.a], tensors[pair.b]
        fold.terms.append(term_of(pair, a, b, scale.scaling * weight, fit))
        fold.pairs.append(FoldedPair(self._number, pair, a, b, scale.scaling, weight, fit))
        fold.matrix_shape = fit.matrix_shape
        fold.uses.append(
            AdapterUse(
                adapter=str(self._adapter.path),
                keys=tuple(key for key in (pair.a, pair.b, pair.magnitude) if key is not None),
                kind=pair.kind,
                rank=pair.rank,
                alpha=scale.alpha,
                scaling=scale.scaling,
                dora=pair.magnitude is not None,
                weight=weight,
            )
        )
        if fold.magnitude is not None and len(fold.terms) > 1:
            self._plan.problems.append(
                Problem(
                    name,
                    "several adapters, one of them DoRA, which rescales the whole weight",
                    "DoRA alone on a weight",
                    "Merge them one after the other, in the order that is meant",
                )
            )
        elif fold.magnitude is not None and weight != 1:
            self._plan.problems.append(weighed_dora(name, weight))
        bias = self._resolution.found.get(f"bias of pair {pair.layer} {pair.kind}")
        if pair.b_bias is not None and bias is not None:
            self._add_bias(pair, bias, scale.scaling, scale.alpha)

    def _add_bias(self, pair: LoraPair, name: str, scaling: float, alpha: float | None) -> None:
        assert pair.b_bias is not None
        values = self._adapter.tensors[pair.b_bias]
        fold = self._fold(name)
        if values.shape != fold.weight.shape:
            self._plan.problems.append(
                Problem(f"{self._adapter.path}, {pair.b_bias}", f"shape {values.shape}", f"{fold.weight.shape}")
            )
            return
        weight = self._adapter.weight
        fold.vectors.append(VectorTerm(values, scaling * weight))
        path = str(self._adapter.path)
        fold.uses.append(AdapterUse(path, (pair.b_bias,), "bias", pair.rank, alpha, scaling, weight=weight))

    def _replace(self, parameter: ParameterName) -> None:
        name = self._resolution.found.get(parameter.name)
        if name is None:
            return
        tensor, weight = self._adapter.tensors[parameter.name], self._weight(name)
        where = f"{self._adapter.path}, {parameter.name}"
        if tensor.shape != weight.shape:
            remedy = "Resize the base to the adapter's vocabulary first, as it was before the training"
            self._plan.problems.append(Problem(where, f"shape {tensor.shape}", f"{weight.shape}, as {name}", remedy))
        elif tensor.dtype != weight.dtype and not (tensor.dtype.is_float and weight.dtype.is_float):
            self._plan.problems.append(Problem(where, f"type {tensor.dtype}", f"{weight.dtype}, as {name}"))
        elif parameter.family == "peft" and same_values(tensor, weight):
            # PEFT saves embeddings that it adapts, or whose size is not the base's, whether they were trained or not.
            self._drop([parameter], "the base's own values")
        elif name in self._plan.folds:
            self._plan.problems.append(replaced_and_changed(name))
        elif self._adapter.weight != 1:
            self._plan.problems.append(weighed_whole(where, self._adapter.weight))
        elif self._is_combined_file(parameter, name):
            self._plan.problems.append(holds_base(where, "Merge it by itself: pet-merge FILE"))
        else:
            is_copy = self._is_copy(parameter)
            self._plan.folds[name] = Fold(tensor, [self._replacement(parameter)], is_replaced=True, is_copy=is_copy)
            self._replaced.add(name)

    def _is_combined_file(self, parameter: ParameterName, name: str) -> bool:
        """Whether a plain weight lies beside LoRA matrices for the same weight, other than PEFT saves embeddings."""
        return parameter.family != "peft" and name in {self._resolution.found.get(key) for key in self._pairs}

    def _is_copy(self, parameter: ParameterName) -> bool:
        """Whether PEFT's `modules_to_save` made a copy of the weight, apart from what the weight is tied to."""
        if parameter.family != "peft":
            return False
        config = self._adapter.config
        return not parameter.name.endswith(".bias") if config is None else config.saves_module(parameter.layer)

    def _replacement(self, parameter: ParameterName) -> AdapterUse:
        return AdapterUse(str(self._adapter.path), (parameter.name,), "replaced")

    def _weight(self, name: str) -> LazyTensor:
        return self._base[self._plan.untied.get(name, name)]

    def _fold(self, name: str) -> Fold:
        fold = self._plan.folds.setdefault(name, Fold(self._weight(name)))
        if fold.is_replaced and name not in self._replaced:
            self._plan.problems.append(replaced_and_changed(name))
        return fold

    def _refuse_methods(self, methods: Sequence[ParameterName]) -> None:
        by_reason: dict[str, list[str]] = {}
        for parameter in methods:
            if self._is_allowed(parameter.name):
                self._drop_unused((parameter.name,))
                continue
            by_reason.setdefault(unfoldable(parameter), []).append(parameter.name)
        for reason, names in by_reason.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._plan.problems.append(
                Problem(f"{self._adapter.path}, {names[0]}{more}", reason, remedy=_UNFOLDABLE_REMEDY)
            )

    def _nothing_to_fold(self) -> None:
        group = self._adapter.group
        if group.methods and all(self._is_allowed(parameter.name) for parameter in group.methods):
            self._plan.warnings.append(f"{self._adapter.path}: nothing of it is folded, as --allow-unused asks")
        if group.problems or group.methods:
            return
        self._plan.problems.append(
            Problem(
                str(self._adapter.path),
                "no adapter parameters",
                "LoRA matrices, under one of the names that docs/formats.md lists",
                "Is it the right file?",
            )
        )

    def _drop(self, parameters: Sequence[ParameterName], reason: str) -> None:
        path = str(self._adapter.path)
        self._plan.dropped += [DroppedTensor(parameter.name, path, reason) for parameter in parameters]

    def _drop_unused(self, keys: Sequence[str]) -> None:
        path = str(self._adapter.path)
        self._plan.dropped += [DroppedTensor(key, path, "unused, allowed by --allow-unused") for key in keys]

    def _is_allowed(self, key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in self._allow_unused)

    def _of_adapter(self, problem: Problem) -> Problem:
        return replace(problem, where=f"{self._adapter.path}, {problem.where}")
