"""State dicts to be compared."""

import torch


def flat(state):
    """Every leaf of a nested state dict with its path, tensors as lists of numbers."""
    if isinstance(state, dict):
        return {f"{key}/{path}": leaf for key, value in state.items() for path, leaf in flat(value).items()}
    if isinstance(state, list):
        return flat(dict(enumerate(state)))
    return {"": state.tolist() if isinstance(state, torch.Tensor) else state}
