"""The faster U-Net equals the library's own, in values and in gradients."""

from typing import Any, get_args

import pytest
import torch
from dalle2_pytorch.dalle2_pytorch import Attention, Downsample, LinearAttention, Unet
from torch import Tensor

from crest.config import Arithmetic
from crest.models.fast import (
    _downsample,
    _linear_attention,
    _written_out_attention,
    unet_conditions,
    unet_forward,
)
from crest.models.fast_attention import multi_query_attention
from tests.crest.models.same_as_library import assert_like, assert_same_gradients, stirred

B, D, L, K = 3, 12, 5, 10
ARITHMETICS: tuple[Arithmetic, ...] = get_args(Arithmetic)

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
    "wide": {"dim": 96, "dim_mults": (1,), "self_attn": False},
    "standardised": {"dim": 96, "dim_mults": (1,), "self_attn": False, "resnet_weight_standardization": True},
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


FURTHER: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lowres": ({"lowres_cond": True, "memory_efficient": True}, ("lowres",)),
    "lowres, noised": ({"lowres_cond": True, "lowres_noise_cond": True}, ("lowres", "lowres_noise_level")),
    "self-conditioned": ({"self_cond": True}, ("self_cond",)),
    "self-conditioned, not yet": ({"self_cond": True}, ()),
    "all": (
        {"self_cond": True, "lowres_cond": True, "lowres_noise_cond": True, "init_cross_embed": True},
        ("lowres", "lowres_noise_level", "self_cond"),
    ),
}


@pytest.mark.parametrize("name", FURTHER)
def test_unet_with_further_inputs_is_the_librarys(name: str) -> None:
    settings, given = FURTHER[name]
    unet = unet_of(settings)
    inputs, t = unet_inputs(text=True), torch.tensor([1, 2, 3])
    draw = torch.Generator().manual_seed(4)
    further: dict[str, Any] = {
        "lowres": torch.randn(B, 3, 8, 8, generator=draw).requires_grad_(),
        "self_cond": torch.randn(B, 3, 8, 8, generator=draw).requires_grad_(),
        "lowres_noise_level": torch.tensor([200, 10, 999]),
    }
    further = {key: value for key, value in further.items() if key in given}
    theirs = unet(
        inputs["x"],
        t,
        image_embed=inputs["image_embed"],
        text_encodings=inputs["text_encodings"],
        **{"lowres_cond_img" if key == "lowres" else key: value for key, value in further.items()},
    )
    keep = torch.ones(B, dtype=torch.bool)
    conditions = unet_conditions(unet, inputs["image_embed"], inputs["text_encodings"], keep, keep)
    ours = unet_forward(unet, inputs["x"], t, conditions, **further)
    assert_like(ours, theirs, name)
    learnt = {key: value for key, value in further.items() if value.requires_grad}
    assert_same_gradients(unet, ours, theirs, {**inputs, **learnt})


@pytest.mark.parametrize("name", ["self-attention everywhere", "linear attention", "many keys"])
def test_checkpointing_keeps_less_and_changes_nothing(name: str) -> None:
    unet, t = unet_of(UNETS[name]), torch.tensor([1, 2, 3])
    inputs = unet_inputs(text=True)
    keep = torch.ones(B, dtype=torch.bool)
    kept: dict[bool, int] = {}
    outs: dict[bool, Tensor] = {}
    for checkpointing in (False, True):
        sizes: list[int] = []

        def keeping(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keeping, lambda tensor: tensor):
            conditions = unet_conditions(unet, inputs["image_embed"], inputs["text_encodings"], keep, keep)
            outs[checkpointing] = unet_forward(unet, inputs["x"], t, conditions, checkpointing=checkpointing)
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 3
    assert_same_gradients(unet, outs[True], outs[False], inputs)


def predicted(unet: Any, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    keep, t = torch.ones(B, dtype=torch.bool), torch.tensor([1, 500, 999])
    conditions = unet_conditions(unet, inputs["image_embed"], inputs.get("text_encodings"), keep, keep)
    return unet_forward(unet, inputs["x"], t, conditions, **settings)


def test_release_1_1_divides_by_the_root_of_a_heads_width() -> None:
    # 1.15 divides by the width itself: queries that are longer by its root make up for it
    unet, inputs = unet_of({"self_attn": True, "memory_efficient": True}), unet_inputs(text=True)
    ours = predicted(unet, inputs, arithmetic="1.1")
    assert not torch.allclose(ours, predicted(unet, inputs), atol=1e-3)
    for name, weight in unet.named_parameters():
        if name.endswith("to_q.weight") and "cross_attn" not in name:
            weight.data *= 8**0.5
    theirs = unet(
        inputs["x"],
        torch.tensor([1, 500, 999]),
        image_embed=inputs["image_embed"],
        text_encodings=inputs["text_encodings"],
    )
    assert_like(ours, theirs, "1.1")


def test_release_1_1_halves_a_picture_by_one_convolution() -> None:
    unet, inputs = unet_of({"memory_efficient": True}), unet_inputs(text=True)
    for level in unet.downs:
        found = level[0][1]
        level[0] = stirred(torch.nn.Conv2d(found.in_channels // 4, found.out_channels, 4, 2, 1))
    theirs = unet(
        inputs["x"],
        torch.tensor([1, 500, 999]),
        image_embed=inputs["image_embed"],
        text_encodings=inputs["text_encodings"],
    )
    assert_like(predicted(unet, inputs), theirs, "4x4")


def test_release_1_1_leaves_the_values_of_linear_attention_as_they_are() -> None:
    module = stirred(LinearAttention(6, dim_head=4, heads=2))
    x = torch.randn(B, 6, 4, 4)
    query, key, value = module.to_qkv(module.norm(x)).view(B, 3, 2, 4, 16).unbind(1)
    context = torch.einsum("bhdn,bhen->bhde", key.softmax(dim=-1), value)
    mixed = torch.einsum("bhde,bhdn->bhen", context, query.softmax(dim=-2) * 4**-0.5)
    wanted = module.to_out(module.nonlin(mixed.reshape(B, 8, 4, 4)))
    assert_like(_linear_attention(module, x, "1.1"), wanted, "1.1")
    assert_like(_linear_attention(module, x, "1.15"), module(x), "1.15")


def test_attention_written_out_is_the_fused_one() -> None:
    module = stirred(Attention(12, dim_head=8, heads=3, cosine_sim=False))
    x = torch.randn(B, 16, 12).requires_grad_()
    for arithmetic in ARITHMETICS:
        fused = multi_query_attention(module, x, None, arithmetic=arithmetic)
        ours = _written_out_attention(module, x, arithmetic)
        assert_like(ours, fused, arithmetic)
        assert_same_gradients(module, ours, fused, {"x": x})


def test_downsampling_by_patches_is_the_librarys() -> None:
    # what low precision takes on a CPU; here in double, so that a mistake is no rounding
    module = stirred(Downsample(6, 10)).double()
    x = torch.randn(B, 6, 8, 4, dtype=torch.float64).requires_grad_()
    ours, theirs = _downsample(module, x), module(x)
    assert float((ours - theirs).detach().abs().max()) < 1e-12
    assert_same_gradients(module, ours, theirs, {"x": x})


def test_low_precision_is_near() -> None:
    unet, inputs = unet_of({"memory_efficient": True, "self_attn": True}), unet_inputs(text=True)
    wanted = predicted(unet, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = predicted(unet, inputs)
    assert 0 < float((found.float() - wanted).detach().norm() / wanted.detach().norm()) < 0.05


def test_text_longer_than_the_unet_reads_is_cut_as_the_library_cuts_it() -> None:
    unet = unet_of({"max_text_len": 3})
    inputs, t = unet_inputs(text=True), torch.tensor([1, 2, 3])
    theirs = unet(inputs["x"], t, image_embed=inputs["image_embed"], text_encodings=inputs["text_encodings"])
    keep = torch.ones(B, dtype=torch.bool)
    conditions = unet_conditions(unet, inputs["image_embed"], inputs["text_encodings"], keep, keep)
    assert_like(unet_forward(unet, inputs["x"], t, conditions), theirs, "cut")


@pytest.mark.slow
def test_it_can_be_compiled_whole() -> None:
    # traced without a break, forward and backward; what C++ makes of it is the compiler's own matter
    unet, inputs = unet_of({"memory_efficient": True, "self_attn": (False, True)}), unet_inputs(text=True)
    compiled = torch.compile(predicted, backend="aot_eager", fullgraph=True)
    ours, eager = compiled(unet, inputs), predicted(unet, inputs)
    assert_like(ours, eager, "compiled")
    assert_same_gradients(unet, ours, eager, inputs)
