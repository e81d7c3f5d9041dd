"""A model in another basis: the same function, with the residual stream's coordinates in another order."""

import torch

from undo_probe.models import HookedTransformer, clone

# which axis of each parameter runs along the residual stream
AXES = {
    "W_E": 1, "W_pos": 1, "W_Q": 1, "W_K": 1, "W_V": 1, "W_O": 2, "b_O": 0, "W_in": 0, "W_out": 1, "b_out": 0,
    "w": 0, "b": 0, "W_U": 0,
}  # fmt: skip


def reordered(model: HookedTransformer, seed: int = 0) -> HookedTransformer:
    """Exact for LayerNorm and RMSNorm alike: neither sees the order of the coordinates."""
    order = torch.randperm(model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    copy = clone(model)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            axis = AXES.get(name.rpartition(".")[2])
            if axis is not None:
                parameter.copy_(parameter.index_select(axis, order))
    return copy
