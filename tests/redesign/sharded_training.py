"""A training in several processes of which none holds the whole weights: what `accelerate launch --use_fsdp` does on GPUs, by hand on CPUs.

torchrun --nproc-per-node 2 sharded_training.py RECIPE.json OUT [STEP]      every process is gone behind that step
"""

import json
import os
import sys
from pathlib import Path

from torch.distributed.fsdp import fully_shard

from skerry.redesign import train as training
from skerry.redesign.recipe import Recipe
from skerry.redesign.train_devices import Prepared, Several


class Sharded(Several):
    """accelerate refuses to shard on CPUs; this is its preparation: shard every block, then the rest, and point the optimiser at the shards."""

    def __init__(self, device):
        super().__init__(device)
        self.is_sharded = True

    def prepare(self, model, optimizer):
        name_of = {p: name for name, p in model.named_parameters()}
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
        shards = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [shards[name_of[p]] for p in group["params"]]
        return Prepared(model, optimizer)


if __name__ == "__main__":
    recipe, out, *killed_at = sys.argv[1:]
    training.find_devices = Sharded
    training.train(
        Recipe.from_plain(json.loads(Path(recipe).read_text())),
        out,
        device="cpu",
        threads=1,
        save_every=4,
        on_step=lambda step, loss, model: os._exit(9) if [str(step)] == killed_at else None,
    )
