"""Faults of dalle2-pytorch's decoder and its trainer, shown at the library, and ours free of each of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dalle2_pytorch import dalle2_pytorch as library
from PIL import Image
from torch import Tensor

from crest.checkpoint import export_weights
from crest.ema import Ema
from crest.errors import ConfigError
from crest.images import square, to_array
from crest.models.decoder import Decoder, DecoderSpec, sample_images
from crest.world import open_world
from decoder_train.config import DecoderTrainConfig
from decoder_train.stage import DecoderStage

WORLD = open_world("cpu", "fp32")
UNET: dict[str, Any] = {
    "side_px": 16, "max_text_len": 8, "dim": 8, "dim_mults": [1, 2], "cond_dim": 20, "attn_heads": 2,
    "self_attn": [False, True], "attn_dim_head": 8, "timesteps": 20, "coordinate_bands": 2,
}  # fmt: skip


@pytest.fixture
def stage(tiny_world: Any, tmp_path: Path) -> DecoderStage:
    values = tiny_world.config("decoder_train", tmp_path / "run", model__scratch=UNET)
    values["model"] |= {"sketch_steps": 0}
    one = DecoderStage(DecoderTrainConfig.model_validate_json(json.dumps(values, default=str)))
    torch.nn.init.normal_(one.decoder.unet.to_out.weight, std=0.2)  # type: ignore[attr-defined]
    return one


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The library's decoder around a U-Net as small as ours."""
    torch.manual_seed(0)
    unet = library.Unet(
        dim=8, dim_mults=(1, 2), image_embed_dim=16, text_embed_dim=24, cond_dim=20, attn_heads=2,
        attn_dim_head=8, cond_on_text_encodings=True, max_text_len=8, init_cross_embed=False,
    )  # fmt: skip
    return library.Decoder(unet=unet, image_size=16, timesteps=20, learned_variance=False).eval()


def told(count: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "image_embed": torch.randn(count, 16, generator=draw),
        "text_encodings": torch.randn(count, 8, 24, generator=draw),
    }


def test_pictures_are_made_smaller_with_antialiasing() -> None:
    """The library takes every second pixel: of stripes it sees one colour."""
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1
    assert library.resize_image_to(stripes, 16, nearest=True).unique().numel() == 1
    picture = Image.fromarray((stripes[0].permute(1, 2, 0) * 255).byte().numpy())
    small = to_array(square(picture, 16)) / 255
    assert 0.35 < small[:, :, 4:-4].min() <= small[:, :, 4:-4].max() < 0.65


def test_nothing_is_dropped_where_a_loss_is_judged(theirs: Any, stage: DecoderStage) -> None:
    """The library draws its dropping of conditions, and timesteps and noise, in evaluation as well."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        losses = [float(theirs(images, **told(4))) for _ in range(2)]
    assert losses[0] != losses[1]
    figures = [stage.validate(stage.model(), WORLD) for _ in range(2)]
    assert figures[0] == figures[1]


def test_averaging_leaves_the_noise_schedule_and_other_tables_alone(theirs: Any, stage: DecoderStage) -> None:
    """The library's schedules are buffers of the model: its EMA averages them, its checkpoints hold them."""
    assert "noise_schedulers.0.betas" in theirs.state_dict()
    model = stage.model()
    assert model.state_dict().keys() == {name for name, _ in model.named_parameters()}
    ema = Ema(model, 0.5)
    averaged: Any = ema.model
    tables = [one.noise_schedule.alpha_bar.clone() for one in (stage.decoder, averaged)]
    places = averaged.places.clone()
    for weight in model.parameters():
        weight.data.add_(1.0)
    ema.update(model, 1)
    assert torch.equal(*tables)
    assert torch.equal(averaged.noise_schedule.alpha_bar, tables[0])
    assert torch.equal(averaged.places, places)


def test_an_exported_file_holds_each_weight_once(stage: DecoderStage, tmp_path: Path) -> None:
    """The library's checkpoint of a model and its EMA is four times the weights, its EMA holds them twice."""
    path = export_weights(tmp_path, stage.model(), stage.card(stage.model()))
    weights = sum(weight.numel() * 4 for weight in stage.model().parameters())
    assert weights < path.stat().st_size < 1.02 * weights + 40_000


def test_noise_does_not_depend_on_how_a_picture_lies_in_memory(stage: DecoderStage) -> None:
    """randn_like follows the memory format of its input: the same seed is then other noise."""
    plain = torch.zeros(2, 3, 8, 8)
    drawn = []
    for like in (plain, plain.contiguous(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        drawn.append(torch.randn_like(like))
    assert not torch.equal(*drawn)
    batch = next(stage.batches("train", WORLD, 0))
    turned = type(batch)(
        **{**vars(batch), "images": batch.images.contiguous(memory_format=torch.channels_last)}
    )
    losses = [float(stage.loss(stage.model(), one)[0].detach()) for one in (batch, turned)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_guidance_is_one_pass_with_twice_the_rows(stage: DecoderStage) -> None:
    """The library runs the network twice at every step."""
    passes: list[int] = []
    decoder: Any = stage.decoder
    decoder.unet.init_conv.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    sample_images(decoder, *told(3).values(), seeds=[1, 2, 3], steps=4, cond_scale=2.0)
    assert passes == [6] * 4


def test_a_picture_that_is_given_comes_back_unchanged(stage: DecoderStage) -> None:
    """The library's prior scales the caller's own embedding; here nothing is written into."""
    batch = next(stage.batches("train", WORLD, 0))
    assert batch.text_encodings is not None
    given = [batch.images, batch.image_embed, batch.text_encodings]
    kept = [one.clone() for one in given]
    stage.loss(stage.model(), batch)
    assert all(torch.equal(one, before) for one, before in zip(given, kept, strict=True))


def test_conditions_as_wide_as_embeddings_are_refused_not_mixed() -> None:
    """The library takes equal widths for "nothing to project": four pictures become one another's tokens."""
    torch.manual_seed(0)
    unet = library.Unet(
        dim=8, dim_mults=(1, 2), image_embed_dim=16, cond_dim=16, cond_on_image_embeds=True
    ).eval()
    torch.nn.init.normal_(unet.to_out.weight)
    embeds = torch.randn(4, 16)
    other = torch.cat((embeds[:3], -embeds[3:]))
    x, t = torch.randn(4, 3, 16, 16), torch.zeros(4)
    with torch.no_grad():
        first, second = (unet(x, t, image_embed=one)[0] for one in (embeds, other))
    assert not torch.allclose(first, second, atol=1e-4)
    wide = {**UNET, "image_embed_dim": 16, "text_width": None, "cond_dim": 16}
    with pytest.raises(ConfigError, match=r"cond_dim: found 16, the width of CLIP's embeddings"):
        Decoder(DecoderSpec.model_validate(wide))
