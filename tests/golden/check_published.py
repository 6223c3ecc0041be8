"""Names, shapes, types and bytes of published files: `python tests/golden/check_published.py FOLDER`.

FOLDER holds published configs and, in state_dict_keys/, lists of what is in the files that belong to them, as
{name: [shape, dtype]}. Each config is translated and each list compared with published_models.json, which
ships and which the tests compare our networks with; --write makes that file. Needs no network, no weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # Crest itself, wherever this is run from

from crest.models.published_configs import read_translation

MODELS = Path(__file__).with_name("published_models.json")
BYTES = {"float32": 4, "float16": 2, "int64": 8, "bool": 1}
SOURCES = {
    # name: config, list of tensors, number of the U-Net
    "laion prior ViT-L/14": (
        "laion_DALLE2-PyTorch__prior__prior_config__rev-de501e0",
        "laion_prior_vitl14",
        1,
    ),
    "laion prior ViT-L/14, aesthetic": (
        "laion_DALLE2-PyTorch__prior__prior_config__rev-ed91aa0",
        "laion_prior_vitl14",
        1,
    ),
    "nousr prior ViT-H-14": ("nousr_dalle2-pytorch__h14__prior_config", "nousr_prior_vith14", 1),
    "laion decoder v1.0.2": (
        "laion_DALLE2-PyTorch__decoder_v1.0.2__decoder_config",
        "laion_decoder_v1.0.2",
        1,
    ),
    "laion decoder 2B": ("laion_DALLE2-PyTorch__decoder_2B__decoder_config", "laion_decoder_2B_512", 1),
    "laion decoder 3B": (
        "laion_DALLE2-PyTorch__decoder_3B_fp16__decoder_config",
        "laion_decoder_3B_fp16_576",
        1,
    ),
    "upsampler 64 to 256, base": (
        "RobertLau_decoder_json__upsampler_64_256",
        "upsampler_64_256_RobertLau",
        1,
    ),
    "upsampler 64 to 256": ("RobertLau_decoder_json__upsampler_64_256", "upsampler_64_256_RobertLau", 2),
}


def summary(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    """How many tensors, how many bytes, and sixteen digits of every name, shape and type."""
    lines = sorted(f"{name} {tuple(shape)} {dtype}" for name, (shape, dtype) in tensors.items())
    return {
        "tensors": len(tensors),
        "bytes": sum(math.prod(shape) * BYTES[dtype] for shape, dtype in tensors.values()),
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


def published_name(ours: str, unet_number: int) -> str | None:
    """What published files call a tensor of ours; None for what they lack."""
    if ours in ("net.null_text_embeds", "net.null_image_embed"):
        return None
    ours = ours.replace("net.null_text_encodings", "net.null_text_embed")
    return re.sub(r"^unet\.", f"unets.{unet_number - 1}.", ours).replace(".cross_attn.", ".cross_attn.fn.")


def network(listed: Mapping[str, Any], unet_number: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """One network's tensors out of a file's list."""
    prefixes = ("net.", f"unets.{unet_number - 1}.")
    return {
        name: (tuple(shape), dtype) for name, (shape, dtype) in listed.items() if name.startswith(prefixes)
    }


def described(folder: Path) -> dict[str, Any]:
    """Every published model: its spec in our words, its network's tensors and its whole file's bytes."""
    found = {}
    for name, (config, keys, number) in SOURCES.items():
        translation = read_translation(folder / f"{config}.json", unet_number=number)
        listed = json.loads((folder / "state_dict_keys" / f"{keys}@1.1.0.json").read_text(encoding="utf-8"))
        whole = {key: (tuple(shape), dtype) for key, (shape, dtype) in listed.items()}
        found[name] = {
            "kind": translation.kind,
            "spec": translation.run["model"]["scratch"],
            "network": summary(network(listed, number)),
            "file": summary(whole),
        }
    return found


def main() -> int:
    """Compare, or write."""
    folder = Path(sys.argv[1])
    found = described(folder)
    if "--write" in sys.argv:
        MODELS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    shipped = json.loads(MODELS.read_text(encoding="utf-8"))
    wrong = [name for name in {**found, **shipped} if found.get(name) != shipped.get(name)]
    for name, model in found.items():
        told = model["network"]
        verdict = "differs" if name in wrong else "agrees"
        print(f"{verdict}: {name}: {told['tensors']} tensors, {told['bytes']:,} B")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
