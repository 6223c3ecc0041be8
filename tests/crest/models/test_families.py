"""The contract of the door: every family trains through the unchanged stages, and draws."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crest.config import Config, Prediction
from crest.diffusion.noise_schedule import NoiseSchedule, add_noise
from crest.diffusion.prediction import target, to_x_start
from crest.errors import ConfigError, WeightsError
from crest.generate import Generator
from crest.generate_config import DrawConfig, ModelsConfig
from crest.models import families
from crest.models.decoder_sampling import sample_images
from crest.models.families import (
    DecoderFamily,
    Door,
    PriorFamily,
    as_module,
    build_decoder,
    build_prior,
    load_decoder_family,
    load_prior_family,
)

CLIP_SIZES = {"image_embed_dim": 16, "text_width": 24}


class LatentSpec(Config):
    """A family that is none of dalle2-pytorch's: it diffuses latents and has no sketch."""

    image_embed_dim: int
    text_width: int | None
    max_text_len: int = 8
    unet_number: int = 1
    side_px: int = 16
    lowres_side_px: int | None = None
    lowres_noise_cond: bool = False
    stride_px: int = 4
    prediction: Prediction = "epsilon"
    learned_variance: bool = True
    self_cond: bool = False
    timesteps: int = 20


class LatentDecoder(nn.Module):
    """Latents of a fourth of the side, made by pixel-unshuffling; no bound on them, eight bits unknown."""

    lora_targets = ("out.weight",)
    x_limit = None

    def __init__(self, spec: LatentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.noise_schedule = NoiseSchedule("linear", spec.timesteps)
        self.x_shape = (48, spec.side_px // 4, spec.side_px // 4)
        self.told = nn.Linear(spec.image_embed_dim + 1, 32)
        self.text = nn.Linear(spec.text_width, 32) if spec.text_width is not None else None
        self.into = nn.Conv2d(48, 32, 3, padding=1)
        self.out = nn.Conv2d(32, 96 if spec.learned_variance else 48, 3, padding=1)

    def encode_images(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images * 2 - 1, 4) * 3

    def decode_images(self, x: Tensor) -> Tensor:
        return (F.pixel_shuffle(x.float() / 3, 4) / 2 + 0.5).clamp(0, 1)

    def conditions(
        self,
        image_embed: Tensor,
        text_encodings: Tensor | None,
        image_keep: Tensor,
        text_keep: Tensor,
        lowres: Tensor | None = None,
        lowres_noise_level: Tensor | None = None,
    ) -> Tensor:
        told = torch.cat((image_embed * image_keep[:, None], torch.ones(len(image_embed), 1)), dim=1)
        hidden: Tensor = self.told(told)
        if self.text is not None and text_encodings is not None:
            hidden = hidden + self.text(text_encodings.mean(dim=1)) * text_keep[:, None]
        return hidden

    def predict(self, x_t: Tensor, t: Tensor, conditions: Tensor, self_cond: Tensor | None = None) -> Tensor:
        hidden = self.into(x_t) + conditions[:, :, None, None] + t.view(-1, 1, 1, 1) / self.spec.timesteps
        predicted: Tensor = self.out(F.silu(hidden)).float()
        return predicted

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image_embed: Tensor,
        text_encodings: Tensor | None,
        image_keep: Tensor,
        text_keep: Tensor,
        *,
        lowres: Tensor | None = None,
        lowres_noise_level: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        told = self.conditions(image_embed, text_encodings, image_keep, text_keep, lowres)
        return self.predict(x_t, t, told, self_cond)

    def text_parameters(self) -> Iterator[nn.Parameter]:
        if self.text is not None:
            yield from self.text.parameters()

    def save_memory(self) -> None:
        """There is little to save."""


@pytest.fixture(autouse=True)
def latent_family() -> Iterator[None]:
    """One entry at the door is all that a further family is."""
    families.DECODERS["latent"] = lambda: Door(LatentSpec, LatentDecoder)
    yield
    del families.DECODERS["latent"]


UNET: dict[str, Any] = {
    "side_px": 16, "max_text_len": 8, "dim": 8, "dim_mults": [1, 2], "cond_dim": 20, "attn_heads": 2,
    "self_attn": [False, True], "attn_dim_head": 8, "timesteps": 20,
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "crest": UNET,
    "crest 1.1": {
        **UNET, "arithmetic": "1.1", "sparse_attn": True, "learned_variance": True, "prediction": "epsilon",
    },
    "crest, self-conditioned": {**UNET, "self_cond": True, "learned_variance": True},
    "latent": {"family": "latent"},
}  # fmt: skip
PRIORS: dict[str, dict[str, Any]] = {
    "crest": {"max_text_len": 8, "depth": 1, "heads": 2, "dim_head": 8, "timesteps": 20},
    "crest 1.1": {
        "max_text_len": 8, "depth": 1, "heads": 2, "dim_head": 8, "timesteps": 20, "arithmetic": "1.1",
        "normformer": True,
    },
}  # fmt: skip


def decoder_of(name: str) -> DecoderFamily:
    torch.manual_seed(0)
    return build_decoder({**DECODERS[name], **CLIP_SIZES}, "model.scratch")[0]


def prior_of(name: str) -> PriorFamily:
    torch.manual_seed(0)
    return build_prior({**PRIORS[name], **CLIP_SIZES}, "model.scratch")[0]


def told(count: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    embed = F.normalize(torch.randn(count, 16, generator=draw), dim=1)
    return embed, torch.randn(count, 8, 24, generator=draw)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_answers_the_protocol(name: str) -> None:
    decoder = decoder_of(name)
    assert isinstance(decoder, DecoderFamily)
    images = torch.rand(2, 3, 16, 16)
    kept = images.clone()
    x = decoder.encode_images(images)
    assert x.shape[1:] == decoder.x_shape
    assert torch.allclose(decoder.decode_images(x), kept, atol=1e-6)
    assert torch.equal(images, kept)
    (image_embed, text), keep = told(2), torch.ones(2, dtype=torch.bool)
    t = torch.tensor([3, 12])
    predicted = as_module(decoder)(x, t, image_embed, text, keep, keep)
    assert predicted.dtype == torch.float32
    assert predicted.shape == (2, decoder.x_shape[0] * (1 + decoder.spec.learned_variance), *x.shape[2:])
    at_once = decoder.predict(x, t, decoder.conditions(image_embed, text, keep, keep))
    assert torch.equal(predicted, at_once)
    hidden = as_module(decoder)(x, t, image_embed, text, keep, ~keep)
    assert torch.equal(hidden, as_module(decoder)(x, t, image_embed, -text, keep, ~keep))


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_is_always_right_draws_the_true_picture(name: str) -> None:
    """Whatever it predicts, and in whatever space: sampling turns it into x_start and pixels."""
    decoder = decoder_of(name)
    truth = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    x_start, schedule = decoder.encode_images(truth), decoder.noise_schedule

    def predict(x_t: Tensor, t: Tensor, conditions: Any, self_cond: Tensor | None = None) -> Tensor:
        alpha, sigma = schedule.alpha(t, 4), schedule.sigma(t, 4)
        noise = (x_t - alpha * x_start) / sigma
        right = target(decoder.spec.prediction, x_start.expand_as(x_t), noise, alpha, sigma)
        return torch.cat((right, torch.zeros_like(right)), dim=1) if decoder.spec.learned_variance else right

    decoder.predict = predict  # type: ignore[method-assign]
    for sampler in ("dpmpp_2m", "ddpm"):
        drawn = sample_images(
            decoder,
            *told(1),
            seeds=[5],
            steps=8,
            cond_scale=1.0,
            sampler=sampler,  # type: ignore[arg-type]
        )
        assert torch.allclose(drawn, truth, atol=2e-3), sampler


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_answers_the_protocol(name: str) -> None:
    prior = prior_of(name)
    assert isinstance(prior, PriorFamily)
    embed, text = told(3)
    kept = embed.clone()
    x = prior.encode_embeds(embed)
    assert torch.allclose(prior.decode_embeds(x), kept, atol=1e-6)
    assert torch.equal(embed, kept)
    keep, t = torch.ones(3, dtype=torch.bool), torch.tensor([1, 5, 15])
    x_t = add_noise(prior.noise_schedule, x, torch.randn(3, 16), t)
    predicted = as_module(prior)(x_t, t, embed, text, keep, keep)
    assert (predicted.shape, predicted.dtype) == ((3, 16), torch.float32)
    alpha, sigma = prior.noise_schedule.alpha(t, 2), prior.noise_schedule.sigma(t, 2)
    assert to_x_start(prior.spec.prediction, predicted, x_t, alpha, sigma).isfinite().all()


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_trains_through_the_unchanged_stage_and_draws(
    name: str, tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    config = tiny_world.config("decoder_train", tmp_path / "run", model__scratch=DECODERS[name])
    config["model"] |= {"sketch_steps": 0}
    assert command("decoder_train", config, tmp_path) == 0
    decoder, digest, card = load_decoder_family(tmp_path / "run")
    assert card["family"] == DECODERS[name].get("family", "crest")
    assert len(digest) == 16
    assert "val/loss_t4of4" in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    learned = as_module(decoder).state_dict()
    fresh = as_module(decoder_of(name)).state_dict()
    assert any(not torch.equal(learned[key], fresh[key]) for key in learned)
    runs = tiny_world.folder / "runs"
    places = {"clip": runs / "clip_train", "prior": runs / "prior_train", "decoder": tmp_path / "run"}
    own = {key: str(place) for key, place in places.items()}
    generator = Generator(ModelsConfig.model_validate({**own, "device": "cpu"}))
    settings = DrawConfig(out=tmp_path, steps=2, prior_steps=2)
    pictures = generator.draw(["a red crest"], [3], settings)
    assert pictures.shape == (1, 3, 16, 16)
    assert torch.equal(pictures, generator.draw(["a red crest"], [3], settings))


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_trains_through_the_unchanged_stage_and_draws(
    name: str, tiny_world: Any, tmp_path: Path, command: Callable[..., int]
) -> None:
    config = tiny_world.config("prior_train", tmp_path / "run", model__scratch=PRIORS[name])
    assert command("prior_train", config, tmp_path) == 0
    runs = tiny_world.folder / "runs"
    places = {"clip": runs / "clip_train", "prior": tmp_path / "run", "decoder": runs / "decoder_train"}
    own = {key: str(place) for key, place in places.items()}
    generator = Generator(ModelsConfig.model_validate({**own, "device": "cpu"}))
    assert (
        generator.draw(["a red crest"], [3], DrawConfig(out=tmp_path, steps=2, prior_steps=2))
        .isfinite()
        .all()
    )


def test_a_family_that_is_not_known_is_refused(tiny_world: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'model\.scratch\.family: found "x", expected one of crest, latent'
    ):
        build_decoder({"family": "x"}, "model.scratch")
    card = {"kind": "prior", "family": "x", "spec": {}, "parents": {}, "sha256": "0" * 64}
    (tmp_path / "weights.safetensors").write_bytes(b"")
    (tmp_path / "weights.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(WeightsError, match=r'weights\.json: names the family "x", expected one of crest'):
        load_prior_family(tmp_path)


def test_stages_and_generate_know_no_network() -> None:
    """Their only models are CLIP, the protocols and the sampling that goes by them."""
    root = Path(families.__file__).parents[2]
    for name in ("prior_train/stage.py", "decoder_train/stage.py", "crest/generate.py"):
        source = (root / name).read_text(encoding="utf-8")
        known = {line.split()[1] for line in source.splitlines() if line.startswith("from crest.models")}
        assert known <= {f"crest.models.{part}" for part in ("clip", "families", "decoder_sampling")}, name
