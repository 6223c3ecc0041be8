"""What a run leaves when it is stopped: the state of its last finished step, whatever stopped it.

A step is finished when weights, averages and count have moved; what is then due (figures, validation,
pictures) is `pending` until it is done, so that a run stopped in it does it when it goes on.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Final

import torch

from crest.checkpoint import State, save_state
from crest.errors import CrestError
from crest.interruption import Ended, is_asked
from crest.sharding import Sharding
from crest.world import World

PENDING: Final = "pending"
"""The training figures of a step of which something is still due."""
SCALE: Final = "loss_scale"
"""What fp16's scaling must know."""
SKIPPED: Final = "skipped_steps"
"""How many steps fp16 skipped so far."""


class Keeper:
    """Saves a run's state, when it is due and when something stops the run.

    As a context: whatever leaves it, a signal, an error of the data, a full disk, another process's end, the
    state of the last finished step is saved on the way out. With split weights all processes save together,
    so they do where they `agreed` to stop.
    """

    def __init__(self, run_dir: Path, state: State, world: World, sharding: Sharding | None) -> None:
        self._dir, self._state, self._world, self._sharding = run_dir, state, world, sharding
        self._saved = self._now()
        persistent = state.model.state_dict()
        self._buffers = [buffer for name, buffer in state.model.named_buffers() if name in persistent]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self.agreed = False

    def _now(self) -> tuple[int, bool]:
        return self._state.step, PENDING in self._state.extra

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        if self._saved != self._now() and (self._sharding is None or self.agreed):
            with contextlib.suppress(Exception), torch.no_grad():  # what stopped the run is what is told
                if self._buffers:
                    torch._foreach_copy_(self._buffers, self._kept)
                self.save()
        if is_asked() and isinstance(error, Exception) and not isinstance(error, CrestError):
            raise Ended from error  # another process ended first, and this one noticed

    @torch.no_grad()
    def finished_step(self) -> None:
        """Remember what a forward pass moves (running statistics): the next may be of a step never made."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def save(self) -> None:
        """Save the state whole; called by every process."""
        scale = self._world.scale_state()
        if scale:
            self._state.extra[SCALE] = scale
        if self._sharding is not None:
            whole = self._sharding.whole_state(self._state)
            if whole is not None:
                save_state(self._dir, whole)
        elif self._world.is_main:
            save_state(self._dir, self._state)
        self._saved = self._now()
