"""Configs of dalle2-pytorch up to release 1.1, as published weights carry them, turned into ours.

Every field is translated, or listed with the reason why it means nothing here, or refused by name. Absent
fields mean what they meant in that release, which is not always what its network classes default to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from crest.config import Config, ScheduleName, read_spec
from crest.errors import ConfigError
from crest.models.decoder_spec import DecoderSpec
from crest.models.decoder_spec import refuse_misfits as refuse_decoder
from crest.models.prior_spec import PriorSpec
from crest.models.prior_spec import refuse_misfits as refuse_prior
from crest.models.published_fields import NEWER, Fields, Line
from crest.models.published_training import nth, training
from crest.records import read_json


@dataclass(frozen=True)
class Translation:
    """A published config in our words."""

    kind: str
    """"prior" or "decoder"."""
    spec: PriorSpec | DecoderSpec
    run: dict[str, Any]
    """a config of prior_train or decoder_train, with the spec as `model.scratch`"""
    lines: tuple[Line, ...]
    """what became of every field, in the file's order"""
    splits: tuple[float, float, float] | None
    """shares of train, val and test"""
    clip: str | None
    """the CLIP that it was trained with, "openai ViT-L/14" """


def translate(values: Mapping[str, Any], file: str, *, unet_number: int = 1) -> Translation:
    """Turn a whole published config into ours.

    Args:
        values: the file's content, of a prior or of a decoder.
        file: its name, for messages.
        unet_number: which U-Net of a decoder, from 1.
    Raises:
        ConfigError: a field that Crest cannot translate; nothing is dropped.
    """
    kinds = [kind for kind in ("prior", "decoder") if kind in values]
    if len(kinds) != 1:
        raise ConfigError(
            f"{file}: found the sections {', '.join(values) or 'none'}, expected one of prior and decoder, "
            "as in dalle2-pytorch's train configs; name such a file."
        )
    whole = Fields(file, "", values, [])
    if kinds[0] == "prior":
        return _prior(whole)
    return _decoder(whole, unet_number)


def read_translation(path: Path, *, unet_number: int = 1) -> Translation:
    """`translate` a JSON file.

    Raises:
        ConfigError: no such file, no JSON, or a field that Crest cannot translate.
    """
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; name a config of dalle2-pytorch.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error}); mend that line.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, expected an object with sections.")
    return translate(values, str(path), unet_number=unet_number)


def _prior(whole: Fields) -> Translation:
    section = whole.section("prior")
    clip = _clip(section)
    net = section.section("net")
    to = "model.scratch"
    dim = net.number("dim", f"{to}.image_embed_dim")
    embed_dim = section.number("image_embed_dim", f"{to}.image_embed_dim", dim)
    if dim != embed_dim:
        raise section.refused("image_embed_dim", repr(embed_dim), f"{dim}, which is net.dim")
    timed = net.number("num_timesteps", f"{to}.discrete_timesteps")
    timesteps = section.number("timesteps", f"{to}.timesteps", 1000)
    if timed is not None and timed != timesteps:
        raise net.refused("num_timesteps", repr(timed), f"{timesteps}, which is prior.timesteps, or null")
    spec = {
        "image_embed_dim": dim,
        "text_width": dim,
        "arithmetic": "1.1",
        "max_text_len": net.number("max_text_len", f"{to}.max_text_len", 256),
        "depth": net.number("depth", f"{to}.depth"),
        "heads": net.number("heads", f"{to}.heads", 8),
        "dim_head": net.number("dim_head", f"{to}.dim_head", 64),
        "ff_mult": net.number("ff_mult", f"{to}.ff_mult", 4),
        "timesteps": timesteps,
        "discrete_timesteps": timed is not None,
        "noise_schedule": _schedule(section, section.take("beta_schedule", f"{to}.noise_schedule", "cosine")),
        "prediction": "x_start" if section.take("predict_x_start", f"{to}.prediction", True) else "epsilon",
        "text_encodings": section.take("condition_on_text_encodings", f"{to}.text_encodings", True),
        "image_embed_scale": section.number("image_embed_scale", f"{to}.image_embed_scale"),
        # that release showed the text embedding as it is, of unit length
        "text_embed_scale": 1.0,
        "clamp_sampled": section.take("sampling_clamp_l2norm", f"{to}.clamp_sampled", False),
        # its keep-mask was computed and never reached the transformer, whatever cond_drop_prob says
        "saw_dropped_conditions": False,
    }  # fmt: skip
    for name, default in (
        ("norm_in", False), ("norm_out", True), ("normformer", False), ("rotary_emb", True),
        ("final_proj", True),
        ("attn_dropout", 0.0), ("ff_dropout", 0.0),
        ("num_time_embeds", 1), ("num_image_embeds", 1), ("num_text_embeds", 1),
    ):  # fmt: skip
        spec[name] = net.take(name, f"{to}.{name}", default)
    net.close(NEWER)
    section.without_meaning(
        "the prior reads embeddings and never a picture",
        "image_size",
        "image_channels",
        "clip_adapter_overrides",
    )
    section.without_meaning("how many steps a draw takes is asked of generate", "sample_timesteps")
    section.must_be("loss_type", "l2", because="the loss is the squared error")
    section.must_be("training_clamp_l2norm", False, because="the loss sees the prediction as it is")
    section.must_be("init_image_embed_l2norm", False, because="a draw starts from plain noise")
    section.without_meaning("drawn embeddings always have unit length here", "sampling_final_clamp_l2norm")
    model = {"text_cond_drop_prob": section.number("cond_drop_prob", "model.text_cond_drop_prob", 0.0)}
    section.close(NEWER)
    run, optim, splits = training(whole, "prior", 0)
    return Translation(
        "prior",
        _spec(PriorSpec, spec, whole.file, refuse_prior),
        {
            "$schema": "../schema/prior.json",
            "run": run,
            "data": {"embeddings": "out/laion/embeddings"},
            "model": {"scratch": _said(PriorSpec, spec), **model},
            "optim": optim,
        },
        tuple(whole.lines),
        splits,
        clip,
    )


def _decoder(whole: Fields, unet_number: int) -> Translation:
    section = whole.section("decoder")
    clip = _clip(section)
    unets = section.values.get("unets")
    section.seen.add("unets")
    if not isinstance(unets, list) or not unets:
        raise section.refused("unets", repr(unets), "a list of U-Nets")
    if not 1 <= unet_number <= len(unets):
        raise section.refused(
            "unets", f"{len(unets)} of them", f"at least {unet_number}, the number asked for"
        )
    index, to = unet_number - 1, "model.scratch"
    sizes = _sizes(section, len(unets))
    specs = [_unet(section.section(f"unets.{place}", values), place) for place, values in enumerate(unets)]
    spec = specs[index]
    learned = section.take("learned_variance", f"{to}.learned_variance", True)
    x_start = nth(section.take("predict_x_start", f"{to}.prediction", False), index)
    spec |= {
        "unet_number": unet_number,
        "side_px": sizes[index],
        "lowres_side_px": sizes[index - 1] if index else None,
        "lowres_resize": "nearest",
        "timesteps": section.number("timesteps", f"{to}.timesteps", 1000),
        "learned_variance": bool(nth(learned if isinstance(learned, list) else [learned], index, False)),
        "prediction": "x_start" if x_start else "epsilon",
    }  # fmt: skip
    default = "linear" if index and index == len(unets) - 1 else "cosine"
    schedule = nth(section.take("beta_schedule", f"{to}.noise_schedule"), index) or default
    spec["noise_schedule"] = _schedule(section, schedule)
    noised = section.take("use_noise_for_lowres_cond", f"{to}.lowres_noise_cond", False)
    # the library's list leaves out the first U-Net, which is shown no picture
    spec["lowres_noise_cond"] = bool(index and nth(noised, index - 1, False))
    model = {
        "image_cond_drop_prob": section.number("image_cond_drop_prob", "model.image_cond_drop_prob", 0.1),
        "text_cond_drop_prob": section.number("text_cond_drop_prob", "model.text_cond_drop_prob", 0.5),
        "both_cond_drop_prob": 0.0,
    }
    model |= _weights(section, index, spec)
    model |= _blur(section, index)
    if (crop_px := nth(section.take("random_crop_sizes", "model.crop_px"), index)) is not None:
        model["crop_px"] = crop_px
    _only_as_here(section)
    section.close(NEWER)
    run, optim, splits = training(whole, "decoder", index)
    return Translation(
        "decoder",
        _spec(DecoderSpec, spec, whole.file, refuse_decoder),
        {
            "$schema": "../schema/decoder.json",
            "run": run,
            "data": {"shards": "out/laion/shards", "embeddings": "out/laion/embeddings"},
            "model": {"scratch": _said(DecoderSpec, spec), **model},
            "optim": optim,
        },
        tuple(whole.lines),
        splits,
        clip,
    )


def _unet(unet: Fields, index: int) -> dict[str, Any]:
    to = "model.scratch"
    if "self_attn" not in unet.values:
        raise unet.refused("self_attn", "nothing", "a value a level, which release 1.1 asks for")
    dim, levels = unet.number("dim", f"{to}.dim"), unet.take("dim_mults", f"{to}.dim_mults", [1, 2, 4, 8])
    flags = unet.take("self_attn", f"{to}.self_attn", False)
    flags = flags if isinstance(flags, list) else [flags] * len(levels)
    text = unet.take("cond_on_text_encodings", f"{to}.text_width", False)
    width = unet.number("text_embed_dim", f"{to}.text_width" if text else "unused without text encodings")
    if text and width is None:
        raise unet.refused("text_embed_dim", "nothing", "the width of CLIP's text encodings")
    blocks = unet.take("num_resnet_blocks", f"{to}.num_resnet_blocks", 2)
    spec = {
        "dim": dim,
        "dim_mults": levels,
        "arithmetic": "1.1",
        "image_embed_dim": unet.number("image_embed_dim", f"{to}.image_embed_dim"),
        # the embedding is shown as it is, of unit length; and to the first U-Net alone
        "image_embed_scale": 1.0,
        "image_cond": index == 0,
        "text_width": width if text else None,
        "max_text_len": unet.number("max_text_len", f"{to}.max_text_len", 256),
        "cond_dim": unet.number("cond_dim", f"{to}.cond_dim", dim),
        "self_attn": [bool(flag) for flag in flags],
        "attn_dim_head": unet.number("attn_dim_head", f"{to}.attn_dim_head", 32),
        "attn_heads": unet.number("attn_heads", f"{to}.attn_heads", 16),
        "sparse_attn": unet.take("sparse_attn", f"{to}.sparse_attn", False),
        "num_resnet_blocks": blocks,
        "memory_efficient": unet.take("memory_efficient", f"{to}.memory_efficient", False),
        "init_cross_embed": unet.take("init_cross_embed", f"{to}.init_cross_embed", True),
        "init_kernel_px": unet.number("init_conv_kernel_size", f"{to}.init_kernel_px", 7),
        "init_dim": unet.number("init_dim", f"{to}.init_dim"),
    }  # fmt: skip
    unet.must_be("channels", 3, because="pictures are RGB")
    for name, value in {
        "num_image_tokens": 4, "num_time_tokens": 2, "add_image_embeds_to_time": True, "resnet_groups": 8,
        "init_cross_embed_kernel_sizes": (3, 7, 15), "cross_embed_downsample": False,
        "scale_skip_connection": False, "pixel_shuffle_upsample": True, "final_conv_kernel_size": 1,
        "combine_upsample_fmaps": False,
    }.items():  # fmt: skip
        unet.must_be(name, value, because="the U-Net has the library's default")
    unet.without_meaning("only used with cross_embed_downsample", "cross_embed_downsample_kernel_sizes")
    unet.without_meaning("release 1.1 never read it", "attend_at_middle", "out_dim")
    unet.without_meaning(
        "the decoder sets it by the U-Net's place in the cascade",
        "channels_out",
        "lowres_cond",
        "lowres_noise_cond",
        "cond_on_image_embeds",
    )
    unet.close(NEWER)
    return spec


def _weights(section: Fields, index: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    """How timesteps and the bound of a learned variance weigh in the loss."""
    model: dict[str, Any] = {}
    gamma = nth(section.take("p2_loss_weight_gamma", "model.p2_gamma", 0.0), index)
    p2_k = section.number("p2_loss_weight_k", "model.p2_k", 1.0)
    if gamma:
        model |= {"p2_gamma": gamma, "p2_k": p2_k}
    to = "model.variance_weight, over timesteps, because the library weighs one term and not their sum"
    weight = section.number("vb_loss_weight", to, 0.001, as_is=False)
    if spec["learned_variance"]:
        model["variance_weight"] = weight / spec["timesteps"]
    return model


def _blur(section: Fields, index: int) -> dict[str, Any]:
    """How an upsampler's small picture is blurred in training."""
    to = "model.lowres_blur_prob, 0 where false"
    blurred = section.take("use_blur_for_lowres_cond", to, True, as_is=False)
    share = section.number("blur_prob", "model.lowres_blur_prob", 0.5)
    sigma = section.take("blur_sigma", "model.lowres_blur_sigma", 0.6)
    kernel_px = section.take("blur_kernel_size", "model.lowres_blur_kernel_px", 3)
    if not index:
        return {}
    if isinstance(kernel_px, list):
        raise section.refused("blur_kernel_size", repr(kernel_px), "one odd number")
    return {
        # the library's list leaves out the first U-Net, which is shown no picture
        "lowres_blur_prob": share if nth(blurred, index - 1, False) else 0.0,
        "lowres_blur_sigma": sigma if isinstance(sigma, list) else [sigma, sigma],
        "lowres_blur_kernel_px": kernel_px,
    }


def _only_as_here(section: Fields) -> None:
    section.must_be("channels", 3, because="pictures are RGB")
    section.must_be("loss_type", "l2", because="the loss is the squared error")
    section.must_be("unconditional", False, because="a decoder is shown an image embedding")
    section.must_be("vae", (), because="diffusion runs in pixels")
    section.must_be("predict_x_start_for_latent_diffusion", False, because="diffusion runs in pixels")
    section.must_be("auto_normalize_img", True, because="pictures are [0, 1] outside and [-1, 1] inside")
    section.must_be("learned_variance_constrain_frac", False, because="the fraction is unbounded")
    section.must_be("use_dynamic_thres", False, because="x_start is clipped to [-1, 1]")
    section.without_meaning("only used with use_dynamic_thres", "dynamic_thres_percentile")
    section.must_be("clip_denoised", True, because="x_start is clipped to [-1, 1]")
    section.without_meaning("release 1.1 never read it", "clip_x_start")
    section.without_meaning(
        "how a picture is drawn is asked of generate", "sample_timesteps", "ddim_sampling_eta"
    )
    section.without_meaning("no CLIP is in the loop: embeddings come from files", "clip_adapter_overrides")
    section.must_be("lowres_downsample_first", True, because="an upsampler learns from small pictures")
    section.without_meaning("how a picture is drawn is asked of generate", "lowres_noise_sample_level")


def _clip(section: Fields) -> str | None:
    section.seen.add("clip")
    if section.values.get("clip") is None:
        return None
    clip = section.section("clip")
    to = "data.embeddings, which must be made with this CLIP"
    make, model = (
        clip.take("make", to, "openai", as_is=False),
        clip.take("model", to, "ViT-L/14", as_is=False),
    )
    name = f"{make} {model}"
    clip.without_meaning("embeddings come from files", "base_model_kwargs")
    clip.close(NEWER)
    return name


def _sizes(section: Fields, count: int) -> list[int]:
    one, several = (
        section.take("image_size", "model.scratch.side_px"),
        section.take("image_sizes", "model.scratch.side_px"),
    )
    sizes = sorted(set(several or ([one] if one else [])))  # as the library sorts them
    if len(sizes) != count:
        raise section.refused("image_sizes", repr(several or one), f"{count} different sizes, one a U-Net")
    return sizes


def _schedule(section: Fields, schedule: Any) -> Any:
    if schedule not in get_args(ScheduleName):
        raise section.refused("beta_schedule", repr(schedule), "one of " + ", ".join(get_args(ScheduleName)))
    return schedule


def _said(spec_class: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    fields = spec_class.model_fields
    return {
        name: value
        for name, value in values.items()
        if fields[name].is_required() or value != fields[name].default
    }


def _spec(spec_class: Any, values: Mapping[str, Any], file: str, refuse: Callable[[Any], None]) -> Any:
    spec = read_spec(spec_class, values, file)
    refuse(spec)
    return spec
