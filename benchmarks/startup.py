"""Seconds until `--help` answers: our commands against the programs of the libraries behind them.

dalle2-pytorch ships its trainers as scripts outside the package, so its one installed program, `dream`,
stands for them; OpenCLIP's trainer stands for itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.harness import Case, Step

OPEN_CLIP = ("-m", "open_clip_train.main", "--help")
DREAM = ("-c", "import sys; from dalle2_pytorch.cli import dream; sys.argv = ['dream', '--help']; dream()")
PAIRS = {
    "clip_train": OPEN_CLIP,
    "prior_train": DREAM,
    "decoder_train": DREAM,
    "crest": DREAM,
}


def cases() -> list[Case]:
    """One case a command that has a counterpart upstream."""
    return [
        Case(
            room,
            {"upstream": starting(*upstream), "crest": starting("-m", room, "--help")},
            memory=False,
            rounds=5,
        )
        for room, upstream in PAIRS.items()
    ]


def starting(*words: str) -> Callable[[], Step]:
    """Builds the step that starts a fresh interpreter with these words and waits for its end."""

    def step() -> None:
        subprocess.run(
            [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    return lambda: step
