"""What dalle2-pytorch 1.1.0 answers for random weights: `python tests/golden/make_golden.py FOLDER`.

FOLDER holds that release: `pip install --no-deps --target FOLDER dalle2-pytorch==1.1.0 einops-exts`. Its
model file alone is imported. Writes prior.safetensors and a file for each decoder beside this script: names
and shapes, predictions, losses, length of each weight's gradient and 20-step samples. Weights and noise come
from draws.py.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # Crest itself, wherever this is run from

from draws import COUNT, decoder_inputs, drawn_from, numbered, prior_inputs, seeded, weights
from published_small import DECODERS, PRIOR
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent


def upstream(folder: Path) -> Any:
    """The model file of dalle2-pytorch 1.1.0, without the package's trainers and trackers."""
    if "dalle2_pytorch" in sys.modules:
        raise SystemExit("another dalle2_pytorch is imported already; run this as a program of its own.")
    package = types.ModuleType("dalle2_pytorch")
    package.__path__ = [str(folder / "dalle2_pytorch")]
    sys.modules["dalle2_pytorch"] = package
    sys.path.insert(0, str(folder))
    return importlib.import_module("dalle2_pytorch.dalle2_pytorch")


def told(config: dict[str, Any]) -> dict[str, Any]:
    """A config section as keyword arguments: null stands for the default."""
    return {name: value for name, value in config.items() if value is not None}


def gradients(model: Any, loss: Tensor, prefix: str) -> dict[str, Tensor]:
    """Length of the gradient of each weight, by name."""
    model.zero_grad()
    loss.backward()
    return {
        f"gradient.{name}": weight.grad.norm()
        for name, weight in model.named_parameters()
        if name.startswith(prefix) and weight.grad is not None
    }


def layout(model: Any) -> dict[str, Tensor]:
    """Names and shapes of a state dict, and what of it draws.py does not make."""
    state = model.state_dict()
    shapes = {
        f"shape.{name}": torch.tensor(tensor.shape, dtype=torch.int32) for name, tensor in state.items()
    }
    kept = ("betas", "rotary_emb.freqs")
    return shapes | {
        f"buffer.{name}": tensor.clone() for name, tensor in state.items() if name.endswith(kept)
    }


def prior_answers(library: Any) -> dict[str, Tensor]:
    """Everything asked of the small prior."""
    config = PRIOR["prior"]
    skipped = ("clip", "net", "timesteps", "sample_timesteps")

    def build(timesteps: int) -> Any:
        net = library.DiffusionPriorNetwork(**told(config["net"]))
        rest = {name: value for name, value in told(config).items() if name not in skipped}
        prior = library.DiffusionPrior(net, timesteps=timesteps, **rest)
        prior.load_state_dict(weights(prior.state_dict()))
        return prior.eval()

    asked, prior = prior_inputs(), build(1000)
    answers = layout(prior)
    text = {name: asked[name] for name in ("text_embed", "text_encodings")}
    answers["forward"] = prior.net(asked["x_t"], asked["t"], **text)
    answers["dropped"] = prior.net(asked["x_t"], asked["t"], cond_drop_prob=1.0, **text)
    scaled = asked["image_embed"] * prior.image_embed_scale
    answers["loss"] = prior.p_losses(scaled, asked["t"], text_cond=text, noise=asked["noise"])
    answers |= gradients(prior, answers["loss"], "net.")
    with drawn_from(numbered("prior.ddim")):
        answers["ddim"] = prior.p_sample_loop((COUNT, 32), text, timesteps=20) / prior.image_embed_scale
    short = build(20)
    with drawn_from(seeded()):
        answers["ddpm"] = short.p_sample_loop((COUNT, 32), text) / short.image_embed_scale
    return answers


def decoder_answers(library: Any, name: str) -> dict[str, Tensor]:
    """Everything asked of a small decoder."""
    whole, number = DECODERS[name]
    config = whole["decoder"]
    skipped = ("clip", "unets", "timesteps", "sample_timesteps", "image_cond_drop_prob")

    def build(timesteps: int, sample_timesteps: int | None) -> Any:
        unets = [library.Unet(**told(unet)) for unet in config["unets"]]
        rest = {key: value for key, value in told(config).items() if key not in skipped}
        decoder = library.Decoder(
            tuple(unets),
            timesteps=timesteps,
            sample_timesteps=sample_timesteps,
            image_cond_drop_prob=0.0,
            text_cond_drop_prob=0.0,
            **{**rest, "beta_schedule": tuple(rest["beta_schedule"])},
        )
        decoder.load_state_dict(weights(decoder.state_dict()))
        decoder.can_classifier_guidance = True
        return decoder.eval()

    decoder, index = build(1000, 20), number - 1
    unet, side_px = decoder.unets[index], config["image_sizes"][index]
    asked = decoder_inputs(side_px, unet.cond_on_text_encodings, number > 1)
    given = {"image_embed": asked["image_embed"], "text_encodings": asked.get("text_encodings")}
    if number > 1:
        asked["lowres"] = torch.nn.functional.interpolate(asked["lowres"], side_px, mode="nearest")
    shown = {"lowres_cond_img": asked["lowres"] * 2 - 1} if number > 1 else {}
    answers = layout(decoder)
    answers["forward"] = unet(asked["x_t"], asked["t"], **given, **shown)
    answers["dropped"] = unet(
        asked["x_t"], asked["t"], image_cond_drop_prob=1.0, text_cond_drop_prob=1.0, **given, **shown
    )
    learned_variance = decoder.learned_variance[index]
    told_about = {**given, "learned_variance": learned_variance}
    if number > 1:
        told_about["lowres_cond_img"] = asked["lowres"]
    scheduler = decoder.noise_schedulers[index]
    answers["loss"] = decoder.p_losses(
        unet, asked["images"], asked["t"], noise_scheduler=scheduler, noise=asked["noise"], **told_about
    )
    answers |= gradients(decoder, answers["loss"], f"unets.{index}.")
    if learned_variance:
        # at its usual 0.001 an error in the bound would drown
        for kind, t, weight in (("loss_bound", asked["t"], 1000.0), ("loss_at_0", 0 * asked["t"], 1.0)):
            decoder.vb_loss_weight = weight
            answers[kind] = decoder.p_losses(
                unet, asked["images"], t, noise_scheduler=scheduler, noise=asked["noise"], **told_about
            )
    # that release guides the variance as well, Crest the mean alone
    scale = 1.0 if learned_variance else 1.7
    for kind, drawing, cond_scale, source in (
        ("ddim", build(1000, 20), 1.7, numbered("decoder.ddim")),
        ("ddpm", build(20, None), scale, seeded()),
    ):
        with drawn_from(source):
            answers[kind] = drawing.p_sample_loop(
                drawing.unets[index],
                (COUNT, 3, side_px, side_px),
                noise_scheduler=drawing.noise_schedulers[index],
                timesteps=drawing.sample_timesteps[index],
                cond_scale=cond_scale,
                **told_about,
            )
    return answers


def main() -> None:
    """Write every golden file."""
    if len(sys.argv) != 2:
        raise SystemExit("python tests/golden/make_golden.py FOLDER-OF-DALLE2-PYTORCH-1.1.0")
    library = upstream(Path(sys.argv[1]))
    torch.manual_seed(0)
    found = {"prior": prior_answers(library)}
    found |= {name: decoder_answers(library, name) for name in DECODERS}
    for name, answers in found.items():
        kept = {key: value.detach().contiguous() for key, value in answers.items()}
        save_file(kept, HERE / f"{name}.safetensors")
        shown = {key: tuple(value.shape) for key, value in kept.items() if key.isidentifier()}
        print(name, shown, f"loss {float(kept['loss']):.6f}")


if __name__ == "__main__":
    main()
