"""The smallest stage where weights may be split: `accelerate launch … split_toy.py FOLDER STEPS [HOW:STEP]`.

Writes FOLDER/held-<rank>.json: bytes of all tensors that live in this process between two steps. HOW is
"nan", which spoils that step's batch, or "stop", which sends the first process SIGTERM in it.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "crest")]
from toy_stage import ToyBatch, ToyStage, train  # noqa: E402

from crest.config import guarded  # noqa: E402


class Wide(ToyStage):
    """Weights that outweigh their batches; a frozen one, and a convolution that lies channels last."""

    def __init__(self, folder: Path, how: str = "", at: int = -1) -> None:
        super().__init__(micro=2)
        torch.manual_seed(3)
        self.network = nn.Sequential(
            nn.Linear(4, 256), nn.Tanh(), nn.Unflatten(1, (64, 2, 2)), nn.Conv2d(64, 128, 2), nn.Flatten(),
            nn.Tanh(), nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 1),
        )  # fmt: skip
        self.network = self.network.to(memory_format=torch.channels_last)
        self.network[0].bias.requires_grad_(False)
        self.folder, self.stop_step = folder, at if how == "stop" else -1
        self.spoil_step = at if how == "nan" else -1
        self.on_batch = self.weigh

    def weigh(self) -> None:
        """Note the bytes of every tensor's memory, each once, while there are no gradients."""
        if any(weight.grad is not None for weight in self.network.parameters()):
            return
        gc.collect()
        tensors = [
            found for found in gc.get_objects() if issubclass(type(found), Tensor) and not found.is_meta
        ]
        held = {
            part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in map(own, tensors)
        }
        rank = os.environ.get("RANK", "0")
        (self.folder / f"held-{rank}.json").write_text(json.dumps(sum(held.values())), encoding="utf-8")

    def loss(self, model: nn.Module, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.draw.step == self.stop_step and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, batch)


def own(tensor: Any) -> Tensor:
    """What of a tensor lies in this process."""
    part: Tensor = tensor._local_tensor if hasattr(tensor, "_local_tensor") else tensor
    return part


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    how, _, at = [*sys.argv, ""][3].partition(":")
    train(Wide(folder, how, int(at or -1)), folder / "run", steps=steps, preview_every=3)


if __name__ == "__main__":
    sys.exit(guarded(main))
