"""The faster prior equals the library's own, in values and in gradients."""

from typing import Any

import pytest
import torch
from dalle2_pytorch.dalle2_pytorch import DiffusionPriorNetwork

from crest.models.fast_prior import prior_forward
from tests.crest.models.same_as_library import assert_like, assert_same_gradients, stirred

B, D, L = 3, 12, 5

PRIORS: dict[str, dict[str, Any]] = {
    "one layer": {"depth": 1},
    "three layers": {"depth": 3},
    "norms": {"depth": 2, "norm_in": True, "normformer": True},
    "no rotation": {"depth": 2, "rotary_emb": False},
    "table of timesteps": {"depth": 2, "num_timesteps": 50},
    "wide heads": {"depth": 2, "dim_head": 40},
    "bare output": {"depth": 2, "norm_out": False, "final_proj": False},
    "text as long as it reads": {"depth": 2, "max_text_len": L},
    "text longer than it reads": {"depth": 2, "max_text_len": 3},
}


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("dropped", [False, True], ids=["kept", "dropped"])
def test_prior_is_the_librarys(name: str, dropped: bool) -> None:
    net = stirred(
        DiffusionPriorNetwork(**{"dim": D, "max_text_len": 8, "heads": 2, "dim_head": 6, **PRIORS[name]})
    )
    draw = torch.Generator().manual_seed(3)
    inputs = {
        "image_embed": torch.randn(B, D, generator=draw),
        "text_embed": torch.randn(B, D, generator=draw),
        "text_encodings": torch.randn(B, L, D, generator=draw),
    }
    inputs["text_encodings"][2, 1:] = 0
    inputs = {key: value.requires_grad_() for key, value in inputs.items()}
    t = torch.tensor([0, 7, 49])
    theirs = net(
        inputs["image_embed"],
        t,
        text_embed=inputs["text_embed"],
        text_encodings=inputs["text_encodings"],
        text_cond_drop_prob=float(dropped),
        image_cond_drop_prob=float(dropped),
    )
    keep = torch.full((B,), not dropped)
    ours = prior_forward(
        net, inputs["image_embed"], t, inputs["text_embed"], inputs["text_encodings"], keep, keep
    )
    assert_like(ours, theirs, name)
    assert_same_gradients(net, ours, theirs, inputs)
