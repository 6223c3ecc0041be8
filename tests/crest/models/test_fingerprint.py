"""Weights in the wrong arithmetic, or not the right ones, are noticed; so is guidance that has no meaning."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

from crest.checkpoint import locate_weights, read_card
from crest.convert import convert_file, main
from crest.errors import ConfigError, WeightsError
from crest.models.clip import TextFeatures
from crest.models.decoder import Decoder
from crest.models.families import as_module, load_decoder_family, load_prior_family
from crest.models.fingerprint import fingerprint, probe, refuse_untrained
from crest.models.prior import Prior, load_prior, sample_image_embed
from crest.models.prior_spec import PriorSpec
from crest.models.published import Published, convert, fill, load_published_decoder, load_published_prior
from tests.crest.models.test_published import config_of, golden, off, prior_answer, published, state_dict
from tests.golden.draws import prior_inputs
from tests.golden.published_small import PRIOR

NAMES = ["prior", "decoder_v1_0_2", "upsampler"]


def load(name: str, folder: Path) -> nn.Module:
    loaded = (load_prior_family if name == "prior" else load_decoder_family)(folder)
    return as_module(loaded[0])


def edit_card(folder: Path, **changes: Any) -> None:
    path = folder / "weights.json"
    card = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in card.items() if value is not None}))


@pytest.mark.parametrize("name", NAMES)
def test_converted_weights_are_weights_like_any_others(name: str, tmp_path: Path) -> None:
    convert(published(name), tmp_path, "somewhere/latest.pth")
    again = load(name, tmp_path)
    assert probe(again) == pytest.approx(probe(published(name).model), rel=1e-6)
    card = read_card(locate_weights(tmp_path, again_kind(name)), again_kind(name))
    assert card["published"]["clip"] == "openai ViT-L/14"
    assert card["published"]["source"] == "somewhere/latest.pth"
    assert sum(card["published"]["dropped"].values()) > 0
    assert len(card["published"]["config"]) > 30, "what became of each field travels with the weights"


def test_half_precision_stays_so(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in state_dict("prior").items()}
    whole = convert(published("prior"), tmp_path / "whole").stat().st_size
    found = filled({**half, "noise_scheduler.betas": state_dict("prior")["noise_scheduler.betas"]})
    assert convert(found, tmp_path / "half").stat().st_size < 0.6 * whole
    assert probe(load("prior", tmp_path / "half")) == pytest.approx(probe(found.model), rel=1e-6)


def again_kind(name: str) -> str:
    return "prior" if name == "prior" else "decoder"


@pytest.mark.parametrize("name", NAMES)
def test_other_arithmetic_is_refused_by_the_fingerprint(name: str, tmp_path: Path) -> None:
    convert(published(name), tmp_path)
    spec = {**published(name).translation.spec.model_dump(mode="json"), "arithmetic": "1.15"}
    edit_card(tmp_path, spec=spec)
    with pytest.raises(WeightsError, match=r"fingerprint|lacks|expected"):
        load(name, tmp_path)


def test_other_arithmetic_is_refused_by_the_probe_where_every_shape_agrees(tmp_path: Path) -> None:
    convert(published("prior"), tmp_path)
    spec = {**published("prior").translation.spec.model_dump(mode="json"), "arithmetic": "1.15"}
    edit_card(tmp_path, spec=spec, fingerprint=None)
    with pytest.raises(WeightsError, match="answers a fixed question otherwise"):
        load("prior", tmp_path)
    edit_card(tmp_path, probe=None)
    asked = prior_inputs()
    wrong = load("prior", tmp_path)
    told = (asked["text_embed"], asked["text_encodings"], torch.ones(2).bool(), torch.ones(2).bool())
    with torch.no_grad():
        assert off(wrong(asked["x_t"], asked["t"], *told), golden("prior")["forward"]) > 0.1, "and rightly"


@pytest.mark.parametrize("name", NAMES)
def test_damaged_weights_are_refused_by_the_probe(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    convert(published(name), tmp_path)
    tensors = load_file(tmp_path / "weights.safetensors")
    changed = "net.learned_query" if name == "prior" else "unet.to_time_cond.0.weight"
    tensors[changed] *= 1.1
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="answers a fixed question otherwise"):
        load(name, tmp_path)


def test_fingerprint_tells_arithmetics_apart() -> None:
    spec = published("prior").translation.spec
    assert isinstance(spec, PriorSpec)
    other = Prior(spec.model_copy(update={"arithmetic": "1.15"}))
    assert fingerprint(other) != fingerprint(published("prior").model)
    assert fingerprint(Prior(spec)) == fingerprint(published("prior").model), "whatever the numbers are"


# --- without a record --------------------------------------------------------------------------------------


def test_random_weights_are_refused() -> None:
    for name in ("prior", "decoder_v1_0_2"):
        config, number = config_of(name)
        with pytest.raises(WeightsError, match="does not look at what it is shown"):
            fill(state_dict(name), config, file=name, unet_number=number)


def test_trained_weights_pass_and_in_the_wrong_arithmetic_do_not() -> None:
    trained, _, _ = load_prior("stock/prior")
    refuse_untrained(trained, "stock/prior")
    wrong = Prior(trained.spec.model_copy(update={"arithmetic": "1.1"}))
    wrong.load_state_dict(trained.state_dict())
    with pytest.raises(WeightsError, match="does not look at what it is shown"):
        refuse_untrained(wrong.eval(), "stock/prior")


def test_decoder_that_finds_the_noise_passes() -> None:
    class Finder(Decoder):
        def forward(self, x_t: Tensor, *_: Any, **__: Any) -> Tensor:
            return torch.cat((x_t * 0.9, x_t), dim=1)

    finder = Finder(published("decoder_v1_0_2").model.spec)  # type: ignore[arg-type]
    refuse_untrained(finder, "finder")


# --- guidance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cond_drop_prob", [0.0, 0.1])
def test_guidance_of_a_published_prior_is_refused(cond_drop_prob: float) -> None:
    config = {**PRIOR, "prior": {**PRIOR["prior"], "cond_drop_prob": cond_drop_prob}}
    prior = fill(state_dict("prior"), config, file="prior", trained=False).model
    asked = prior_inputs()
    text = TextFeatures(asked["text_embed"], asked["text_encodings"])
    assert isinstance(prior, Prior)
    with pytest.raises(ConfigError, match="trained without dropped conditions"):
        sample_image_embed(prior, text, seeds=(1, 2), cond_scale=2.0, steps=2)


# --- files -------------------------------------------------------------------------------------------------


def filled(tensors: dict[str, Any], config: Any = PRIOR) -> Published:
    return fill(tensors, config, file="latest.pth", trained=False)


def test_clip_inside_a_prior_s_file_is_dropped_and_counted() -> None:
    clip = {f"clip.clip.visual.{place}": torch.zeros(1) for place in range(3)}
    found = filled({**state_dict("prior"), **clip})
    assert found.weights.dropped["clip, which stands in a file of its own"] == 3
    assert found.weights.dropped["noise schedule, computed here"] == 13
    assert found.weights.added == ("net.null_text_embeds", "net.null_image_embed")
    everything = len(found.weights.tensors) - len(found.weights.added) + sum(found.weights.dropped.values())
    assert everything == len(state_dict("prior")) + 3, "each tensor is accounted for"


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_prefix_of_a_distributed_run_does_not_matter(prefix: str) -> None:
    tensors = {f"{prefix}{name}": tensor for name, tensor in state_dict("prior").items()}
    assert probe(filled(tensors).model) == probe(published("prior").model)


def test_old_names_of_norms_are_known() -> None:
    old = {
        f"{name[:-2]}.gamma" if name.endswith(".g") else name: tensor
        for name, tensor in state_dict("prior").items()
    }
    assert old.keys() != state_dict("prior").keys()
    assert probe(filled(old).model) == probe(published("prior").model)


def test_tensor_without_a_place_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match=r"latest\.pth: net\.oddity has no place in this prior"):
        filled({**state_dict("prior"), "net.oddity": torch.zeros(1)})


def test_missing_tensor_is_refused_by_name() -> None:
    tensors = state_dict("prior")
    del tensors["net.learned_query"]
    with pytest.raises(WeightsError, match=r"latest\.pth: lacks net\.learned_query"):
        filled(tensors)


def test_tensor_of_another_shape_is_refused_by_name() -> None:
    tensors = {**state_dict("prior"), "net.learned_query": torch.zeros(5)}
    with pytest.raises(WeightsError, match=r"net\.learned_query is \(5,\), expected \(32,\)"):
        filled(tensors)


def test_other_noise_schedule_in_the_file_is_refused() -> None:
    config = {**PRIOR, "prior": {**PRIOR["prior"], "beta_schedule": "linear"}}
    with pytest.raises(WeightsError, match="carries another noise schedule"):
        filled(state_dict("prior"), config)


def test_file_without_a_state_dict_is_refused() -> None:
    for container in ({}, {"model": {}}, {"epoch": 3}, {"model": {"epoch": 3}}):
        with pytest.raises(WeightsError, match="expected a state dict"):
            filled(container)


def test_container_with_version_and_config_needs_no_json(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    torch.save({"version": Version("1.1.0"), "config": PRIOR, "model": state_dict("prior")}, path)
    prior = load_published_prior(path, trained=False)
    with torch.no_grad():
        asked = prior_inputs()
        told = (asked["text_embed"], asked["text_encodings"], torch.ones(2).bool(), torch.ones(2).bool())
        assert off(prior(asked["x_t"], asked["t"], *told), prior_answer(asked["x_t"], asked["t"])) < 1e-6


def test_raw_file_takes_its_json_and_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, number = config_of("upsampler")
    file, json_path = tmp_path / "latest.pth", tmp_path / "config.json"
    torch.save(state_dict("upsampler"), file)
    json_path.write_text(json.dumps(config), encoding="utf-8")
    decoder = load_published_decoder(file, json_path, unet_number=number, trained=False)
    assert probe(decoder) == probe(published("upsampler").model)
    with pytest.raises(WeightsError, match="holds no config; name the JSON"):
        load_published_decoder(file, unet_number=number, trained=False)
    convert_file(file, json_path, tmp_path / "ours", number, trained=False)
    assert "decoder, 183 tensors, arithmetic 1.1" in capsys.readouterr().out
    assert probe(load("upsampler", tmp_path / "ours")) == pytest.approx(probe(decoder), rel=1e-6)
    # a command has no such switch: random weights are refused
    assert main([str(file), "--config", str(json_path), "--unet-number", "2", "--out", str(tmp_path)]) == 1
    assert "does not look at what it is shown" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="its config is a decoder's, expected a prior's"):
        load_published_prior(file, json_path, trained=False)
