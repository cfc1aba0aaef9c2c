"""A merged folder against base and adapter in PEFT's hands, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft_models import Network, logits
from safetensors import safe_open

# The integers whose order is that of the floats of that width.
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}

# Norms inside the networks are taken in float32 whatever the weights' type is; then come the weights' own roundings.
_LOGITS_ERROR = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                assert name not in tensors, f"{name} is in two files"
                tensors[name] = file.get_tensor(name)
    return tensors


def merged_by_peft(model: PeftModel) -> dict[str, torch.Tensor]:
    """PEFT's own merge, in the type of the model, of a network whose ties were cut before.

    PEFT adds an embedding's update to a tied parameter, and so to the output head, whose update is added to the
    embedding likewise: the merged network then speaks differently from base and adapter. Cutting the ties changes
    neither of the two, and leaves PEFT one parameter for each update.
    """
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in seen:
                setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))
            seen.add(id(parameter))
    return dict(model.merge_and_unload().state_dict())


def assert_rounded(
    found: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> int:
    """Assert that each tensor is its float64 reference, computed in float32 and rounded once to its type.

    Args:
        found: The tensors to judge.
        base: The base's; a tensor whose reference equals it must have its bytes.
        expected: Name to float64 tensor; may hold more names.

    Returns:
        How many tensors are not the base's.
    """
    changed = 0
    for name, tensor in found.items():
        reference = expected[name]
        before = base.get(name)
        if before is not None and before.dtype == tensor.dtype and torch.equal(before.double(), reference):
            assert _bytes(tensor) == _bytes(before), f"{name}: untouched, but its bytes differ"
            continue
        changed += 1
        _assert_close(name, tensor, reference, before)
    return changed


def _assert_close(name: str, tensor: torch.Tensor, reference: torch.Tensor, before: torch.Tensor | None) -> None:
    assert tensor.shape == reference.shape, name
    error = (tensor.double() - reference).abs()
    delta = reference if before is None else reference - before.double()
    # A float32 sum is off by a few units of its largest part, whichever cancels out in the result.
    noise = 2.0**-22 * (reference.abs() + reference.sub(delta).abs() + delta.abs().max())
    if tensor.dtype == torch.float32:
        assert bool((error <= noise).all()), f"{name}: off by {(error / noise).max() * 2:.1f} units of float32"
        return
    rounded = reference.to(tensor.dtype)
    exact = (tensor == rounded).double().mean()
    assert exact >= 0.99, f"{name}: {exact:.2%} of the elements are the correctly rounded ones"
    steps = (_order(tensor) - _order(rounded)).abs()
    assert bool(((steps <= 1) | (error <= noise)).all()), f"{name}: off by {steps.max()} units of {tensor.dtype}"


def assert_speaks_alike(network: Network, folder: Path, expected: torch.Tensor, base: Path) -> None:
    """Assert that a merged folder, loaded strictly, gives the logits that base and adapter give side by side."""
    dtype = next(tensor.dtype for tensor in read_folder(folder).values() if tensor.is_floating_point())
    found, unadapted = logits(network.load(folder)), logits(network.load(base))
    error, effect = _distance(found, expected), _distance(unadapted, expected)
    assert error <= _LOGITS_ERROR[dtype], f"logits differ by {error:.2g}"
    assert effect > 3 * error, (
        f"the adapter changes the logits by {effect:.2g}, which is no more than the error {error:.2g}"
    )


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def _bytes(tensor: torch.Tensor) -> bytes:
    return np.ascontiguousarray(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()).tobytes()


def _order(tensor: torch.Tensor) -> torch.Tensor:
    """Whole numbers that count a type's floats from the least to the greatest."""
    bits = tensor.contiguous().view(_BITS[tensor.dtype]).to(torch.int64)
    lowest = -(2 ** (8 * tensor.element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)
