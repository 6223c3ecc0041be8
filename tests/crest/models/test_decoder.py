"""The decoder behind its door: pictures of a seed, inputs left alone, guidance as the paper writes it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crest.checkpoint import export_weights
from crest.config import Prediction
from crest.diffusion.noise_schedule import add_noise
from crest.diffusion.prediction import target, to_x_start
from crest.diffusion.sampling import SAMPLERS
from crest.errors import ConfigError, WeightsError
from crest.models.decoder import Decoder, DecoderSpec, load_decoder, sample_images

B, D, K, L, SIDE = 3, 12, 10, 5, 16
SPEC: dict[str, Any] = {
    "side_px": SIDE, "image_embed_dim": D, "text_width": K, "max_text_len": 6, "dim": 8, "dim_mults": [1, 2],
    "cond_dim": 20, "self_attn": [False, True], "attn_heads": 2, "attn_dim_head": 8, "timesteps": 50,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "as shipped": {
        "patch_px": 2,
        "coordinate_bands": 2,
        "log_snr_shift": -1.0,
        "prediction": "x_start",
        "sketch_regions": 4,
    },
    "sketched without text": {"text_width": None, "prediction": "x_start", "sketch_regions": 4},
    "plain": {},
    "without text": {"text_width": None},
    "epsilon": {"prediction": "epsilon", "memory_efficient": False},
    "as published": {
        "arithmetic": "1.1",
        "prediction": "epsilon",
        "learned_variance": True,
        "sparse_attn": True,
        "init_cross_embed": True,
        "image_embed_scale": 1.0,
    },
    "self-conditioned": {"self_cond": True, "learned_variance": True, "patch_px": 2},
    "sketched, with a learned variance": {
        "learned_variance": True,
        "prediction": "x_start",
        "sketch_regions": 4,
    },
}


def decoder_of(**settings: Any) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(DecoderSpec.model_validate({**SPEC, **settings})).eval()
    torch.nn.init.normal_(decoder.unet.to_out.weight, std=0.2)  # zero at its start, which would hide mistakes
    return decoder


def conditions(count: int = B) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    encodings = torch.randn(count, L, K, generator=draw)
    encodings[0, 2:] = 0
    return F.normalize(torch.randn(count, D, generator=draw), dim=1), encodings


def drawn(decoder: Decoder, seeds: Any = range(B), rows: slice = slice(None), **settings: Any) -> Tensor:
    image_embed, encodings = conditions()
    text = None if decoder.spec.text_width is None else encodings[rows]
    return sample_images(
        decoder, image_embed[rows], text, seeds=seeds, **{"steps": 3, "cond_scale": 2.0, **settings}
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_float32_between_0_and_1(shape: str) -> None:
    pictures = drawn(decoder_of(**SHAPES[shape]))
    assert (pictures.shape, pictures.dtype) == ((B, 3, SIDE, SIDE), torch.float32)
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1


def test_inputs_come_back_unchanged() -> None:
    image_embed, encodings = conditions()
    before = image_embed.clone(), encodings.clone()
    sample_images(decoder_of(), image_embed, encodings, seeds=range(B), steps=2, cond_scale=2.0)
    assert torch.equal(image_embed, before[0])
    assert torch.equal(encodings, before[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_picture_and_another_does_not(shape: str) -> None:
    decoder = decoder_of(**SHAPES[shape])
    first, again, other = (drawn(decoder, seeds) for seeds in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert torch.equal(first, again)
    assert torch.equal(first[:2], other[:2])
    assert not torch.allclose(first[2], other[2], atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_does_not_depend_on_its_neighbours(shape: str) -> None:
    decoder = decoder_of(**SHAPES[shape])
    # half a level of an 8-bit picture: with epsilon, the first steps divide rounding by a tiny alpha
    assert torch.allclose(drawn(decoder, [2], slice(2, 3)), drawn(decoder)[2:], atol=2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
def test_guidance_moves_from_the_unconditional_prediction(sampler: Any, cond_scale: float) -> None:
    decoder = decoder_of(prediction="v")
    schedule, keep = decoder.noise_schedule, torch.ones(B, dtype=torch.bool)
    image_embed, encodings = conditions()

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        with_both = decoder(x_t, t, image_embed, encodings, keep, keep)
        without = decoder(x_t, t, image_embed, encodings, ~keep, ~keep)
        guided = without + cond_scale * (with_both - without)
        return to_x_start("v", guided, x_t, schedule.alpha(t, 4), schedule.sigma(t, 4)).clamp(-1, 1)

    shape = (3, SIDE, SIDE)
    noise = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(B)]
    )
    with torch.no_grad():
        expected = (SAMPLERS[sampler](denoise, noise, schedule, 3) + 1) / 2
    assert torch.allclose(drawn(decoder, sampler=sampler, cond_scale=cond_scale), expected, atol=1e-4)


@pytest.mark.parametrize("shape", ["plain", "as shipped"])
def test_each_condition_is_seen_until_it_is_dropped(shape: str) -> None:
    decoder, (image_embed, encodings) = decoder_of(**SHAPES[shape]), conditions()
    x_t, t = torch.randn(B, 3, SIDE, SIDE), torch.full((B,), 20)
    yes, no = torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool)

    def predicted(embed: Tensor, text: Tensor, image_keep: Tensor, text_keep: Tensor) -> Tensor:
        return decoder(x_t, t, embed, text, image_keep, text_keep)

    whole = predicted(image_embed, encodings, yes, yes)
    assert not torch.allclose(predicted(-image_embed, encodings, yes, yes), whole, atol=1e-4)
    assert not torch.allclose(predicted(image_embed, -encodings, yes, yes), whole, atol=1e-4)
    assert torch.equal(
        predicted(-image_embed, encodings, no, yes), predicted(image_embed, encodings, no, yes)
    )
    assert torch.equal(
        predicted(image_embed, -encodings, yes, no), predicted(image_embed, encodings, yes, no)
    )


@pytest.mark.parametrize(
    ("shape", "prediction"), [("plain", "epsilon"), ("without text", "x_start"), ("as shipped", "x_start")]
)
def test_the_loss_falls_on_one_batch(shape: str, prediction: Prediction) -> None:
    decoder = decoder_of(**{**SHAPES[shape], "prediction": prediction}).train()
    torch.nn.init.zeros_(decoder.unet.to_out.weight)
    schedule, (image_embed, encodings) = decoder.noise_schedule, conditions()
    text = None if decoder.spec.text_width is None else encodings
    x_start = torch.full((B, 3, SIDE, SIDE), -1.0)
    x_start[1, 0] = x_start[2, 2, 4:12, 4:12] = 1.0
    noise, t = (
        torch.randn(x_start.shape, generator=torch.Generator().manual_seed(1)),
        torch.tensor([5, 20, 35]),
    )
    x_t = add_noise(schedule, x_start, noise, t)
    wanted = target(prediction, x_start, noise, schedule.alpha(t, 4), schedule.sigma(t, 4))
    optimizer, keep = torch.optim.AdamW(decoder.parameters(), lr=5e-3), torch.ones(B, dtype=torch.bool)
    losses = []
    for _ in range(30):
        loss = (decoder(x_t, t, image_embed, text, keep, keep) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_weights_travel_with_their_spec(tmp_path: Path) -> None:
    decoder = decoder_of(**SHAPES["as shipped"])
    card = {"kind": "decoder", "spec": decoder.spec.model_dump(mode="json"), "parents": {"clip": "c" * 16}}
    path = export_weights(tmp_path, decoder, card)
    back, digest, found = load_decoder(tmp_path)
    assert back.spec == decoder.spec
    assert digest == found["sha256"][:16]
    assert torch.equal(drawn(back.eval()), drawn(decoder))
    card["spec"]["dim"] = 16
    export_weights(tmp_path, decoder, card)
    with pytest.raises(WeightsError, match=r"the weights are of another architecture"):
        load_decoder(path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cond_dim": D}, "cond_dim: found 12, the width of CLIP's embeddings"),
        ({"self_attn": [True]}, r"self_attn: found 1 values, expected 2, one a level of dim_mults"),
        ({"side_px": 18}, r"side_px: found 18, expected a multiple of 4"),
        ({"patch_px": 3, "side_px": 16}, r"side_px: found 16, expected a multiple of 12"),
        (
            {"side_px": 18, "patch_px": 1, "dim_mults": [1], "self_attn": [True], "sketch_regions": 4},
            "side_px: found 18, expected a multiple of 8 for a sketch",
        ),
        ({"sketch_regions": 4}, r'prediction: found "v", expected "x_start" with a sketch'),
        ({"dim": 12}, r"dim: found 12, expected a multiple of 8"),
        ({"init_dim": 16}, r"init_dim: found 16, expected null or 8 like dim"),
        (
            {"num_resnet_blocks": [1]},
            r"num_resnet_blocks: found 1 values, expected one number or 2, one a lev",
        ),
        ({"lowres_side_px": 8}, r"lowres_side_px: found 8, expected null for unet_number 1"),
        ({"unet_number": 2}, r"lowres_side_px: found null, expected a side for unet_number 2"),
        (
            {"unet_number": 2, "lowres_side_px": 16},
            r"lowres_side_px: found 16, expected less than side_px, which is 16",
        ),
        (
            {"unet_number": 2, "lowres_side_px": 6},
            r"lowres_side_px: found 6, expected a divisor of side_px, which is 16",
        ),
        ({"lowres_noise_cond": True}, r"lowres_noise_cond: found true, expected false for unet_number 1"),
        (
            {"self_cond": True, "prediction": "x_start", "sketch_regions": 4},
            r"sketch_regions: found 4, expected 0 for an upsampler or with self_cond",
        ),
        (
            {"unet_number": 2, "lowres_side_px": 8, "coordinate_bands": 3},
            r"coordinate_bands: found 3, expected 0 for an upsampler or with self_cond",
        ),
    ],
)
def test_a_spec_that_the_library_would_break_on_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.scratch\.{says}"):
        decoder_of(**settings)


def test_epsilon_is_refused_with_a_schedule_that_leaves_no_signal() -> None:
    with pytest.raises(ConfigError, match='prediction: found "epsilon" with noise_schedule "jsd"'):
        decoder_of(prediction="epsilon", noise_schedule="jsd")
    decoder_of(prediction="v", noise_schedule="jsd")


def test_every_weight_that_can_learn_gets_a_gradient() -> None:
    """Several processes wait for the gradient of each of them."""
    for shape, settings in SHAPES.items():
        decoder, (image_embed, encodings) = decoder_of(**settings), conditions()
        text, keep = (None if decoder.spec.text_width is None else encodings), torch.ones(B, dtype=torch.bool)
        decoder(
            torch.randn(B, 3, SIDE, SIDE), torch.full((B,), 9), image_embed, text, keep, keep
        ).sum().backward()
        without = [
            name
            for name, weight in decoder.named_parameters()
            if weight.requires_grad and weight.grad is None
        ]
        assert without == [], shape
