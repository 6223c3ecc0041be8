"""A cascade drawn together: each U-Net enlarges what the one before drew, and takes nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from crest.checkpoint import export_weights, read_card
from crest.errors import WeightsError
from crest.generate import Generator, Prompt, generate
from crest.generate_config import DrawConfig, GenerateConfig, ModelsConfig
from crest.models.decoder import Decoder, DecoderSpec

UNET: dict[str, Any] = {
    "side_px": 32, "lowres_side_px": 16, "unet_number": 2, "image_embed_dim": 16, "text_width": None,
    "dim": 8, "dim_mults": [1, 2], "cond_dim": 20, "self_attn": [False, False], "attend_at_middle": False,
    "attn_heads": 2, "attn_dim_head": 8, "timesteps": 20, "lowres_noise_cond": True, "image_cond": False,
}  # fmt: skip


@pytest.fixture
def upsampler(tiny_world: Any, tmp_path: Path) -> Callable[..., str]:
    """Call with settings of the spec: the folder of an upsampler with random weights for the tiny CLIP."""
    clip = read_card(tiny_world.folder / "runs" / "clip_train" / "weights.safetensors", "clip")["sha256"][:16]

    def write(**settings: Any) -> str:
        torch.manual_seed(0)
        decoder = Decoder(DecoderSpec.model_validate({**UNET, **settings}))
        torch.nn.init.normal_(decoder.unet.to_out.weight, std=0.2)
        folder = tmp_path / f"unet_{decoder.spec.unet_number}_{decoder.spec.side_px}"
        card = {"kind": "decoder", "spec": decoder.spec.model_dump(mode="json"), "parents": {"clip": clip}}
        export_weights(folder, decoder, card)
        return str(folder)

    return write


def models(world: Any, *upsamplers: str, **others: str) -> ModelsConfig:
    runs = world.folder / "runs"
    own = {name: str(runs / f"{name}_train") for name in ("clip", "prior", "decoder")}
    return ModelsConfig.model_validate({**own, **others, "upsamplers": list(upsamplers), "device": "cpu"})


def test_a_cascade_of_three_is_drawn_and_can_be_drawn_again(
    tiny_world: Any, tmp_path: Path, upsampler: Callable[..., str]
) -> None:
    places = (upsampler(), upsampler(unet_number=3, side_px=64, lowres_side_px=32, lowres_noise_cond=False))
    draw = {"out": tmp_path / "out", "steps": 2, "prior_steps": 2, "upsampler_steps": 2, "per_prompt": 2}
    config = GenerateConfig(models=models(tiny_world, *places), draw=DrawConfig.model_validate(draw))
    out = generate(config, [Prompt("p", "a red crest")])
    row = json.loads((out / "samples.jsonl").read_text(encoding="utf-8").splitlines()[0])
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    for number, place in enumerate(places, start=2):
        digest = read_card(Path(place) / "weights.safetensors", "decoder")["sha256"][:16]
        assert row[f"decoder_{number}"] == manifest["parents"][f"decoder_{number}"] == digest
    recipe = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["upsampler_steps"] == 2
    with Image.open(out / row["file"]) as picture:
        assert picture.size == (64, 64)
        drawn = picture.tobytes()
    again = generate(
        config.model_copy(update={"draw": config.draw.model_copy(update={"out": tmp_path / "again"})}),
        [Prompt("p", "a red crest")],
    )
    with Image.open(again / row["file"]) as picture:
        assert picture.tobytes() == drawn


def test_an_upsampler_is_shown_what_the_decoder_drew(
    tiny_world: Any, tmp_path: Path, upsampler: Callable[..., str]
) -> None:
    """One that says that x_start is its small picture gives that picture back, enlarged."""
    generator = Generator(models(tiny_world, upsampler(lowres_noise_cond=False, prediction="x_start")))
    settings = DrawConfig(out=tmp_path, steps=2, prior_steps=2, upsampler_steps=2)
    base, unet = (decoder.unet for decoder in generator.decoders)  # type: ignore[attr-defined]
    torch.nn.init.normal_(base.to_out.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(unet.to_out.weight)
    for channel in range(3):  # the last three inputs of the last convolution are the small picture
        unet.to_out.weight.data[channel, -3 + channel] = 1.0
    large = generator.draw(["a red crest"], [7], settings)
    generator.decoders = generator.decoders[:1]
    small = generator.draw(["a red crest"], [7], settings)
    assert large.shape == (1, 3, 32, 32)
    enlarged = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(large, enlarged, atol=2e-2)  # bf16, where the processor has it
    assert not torch.allclose(large, enlarged.flip(3), atol=2e-2)


def test_settings_of_upsamplers_leave_pictures_without_them_alone(tiny_world: Any, tmp_path: Path) -> None:
    def config(**draw: Any) -> GenerateConfig:
        settings = {"out": tmp_path / "out", "steps": 2, "prior_steps": 2, **draw}
        return GenerateConfig(models=models(tiny_world), draw=DrawConfig.model_validate(settings))

    out = generate(config(), [Prompt("p", "a red crest")])
    assert "upsampler_steps" not in json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    generate(config(upsampler_steps=99), [Prompt("p", "a red crest")])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            [{"unet_number": 3, "lowres_side_px": 16}],
            r"models\.upsamplers, place 1: .*unet_3_32 is unet_number 3 of a cascade, expected 2; name every",
        ),
        ([{}, {}], r"models\.upsamplers, place 2: .*unet_2_32 is unet_number 2 of a cascade, expected 3"),
        (
            [{"lowres_side_px": 8}],
            r"place 1: .*unet_2_32 enlarges pictures of 8 px, but .*decoder_train draws 16 px; name",
        ),
    ],
)
def test_a_cascade_with_a_gap_or_of_another_base_is_refused(
    tiny_world: Any, upsampler: Callable[..., str], settings: list[dict[str, Any]], says: str
) -> None:
    places = [upsampler(**one) for one in settings]
    with pytest.raises(WeightsError, match=says):
        Generator(models(tiny_world, *places))


def test_an_upsampler_draws_nothing_alone(tiny_world: Any, upsampler: Callable[..., str]) -> None:
    with pytest.raises(WeightsError, match=r"models\.decoder: .* is unet_number 2 of a cascade, expected 1"):
        Generator(models(tiny_world, decoder=upsampler()))


def test_an_upsampler_of_another_clip_is_refused(tiny_world: Any, upsampler: Callable[..., str]) -> None:
    place = Path(upsampler())
    card = json.loads((place / "weights.json").read_text(encoding="utf-8"))
    card["parents"]["clip"] = "f" * 16
    (place / "weights.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"unet_2_32: was trained with CLIP f{16}, but "):
        Generator(models(tiny_world, str(place)))
