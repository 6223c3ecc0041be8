"""The card of the stock weights: what they are, what they were trained on, for how long, and what they score.

Every figure is what the run measured and `demo.stock` wrote beside the weights; nothing else is printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORLD_OF = {
    "clip": "crests anywhere and in many proportions, charges alone, popular schemes; broad captions "
    "(`plain_logo`, seed 1, 48,000)",
    "reference_clip": "club-like and plain crests of its own (`reference_logo`, seed 2, 40,000)",
    "captioner": "the pictures of `clip` with captions of what is seen (`described_logo`, seed 1, 48,000)",
    "prior": "centred plain crests (`centred_logo`, seed 3, 48,000), as embeddings of `clip`",
    "decoder_64": "the same, with embeddings of `clip`",
}
FIGURES = {
    "r_at_1": "retrieval R@1 among {samples:.0f} held-out pairs",
    "colour_word_f1": "F1 of colour words on held-out logos",
    "object_word_f1": "F1 of words of things",
    "drawn_to_image": "cosine of drawn to true image embedding",
    "drawn_r_at_1": "its retrieval R@1 among 256",
    "loss": "held-out loss",
}
HEAD = """# Stock weights

A small DALL-E 2 that Crest trained itself, from nothing, on drawn crests: the embedded default that the demo
fine-tunes. They play the part that published weights play for a real user and know nothing but shapes,
fields, charges and ten colours on white, some outlined or above a line, without lettering. `reference_clip`
is of another architecture, seed and data and conditions nothing; it only judges. `make stock` trains all of
them again from `configs/stock/`; the worlds are `demo/plain.py`. Combinations of shape, field, charge and
colours that `demo.heraldry.is_held_out` names occur in none of the data.

Stored as fp16 safetensors; licence MIT, like the code. Not for anything but trying Crest out.

| weights | architecture | parameters | size | trained on | steps x batch, seed | minutes | scores |
|---|---|---|---|---|---|---|---|
"""


def model_card(stock: Path) -> str:
    """The card as Markdown, of a folder with one folder of weights each."""
    from crest.records import read_json

    rows, machines = [], dict[str, None]()
    for name, world in WORLD_OF.items():
        folder = stock / name
        if not (folder / "weights.json").exists():
            continue
        card: dict[str, Any] = read_json(folder / "weights.json")
        recipe = card["recipe"]
        measured = card["measured"]
        machines[measured["machine"]] = None
        scores = "; ".join(
            f"{text.format(**measured['scores'])} {measured['scores'][key]:.3f}"
            for key, text in FIGURES.items()
            if key in measured["scores"]
        )
        path = folder / "weights.safetensors"
        size = f"{_parameters(path) / 1e6:.1f} M | {path.stat().st_size / 1e6:.1f} MB"
        rows.append(
            f"| `{name}` | {_architecture(card)} | {size} | {world} "
            f"| {card['step']:,} x {recipe['optim']['batch_size']}, seed {recipe['run']['seed']} "
            f"| {measured['minutes']} | {scores} |"
        )
    return HEAD + "\n".join(rows) + f"\n\nMinutes (wall clock) and scores on {'; '.join(machines)}.\n"


def _architecture(card: dict[str, Any]) -> str:
    spec = card["spec"]
    if card["kind"] == "clip":
        vision = spec["custom"]["vision_cfg"]
        tower = f"ViT {vision['layers']} x {vision['width']}" if "patch_size" in vision else "ResNet"
        text = spec["custom"]["text_cfg"]
        return f"OpenCLIP, {tower}, text {text['layers']} x {text['width']}, {text['vocab_size']:,} tokens"
    if card["kind"] == "prior":
        return f"dalle2-pytorch prior network, {spec['depth']} x {spec['image_embed_dim']}"
    if card["kind"] == "decoder":
        levels = "-".join(str(mult * spec["dim"]) for mult in spec["dim_mults"])
        sketch = ", with a sketch" if spec["sketch_regions"] else ""
        network = f"dalle2-pytorch U-Net, {spec['side_px']} px, {levels} channels{sketch}"
        return f"{network}, predicts {spec['prediction']}"
    eyes = "convolutional stem, ViT" if spec.get("stem_channels") else "ViT"
    return f"{eyes}-GPT2, {spec['encoder_layers']} + {spec['decoder_layers']} x {spec['width']}"


def _parameters(path: Path) -> int:
    import math

    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:
        return sum(math.prod(stream.get_slice(name).get_shape()) for name in stream.keys())  # noqa: SIM118
