"""Published weights answer as dalle2-pytorch 1.1.0 does: tests/golden/make_golden.py asked it."""

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from crest.config import read_spec
from crest.diffusion.learned_variance import hybrid_loss, split_prediction, variational_bound
from crest.diffusion.noise_schedule import NoiseSchedule, add_noise
from crest.diffusion.prediction import target
from crest.models.clip import TextFeatures
from crest.models.decoder import Decoder, sample_images
from crest.models.decoder_spec import DecoderSpec
from crest.models.prior import Prior, sample_image_embed
from crest.models.prior_spec import PriorSpec
from crest.models.published import Published, fill
from tests.golden.check_published import published_name, summary
from tests.golden.draws import COUNT, SEEDS, decoder_inputs, numbered, prior_inputs, weight
from tests.golden.published_small import DECODERS, PRIOR

GOLDEN = Path(__file__).parents[2] / "golden"
KEEP = torch.ones(COUNT, dtype=torch.bool)


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def state_dict(name: str) -> dict[str, Tensor]:
    """The random weights of a golden file, under their published names."""
    state = {}
    for key, shape in golden(name).items():
        if key.startswith("shape."):
            key = key.removeprefix("shape.")
            empty = torch.zeros(tuple(shape.tolist()))
            fixed = "noise_scheduler" in key or "rotary_emb" in key
            state[key] = golden(name).get(f"buffer.{key}", empty if fixed else weight(key, empty))
    return state


def config_of(name: str) -> tuple[dict[str, Any], int]:
    return (PRIOR, 1) if name == "prior" else DECODERS[name]


@cache
def published(name: str) -> Published:
    config, number = config_of(name)
    return fill(state_dict(name), config, file=name, unet_number=number, trained=False)


def prior() -> Prior:
    model = published("prior").model
    assert isinstance(model, Prior)
    return model


def decoder(name: str) -> Decoder:
    model = published(name).model
    assert isinstance(model, Decoder)
    return model


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative difference."""
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


def asked_of(name: str) -> dict[str, Any]:
    spec = decoder(name).spec
    asked = decoder_inputs(spec.side_px, spec.text_width is not None, spec.unet_number > 1)
    told = {"text_encodings": asked.get("text_encodings"), "image_embed": asked["image_embed"]}
    shown = {"lowres": asked["lowres"] * 2 - 1} if "lowres" in asked else {}
    return {**asked, "told": told, "shown": shown}


# --- the prior ---------------------------------------------------------------------------------------------


def prior_answer(x_t: Tensor, t: Tensor, keep: Tensor = KEEP) -> Tensor:
    asked = prior_inputs()
    return prior()(x_t, t, asked["text_embed"], asked["text_encodings"], keep, KEEP)


def test_prior_answers_as_the_release_that_trained_it() -> None:
    asked = prior_inputs()
    with torch.no_grad():
        assert off(prior_answer(asked["x_t"], asked["t"]), golden("prior")["forward"]) < 1e-5


def test_prior_has_the_release_s_loss_and_gradients() -> None:
    asked, model = prior_inputs(), prior()
    x_start = asked["image_embed"] * model.scale
    x_t = add_noise(model.noise_schedule, x_start, asked["noise"], asked["t"])
    loss = (prior_answer(x_t, asked["t"]) - x_start).square().mean()
    assert off(loss.detach(), golden("prior")["loss"]) < 1e-5
    compare_gradients("prior", loss, {"net.null_text_encodings": "net.null_text_embed"})


def test_prior_draws_the_release_s_20_step_sample() -> None:
    asked = prior_inputs()
    text = TextFeatures(asked["text_embed"], asked["text_encodings"])
    short = Prior(prior().spec.model_copy(update={"timesteps": 20, "discrete_timesteps": False}))
    # the table of a thousand timesteps stays, of which twenty are used, as in the oracle
    short.net = prior().net
    drawn = sample_image_embed(short.eval(), text, seeds=SEEDS, steps=20, candidates=1, sampler="ddpm")
    assert off(drawn, F.normalize(golden("prior")["ddpm"], dim=-1)) < 1e-4


def test_prior_follows_the_release_s_ddim() -> None:
    def predicted(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_start = prior_answer(x_t, t)
        schedule = prior().noise_schedule
        return x_start, (x_t - schedule.alpha(t, 2) * x_start) / schedule.sigma(t, 2)

    drawn = old_ddim(predicted, numbered("prior.ddim"), (COUNT, 32), prior().noise_schedule)
    assert off(drawn / prior().scale, golden("prior")["ddim"]) < 1e-4


# --- decoders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_answers_as_the_release_that_trained_it(name: str) -> None:
    asked, model = asked_of(name), decoder(name)
    with torch.no_grad():
        for keep, wanted in ((KEEP, "forward"), (~KEEP, "dropped")):
            masks = {"image_keep": keep, "text_keep": keep}
            found = model(asked["x_t"], asked["t"], **asked["told"], **masks, **asked["shown"])
            assert off(found, golden(name)[wanted]) < 1e-5, wanted


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_has_the_release_s_loss_and_gradients(name: str) -> None:
    loss = decoder_loss(name, asked_of(name)["t"], bound_weight=0.001)
    assert off(loss.detach(), golden(name)["loss"]) < 1e-5
    compare_gradients(name, loss, {}, decoder(name).spec.unet_number)


@torch.no_grad()
def test_bound_of_a_learned_variance_is_the_release_s() -> None:
    t, answers = asked_of("decoder_v1_0_2")["t"], golden("decoder_v1_0_2")
    assert off(decoder_loss("decoder_v1_0_2", t, bound_weight=1000), answers["loss_bound"]) < 1e-4
    assert answers["loss_bound"] > 2 * answers["loss"], "the bound must be heard"
    # at 0 the release approximates the normal distribution by a tangent, Crest does not
    assert off(decoder_loss("decoder_v1_0_2", 0 * t, bound_weight=1), answers["loss_at_0"]) < 2e-2


def decoder_loss(name: str, t: Tensor, bound_weight: float) -> Tensor:
    asked, model = asked_of(name), decoder(name)
    schedule, kind = model.noise_schedule, model.spec.prediction
    x_start = model.encode_images(asked["images"])
    x_t = add_noise(schedule, x_start, asked["noise"], t)
    masks = {"image_keep": KEEP, "text_keep": KEEP}
    predicted, fraction = model(x_t, t, **asked["told"], **masks, **asked["shown"]), None
    if model.spec.learned_variance:
        predicted, fraction = split_prediction(predicted)
    wanted = target(kind, x_start, asked["noise"], schedule.alpha(t, 4), schedule.sigma(t, 4))
    loss = (predicted - wanted).square().flatten(1).mean(dim=1)
    if fraction is not None:
        bound = variational_bound(kind, predicted, fraction, x_start, x_t, t, schedule)
        loss = hybrid_loss(loss, bound, schedule.timesteps, bound_weight / schedule.timesteps)
    return loss.mean()


@pytest.mark.parametrize("name", ["decoder_v1_0_2", "decoder_2b", "upsampler"])
def test_decoder_draws_the_release_s_20_step_sample(name: str) -> None:
    asked, whole = asked_of(name), decoder(name)
    short = Decoder(whole.spec.model_copy(update={"timesteps": 20}))
    short.load_state_dict(whole.state_dict())
    drawn = sample_images(
        short.eval(),
        **asked["told"],
        seeds=SEEDS,
        steps=20,
        # that release guides the variance too, so its golden picture is drawn without guidance
        cond_scale=1.0 if whole.spec.learned_variance else 1.7,
        sampler="ddpm",
        lowres=asked.get("lowres"),
    )
    assert off(drawn, golden(name)["ddpm"].clamp(0, 1)) < 1e-4


@pytest.mark.parametrize("name", ["decoder_v1_0_2", "upsampler"])
def test_decoder_follows_the_release_s_ddim(name: str) -> None:
    asked, model = asked_of(name), decoder(name)
    schedule = model.noise_schedule

    def predicted(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with_condition, without = (
            model(x_t, t, **asked["told"], image_keep=keep, text_keep=keep, **asked["shown"])[:, :3]
            for keep in (KEEP, ~KEEP)
        )
        epsilon = without + (with_condition - without) * 1.7
        x_start = (x_t - schedule.sigma(t, 4) * epsilon) / schedule.alpha(t, 4)
        return x_start.clamp(-1, 1), epsilon

    drawn = old_ddim(predicted, numbered("decoder.ddim"), tuple(asked["x_t"].shape), schedule)
    assert off((drawn + 1) / 2, golden(name)["ddim"]) < 1e-4


@torch.no_grad()
def old_ddim(
    predicted: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    noise: Callable[[tuple[int, ...]], Tensor],
    shape: tuple[int, ...],
    schedule: NoiseSchedule,
) -> Tensor:
    """DDIM as releases before 1.10.3 had it: the level of one timestep before, a grid of its own, eta 1."""
    alpha_bar = torch.cat((torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1])).float()
    times = torch.linspace(0, schedule.timesteps, 22)[:-1].int().flip(0).tolist()
    x = noise(shape)
    for time, following in pairwise(times):
        x_start, epsilon = predicted(x, torch.full((shape[0],), time))
        now, after = alpha_bar[time], alpha_bar[following]
        added = ((1 - now / after) * (1 - after) / (1 - now)).sqrt()
        fresh = noise(shape) if following else 0
        x = x_start * after.sqrt() + added * fresh + ((1 - after) - added**2).sqrt() * epsilon
    return x


def compare_gradients(name: str, loss: Tensor, renamed: dict[str, str], unet_number: int = 1) -> None:
    model = published(name).model
    model.zero_grad()
    loss.backward()
    compared = 0
    for ours, parameter in model.named_parameters():
        theirs = renamed.get(ours, ours).replace("unet.", f"unets.{unet_number - 1}.", 1)
        theirs = theirs.replace(".cross_attn.", ".cross_attn.fn.")
        wanted = golden(name).get(f"gradient.{theirs}")
        found = 0.0 if parameter.grad is None else float(parameter.grad.norm())
        assert found == pytest.approx(0.0 if wanted is None else float(wanted), rel=1e-3, abs=1e-5), ours
        compared += wanted is not None
    assert compared == sum(key.startswith("gradient.") for key in golden(name))


# --- published files, by name and shape --------------------------------------------------------------------


SHIPPED = json.loads((GOLDEN / "published_models.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SHIPPED)
def test_network_has_every_tensor_of_the_published_file(name: str) -> None:
    model = SHIPPED[name]
    number = model["spec"].get("unet_number", 1)
    with torch.device("meta"):
        if model["kind"] == "prior":
            network: nn.Module = Prior(read_spec(PriorSpec, model["spec"], name))
        else:
            network = Decoder(read_spec(DecoderSpec, model["spec"], name))
    named = {published_name(key, number): tensor for key, tensor in network.state_dict().items()}
    listed = {key: (tuple(tensor.shape), "float32") for key, tensor in named.items() if key is not None}
    assert summary(listed) == model["network"]


def test_published_files_have_the_bytes_that_were_published() -> None:
    # the prior's part of prior/latest.pth, and decoder/v1.0.2/latest.pth without its zip's own bytes
    assert SHIPPED["laion prior ViT-L/14"]["file"]["bytes"] == 407_072_800
    assert SHIPPED["laion decoder v1.0.2"]["file"]["bytes"] == 3_930_492_472
    assert SHIPPED["laion decoder v1.0.2"]["file"]["tensors"] == 770


@pytest.mark.parametrize("name", ["decoder_v1_0_2", "decoder_2b", "decoder_3b"])
def test_the_other_arithmetic_is_far_off(name: str) -> None:
    """Every name and shape agrees once the old convolutions are kept, and the answer is another."""
    config, number = config_of(name)
    model = fill(state_dict(name), config, file=name, unet_number=number, trained=False).model
    assert isinstance(model, Decoder)
    model.spec = model.spec.model_copy(update={"arithmetic": "1.15"})
    asked = asked_of(name)
    with torch.no_grad():
        found = model(asked["x_t"], asked["t"], **asked["told"], image_keep=KEEP, text_keep=KEEP)
    assert off(found, golden(name)["forward"]) > 0.01
