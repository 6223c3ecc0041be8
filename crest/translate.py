"""Turn a config of dalle2-pytorch up to release 1.1 into one of ours, field by field."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crest.config import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m crest.translate FILE [--out OURS.json] [--unet-number N]`: 0 done, 1 a field was refused."""
    parser = argparse.ArgumentParser(prog="python -m crest.translate", description=__doc__)
    parser.add_argument("file", type=Path, help="a train config of a prior or a decoder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where our config goes; printed where absent"
    )
    parser.add_argument("--unet-number", type=int, default=1, metavar="N", help="which U-Net of a decoder")
    arguments = parser.parse_args(argv)
    return guarded(lambda: translate_file(arguments.file, arguments.out, arguments.unet_number))


def translate_file(file: Path, out: Path | None, unet_number: int = 1) -> None:
    """Write the config and tell what became of every field.

    Raises:
        ConfigError: a field that Crest cannot translate, or a file that is there already.
    """
    import json

    from crest.errors import ConfigError
    from crest.models.published_configs import read_translation
    from crest.records import write_bytes

    translation = read_translation(file, unet_number=unet_number)
    text = json.dumps(translation.run, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
    elif out.exists():
        raise ConfigError(f"{out}: is there already; name another file, or remove it.")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, text.encode())
    report = sys.stderr if out is None else sys.stdout
    for line in translation.lines:
        print(f"{'->' if line.translated else '--'} {line.field}: {line.fate}", file=report)
    count = sum(line.translated for line in translation.lines)
    print(f"{count} fields translated, {len(translation.lines) - count} without meaning here", file=report)


if __name__ == "__main__":
    sys.exit(main())
