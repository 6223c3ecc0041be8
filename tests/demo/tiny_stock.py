"""Random weights of the five stock kinds, so small that the whole demo runs in a minute; they draw noise."""

from pathlib import Path
from typing import Any

import torch

from crest.checkpoint import export_weights, short_hash
from crest.models.captioner import CaptionerModel, CaptionerSpec, learn_vocabulary
from crest.models.clip import ClipModel, ClipSpec, vocabulary_size
from crest.models.decoder import Decoder, DecoderSpec
from crest.models.prior import Prior, PriorSpec
from demo.league import league_logos

MERGES = 400
WIDTH = 16


def clip_spec() -> ClipSpec:
    text = {
        "context_length": 48,
        "vocab_size": vocabulary_size(MERGES),
        "width": WIDTH,
        "heads": 2,
        "layers": 1,
    }
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": WIDTH, "head_width": 8}
    return ClipSpec(custom={"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}, bpe_merges=MERGES)


def write_tiny_stock(folder: Path) -> Path:
    """Write clip, reference_clip, prior, decoder_64 and captioner below `folder`."""

    def write(name: str, kind: str, model: Any, **parents: str) -> Path:
        spec = model.spec.model_dump(mode="json")
        return export_weights(
            folder / name, model, {"kind": kind, "spec": spec, "parents": parents}, half=True
        )

    torch.manual_seed(0)
    clip = short_hash(write("clip", "clip", ClipModel(clip_spec())))
    write("reference_clip", "clip", ClipModel(clip_spec()))
    prior = PriorSpec(image_embed_dim=WIDTH, text_width=WIDTH, max_text_len=32, depth=1, heads=2, dim_head=8)
    write("prior", "prior", Prior(prior), clip=clip)
    decoder = DecoderSpec(
        side_px=16,
        image_embed_dim=WIDTH,
        text_width=WIDTH,
        max_text_len=32,
        dim=8,
        dim_mults=(1, 2),
        cond_dim=24,
        self_attn=(False, False),
        attn_heads=2,
        attn_dim_head=8,
        sketch_regions=3,
        prediction="x_start",
    )
    write("decoder_64", "decoder", Decoder(decoder), clip=clip)
    vocabulary = learn_vocabulary([logo.caption for logo in league_logos(0, 1, 8)], 320)
    captioner = CaptionerSpec(
        side_px=32, patch_px=16, width=16, heads=2, encoder_layers=1, decoder_layers=1, **vocabulary
    )
    write("captioner", "captioner", CaptionerModel(captioner))
    return folder
