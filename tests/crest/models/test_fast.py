"""The faster U-Net equals the library's own, in values and in gradients."""

from typing import Any

import pytest
import torch
from dalle2_pytorch.dalle2_pytorch import Unet
from torch import Tensor

from crest.models.fast import unet_conditions, unet_forward
from tests.crest.models.same_as_library import assert_like, assert_same_gradients, stirred

B, D, L, K = 3, 12, 5, 10

UNETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "memory efficient": {"memory_efficient": True},
    "without text": {"cond_on_text_encodings": False, "memory_efficient": True},
    "self-attention everywhere": {"self_attn": (True, True), "memory_efficient": True, "attn_heads": 3},
    "linear attention": {"self_attn": False, "sparse_attn": True},
    "cosine attention": {"self_attn": True, "cosine_sim_self_attn": True, "cosine_sim_cross_attn": True},
    "many keys": {"max_text_len": 140, "memory_efficient": True},
    "two blocks": {"num_resnet_blocks": 2, "scale_skip_connection": True},
    "first convolutions": {"init_cross_embed": True, "init_dim": 16, "cross_embed_downsample": True},
    "nearest upsampling": {"pixel_shuffle_upsample": False, "combine_upsample_fmaps": True},
    "no hiddens": {"add_image_embeds_to_time": False},
}


def unet_of(settings: dict[str, Any]) -> Any:
    base: dict[str, Any] = {
        "dim": 16, "dim_mults": (1, 2), "image_embed_dim": D, "text_embed_dim": K, "cond_dim": 20,
        "cond_on_text_encodings": True, "cond_on_image_embeds": True, "max_text_len": 8,
        "self_attn": (False, True), "attn_heads": 2, "attn_dim_head": 8, "num_resnet_blocks": 1,
        "init_cross_embed": False,
    }  # fmt: skip
    return stirred(Unet(**{**base, **settings}))


def unet_inputs(text: bool) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    inputs = {"x": torch.randn(B, 3, 8, 8, generator=draw), "image_embed": torch.randn(B, D, generator=draw)}
    if text:
        encodings = torch.randn(B, L, K, generator=draw)
        encodings[1, 2:] = 0  # a short text
        inputs["text_encodings"] = encodings
    return {name: value.requires_grad_() for name, value in inputs.items()}


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("dropped", [False, True], ids=["kept", "dropped"])
def test_unet_is_the_librarys(name: str, dropped: bool) -> None:
    unet = unet_of(UNETS[name])
    inputs, t = unet_inputs(unet.cond_on_text_encodings), torch.tensor([0, 7, 999])
    probability = float(dropped)
    theirs = unet(
        inputs["x"],
        t,
        image_embed=inputs["image_embed"],
        text_encodings=inputs.get("text_encodings"),
        image_cond_drop_prob=probability,
        text_cond_drop_prob=probability,
    )
    keep = torch.full((B,), not dropped)
    conditions = unet_conditions(unet, inputs["image_embed"], inputs.get("text_encodings"), keep, keep)
    ours = unet_forward(unet, inputs["x"], t, conditions)
    assert_like(ours, theirs, name)
    assert_same_gradients(unet, ours, theirs, inputs)


def test_a_condition_is_dropped_for_its_own_row_alone() -> None:
    unet, t = unet_of({"memory_efficient": True}), torch.tensor([5, 5, 5])
    inputs = unet_inputs(text=True)
    rows = {"both": (True, True), "image": (True, False), "text": (False, True), "none": (False, False)}

    def predicted(image_keep: list[bool], text_keep: list[bool]) -> Tensor:
        masks = torch.tensor(image_keep), torch.tensor(text_keep)
        conditions = unet_conditions(unet, inputs["image_embed"], inputs["text_encodings"], *masks)
        return unet_forward(unet, inputs["x"], t, conditions)

    alike = {name: predicted([image] * B, [text] * B) for name, (image, text) in rows.items()}
    mixed = predicted([True, True, False], [True, False, True])
    for row, name in enumerate(("both", "image", "text")):
        assert_like(mixed[row], alike[name][row], name)
    assert not torch.allclose(alike["both"], alike["text"])
    assert not torch.allclose(alike["none"], alike["text"], atol=1e-4)


def test_unet_with_a_low_resolution_picture_is_the_librarys() -> None:
    unet = unet_of({"lowres_cond": True, "memory_efficient": True})
    inputs, t = unet_inputs(text=True), torch.tensor([1, 2, 3])
    lowres = torch.randn(B, 3, 8, 8)
    theirs = unet(
        inputs["x"],
        t,
        image_embed=inputs["image_embed"],
        text_encodings=inputs["text_encodings"],
        lowres_cond_img=lowres,
    )
    keep = torch.ones(B, dtype=torch.bool)
    conditions = unet_conditions(unet, inputs["image_embed"], inputs["text_encodings"], keep, keep)
    assert_like(unet_forward(unet, inputs["x"], t, conditions, lowres), theirs, "lowres")


def test_text_longer_than_the_unet_reads_is_cut_as_the_library_cuts_it() -> None:
    unet = unet_of({"max_text_len": 3})
    inputs, t = unet_inputs(text=True), torch.tensor([1, 2, 3])
    theirs = unet(inputs["x"], t, image_embed=inputs["image_embed"], text_encodings=inputs["text_encodings"])
    keep = torch.ones(B, dtype=torch.bool)
    conditions = unet_conditions(unet, inputs["image_embed"], inputs["text_encodings"], keep, keep)
    assert_like(unet_forward(unet, inputs["x"], t, conditions), theirs, "cut")
