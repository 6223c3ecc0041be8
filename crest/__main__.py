"""Draw logos from text: `crest "a red shield with a white star"`, or a whole folder by --config."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crest.config import guarded, load_config, resolved_json

if TYPE_CHECKING:
    from crest.generate_config import GenerateConfig


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `crest`: prompts on the line, or a config."""
    parser = argparse.ArgumentParser(prog="crest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help='for instance "a red shield with a white star"'
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a generate.json; default: stock weights into ./logos"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.field=value",
        help="change one setting; repeatable",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config, check inputs, exit"
    )
    arguments = parser.parse_args(argv)
    if not arguments.prompts and arguments.config is None:
        parser.error('give a prompt, as in: crest "a red shield with a white star", or --config FILE')
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from crest.generate_config import GenerateConfig

    if arguments.config is not None:
        config = load_config(GenerateConfig, arguments.config, arguments.set)
    else:
        config = _line_config(arguments.prompts, arguments.set)
    if arguments.dry_run:
        print(resolved_json(config))
    from crest.checkpoint import locate_weights
    from crest.errors import ConfigError
    from crest.generate import Prompt, generate, read_prompts

    for name, kind in (("clip", "clip"), ("prior", "prior"), ("decoder", "decoder")):
        locate_weights(getattr(config.models, name), kind)
    for place in config.models.upsamplers:
        locate_weights(place, "decoder")
    if arguments.prompts:
        prompts = [Prompt(f"{number:04d}", text) for number, text in enumerate(arguments.prompts)]
    elif config.draw.prompts is not None:
        prompts = read_prompts(config.draw.prompts)[: config.draw.max_prompts]
    else:
        raise ConfigError(
            f"{arguments.config}: draw.prompts is missing and no prompt stands on the line; give one."
        )
    if not arguments.dry_run:
        out = generate(config, prompts)
        print(f"{len(prompts) * config.draw.per_prompt} logos in {out}, side by side in {out / 'grid.png'}")


def _line_config(prompts: Sequence[str], overrides: Sequence[str]) -> GenerateConfig:
    # prompts on the line draw four pictures each into a folder named after the first one
    from crest.generate_config import GenerateConfig
    from crest.records import hash_of

    words = "-".join(re.findall(r"[a-z0-9]+", prompts[0].lower()))[:48] or "logo"
    values = {"draw": {"out": f"logos/{words}-{hash_of(*prompts, *overrides)[:6]}", "per_prompt": 4}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generate.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        return load_config(GenerateConfig, path, overrides)


if __name__ == "__main__":
    sys.exit(main())
