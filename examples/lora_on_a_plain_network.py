"""LoRA on a network of one's own: train, export the delta, merge it with `pet-merge`, load it into the plain network.

Run `python -m examples.lora_on_a_plain_network` in an empty folder; either pair of packages will do.
"""

import subprocess

import mindspore
import numpy as np
from mindspore import Tensor, nn
from mindspore.dataset import GeneratorDataset

from surgery import DeltaCheckpoint, get_pet_model, load_ckpt

mindspore.set_seed(1)
network = nn.SequentialCell(nn.Dense(16, 32, activation="tanh"), nn.Dense(32, 4))
mindspore.save_checkpoint(network, "base.ckpt")

lora = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 8, "target_modules": "0|1"}
tuned = get_pet_model(network, lora)
random = np.random.default_rng(0)
samples = [(random.normal(size=16).astype(np.float32), np.ones(4, np.float32)) for _ in range(64)]
model = mindspore.Model(tuned, nn.MSELoss(), nn.Adam(tuned.trainable_params(), learning_rate=1e-2))
data = GeneratorDataset(samples, ["input", "target"]).batch(8)
model.train(5, data, callbacks=[DeltaCheckpoint("adapter", lora, keep=1)], dataset_sink_mode=False)

subprocess.run(["pet-merge", "base.ckpt", "adapter/adapter-5_8.ckpt", "-o", "merged.ckpt"], check=True)
plain = nn.SequentialCell(nn.Dense(16, 32, activation="tanh"), nn.Dense(32, 4))
load_ckpt(plain, "merged.ckpt")
inputs = Tensor(samples[0][0][None])
difference = np.abs(plain(inputs).asnumpy() - tuned.set_train(False)(inputs).asnumpy()).max()
print(f"tuned and merged differ by {difference:.1e}")
assert difference < 1e-5
