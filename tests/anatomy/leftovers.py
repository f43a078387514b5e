"""Everything that a change of a model could leave behind."""

import copy

import torch
from torch import nn

from skerry.anatomy import attention, change, experts, routers

_HOOKS = [name for name, x in vars(nn.Linear(1, 1)).items() if name.endswith("_hooks") or "_hooks_" in name]


def state(model):
    """Hooks, attributes, configurations and registers, to be compared before and after."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return {
        "hooks": [
            (name, {h: list(getattr(m, h) or ()) for h in _HOOKS}) for name, m in model.named_modules()
        ],
        "own": [(name, sorted(vars(m))) for name, m in model.named_modules()],
        "forwards": [(name, vars(m)["forward"]) for name, m in model.named_modules() if "forward" in vars(m)],
        "configs": [copy.deepcopy(vars(c)) for c in configs.values()],
        "registers": (
            dict(attention._observers),
            dict(attention._kernels),
            dict(experts._observers),
            dict(routers._edits),
            dict(change._open),
        ),
        "modes": torch._C._len_torch_function_stack(),
    }


def bits(model):
    """A copy of all parameters and buffers."""
    return {key: x.clone() for key, x in model.state_dict(keep_vars=True).items()}


def same_bits(model, before):
    """Whether all parameters and buffers are as they were, bit for bit."""
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[k], x) for k, x in before.items())
