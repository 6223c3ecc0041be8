"""Whether a batch fits into memory, before it is tried: a process that the system kills cannot say why."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from clip_train.data import ClipBatch
from crest.errors import RunError
from crest.memory import free_bytes
from crest.models.clip import ClipModel
from crest.world import World

SHARE: Final = 0.9
"""Of what is free that a run may take."""
_MOMENTS: Final = 3
"""Numbers that a weight which learns needs besides itself: gradient and two averages."""


def check_memory(model: ClipModel, batch: ClipBatch, world: World) -> None:
    """Refuse a device batch whose activations do not fit, saying which would.

    Args:
        model: on its device.
        batch: the first one.
        world: this process.
    Raises:
        RunError: more than is free.
    """
    if len(batch.images) < 3:
        return
    # two at least: a batch norm that learns its statistics has none of a single sample
    two, three = (activation_bytes(model, batch, count, world) for count in (2, 3))
    each = max(three - two, 1)
    learning = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    fixed = max(two - 2 * each, 0) + _MOMENTS * learning + 2 * batch.images.nbytes
    free = SHARE * free_bytes(world.device)
    if fixed + each * batch.chunk <= free:
        return
    fitting = int((free - fixed) // each)
    while fitting > 1 and len(batch.images) % fitting:
        fitting -= 1
    needs = (
        f"optim.device_batch_size: {batch.chunk} pairs at once need about "
        f"{(fixed + each * batch.chunk) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    )
    if fitting < 1:
        raise RunError(f"{needs}; not even one fits: take model.mode features or lora, or a smaller model.")
    raise RunError(f"{needs}; {fitting} would fit (the batch and its gradient stay the same).")


def activation_bytes(model: ClipModel, batch: ClipBatch, count: int, world: World) -> int:
    """Bytes that a forward pass of so many samples keeps for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if isinstance(tensor, torch.nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = model.training
    learnt = {name: value.clone() for name, value in model.named_buffers()}  # such as batch norms learn
    model.train()
    inputs: list[Any] = [batch.images[:count], batch.tokens[:count], count]
    states = None if batch.states is None else batch.states[:count]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), world.autocast():
        embedded = model(*inputs, states)
    del embedded
    model.train(was_training)
    for name, value in model.named_buffers():
        value.copy_(learnt[name])
    return sum(kept.values())
