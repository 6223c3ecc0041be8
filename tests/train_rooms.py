"""Train rooms one after another in this process: `torchrun train_rooms.py FOLDER room=config.json …`.

Each process leaves a file in FOLDER that says which of how many it was.
"""

import importlib
import os
import sys
import typing
from pathlib import Path

import torch.distributed as distributed

from crest.config import run_command

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for word in sys.argv[2:]:
        room, _, path = word.partition("=")
        command = importlib.import_module(f"{room}.__main__")
        config_class = typing.get_type_hints(command.main)["config"]
        status = run_command(room, config_class, command.main, check=command.check, argv=["--config", path])
        if status:
            sys.exit(status)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    (folder / f"rank-{rank}-of-{size}").write_text(str(os.getpid()), encoding="utf-8")
