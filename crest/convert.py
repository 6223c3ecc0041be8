"""Turn published weights of a prior or decoder (dalle2-pytorch up to release 1.1) into ours, once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crest.config import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m crest.convert FILE [--config JSON] --out FOLDER [--unet-number N]`: 0 done, 1 refused."""
    parser = argparse.ArgumentParser(prog="python -m crest.convert", description=__doc__)
    parser.add_argument("file", type=Path, help="a .pth or .safetensors file")
    parser.add_argument(
        "--config", type=Path, metavar="JSON", help="published with it; absent: what is inside"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for model.start to name")
    parser.add_argument("--unet-number", type=int, default=1, metavar="N", help="which U-Net of a decoder")
    arguments = parser.parse_args(argv)
    return guarded(
        lambda: convert_file(arguments.file, arguments.config, arguments.out, arguments.unet_number)
    )


def convert_file(
    file: Path, config: Path | None, out: Path, unet_number: int = 1, *, trained: bool = True
) -> None:
    """Write `weights.safetensors` and its card, and tell what was left out.

    Raises:
        ConfigError: a field of the config that Crest cannot translate.
        WeightsError: a file that does not fit its config, or whose network answers as a random one.
    """
    from crest.models.published import convert, read_published

    published = read_published(file, config, unet_number=unet_number, trained=trained)
    path = convert(published, out, file.name)
    weights = published.weights
    for reason, count in weights.dropped.items():
        print(f"left out: {count} tensors of {reason}")
    for name in weights.added:
        print(f"zero, because the file is older than it: {name}")
    kind, arithmetic = published.translation.kind, published.translation.spec.arithmetic
    print(f"{path}: a {kind}, {len(weights.tensors)} tensors, arithmetic {arithmetic}")


if __name__ == "__main__":
    sys.exit(main())
