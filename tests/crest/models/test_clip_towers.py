"""Towers cut in two say what they say as a whole, wherever they are cut."""

from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from crest.errors import ConfigError
from crest.models.clip_towers import HEAD, image_tower, text_tower

TEXT = {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 3}
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 3},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "pooled_vit": {
        "image_size": 32,
        "patch_size": 16,
        "width": 32,
        "head_width": 16,
        "layers": 3,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
    },
    "timm_vit": {
        "image_size": 32,
        "timm_model_name": "test_vit",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "timm_map": {
        "image_size": 32,
        "timm_model_name": "test_vit2",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "timm_convnext": {
        "image_size": 32,
        "timm_model_name": "test_convnext",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
}


def built(vision: str, *, custom: bool = False) -> Any:
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    text = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True} if custom else TEXT
    embed_dim = 64 if vision == "timm_map" else 24
    return kind(embed_dim=embed_dim, vision_cfg=VISION[vision], text_cfg=text).eval()


@pytest.mark.parametrize("vision", VISION)
def test_an_image_tower_is_the_same_wherever_it_is_cut(vision: str) -> None:
    clip = built(vision)
    tower, pictures = image_tower(clip), torch.rand(2, 3, 32, 32)
    if vision == "timm_vit":
        pictures = torch.rand(2, 3, 160, 160)
    if vision == "timm_map":
        pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole = clip.encode_image(pictures)
        for cut in range(HEAD, tower.depth + 1):
            states = tower.lower(pictures, cut)
            assert torch.allclose(tower.upper(states, cut), whole, atol=1e-5), cut


@pytest.mark.parametrize("custom", [False, True])
def test_a_text_tower_is_the_same_wherever_it_is_cut(custom: bool) -> None:
    clip = built("vit", custom=custom)
    tower, tokens = text_tower(clip), torch.randint(1, 599, (2, 12))
    with torch.no_grad():
        whole = clip.encode_text(tokens)
        assert tower.depth == 3
        for cut in range(HEAD, tower.depth + 1):
            states = tower.lower(tokens, cut)
            assert torch.allclose(tower.upper(states, cut, tokens), whole, atol=1e-5), cut


@pytest.mark.parametrize("vision", ["vit", "resnet", "pooled_vit", "timm_vit"])
@pytest.mark.parametrize("cut", [HEAD, 1, 2])
def test_what_lies_above_a_cut_is_what_its_gradient_reaches(vision: str, cut: int) -> None:
    clip = built(vision)
    tower = image_tower(clip)
    side = 160 if vision == "timm_vit" else 32
    states = tower.lower(torch.rand(2, 3, side, side), cut).detach()
    tower.upper(states, cut).square().sum().backward()
    reached = {id(weight) for weight in clip.parameters() if weight.grad is not None}
    assert reached == {id(weight) for weight in tower.above(cut)}


@pytest.mark.parametrize("custom", [False, True])
def test_what_lies_above_a_text_cut_is_what_its_gradient_reaches(custom: bool) -> None:
    clip = built("vit", custom=custom)
    tower, tokens = text_tower(clip), torch.randint(1, 599, (2, 12))
    for cut in (HEAD, 1, 3):
        clip.zero_grad()
        tower.upper(tower.lower(tokens, cut).detach(), cut, tokens).square().sum().backward()
        reached = {id(weight) for weight in clip.parameters() if weight.grad is not None}
        assert reached == {id(weight) for weight in tower.above(cut)}


def test_an_unknown_tower_is_refused() -> None:
    class Strange(nn.Module):
        visual = nn.Linear(1, 1)
        text = nn.Linear(1, 1)

    for find, name in ((image_tower, "image"), (text_tower, "text")):
        with pytest.raises(ConfigError, match=f"can't cut an? {name} tower of kind Linear; take full"):
            find(Strange())
