"""Configs of dalle2-pytorch: each field is translated, explained or refused; none is dropped."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crest.config import load_config
from crest.errors import ConfigError
from crest.models.published_configs import Translation, translate
from crest.translate import main
from decoder_train.config import DecoderTrainConfig
from prior_train.config import PriorTrainConfig
from tests.golden.published_small import DECODERS, PRIOR

DECODER = DECODERS["decoder_v1_0_2"][0]
WHOLE = ("data.preprocessing", "tracker", "evaluate")
"""Sections of which nothing is read, told as one."""


def translated(values: dict[str, Any], **options: Any) -> Translation:
    return translate(values, "theirs.json", **options)


def leaves(values: Any, name: str = "") -> Iterator[str]:
    """Dotted names of all fields, U-Nets numbered."""
    if name in WHOLE or not isinstance(values, dict):
        if isinstance(values, list) and values and isinstance(values[0], dict):
            for place, value in enumerate(values):
                yield from leaves(value, f"{name}.{place}")
            return
        yield name
        return
    for key, value in values.items():
        yield from leaves(value, f"{name}.{key}" if name else key)


def changed(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(values)
    section: Any = values
    *path, last = name.split(".")
    for part in path:
        section = section[int(part)] if part.isdigit() else section[part]
    section[last] = value
    return values


@pytest.mark.parametrize("values", [PRIOR, DECODER], ids=["prior", "decoder"])
def test_every_field_is_told_of(values: dict[str, Any]) -> None:
    values = {**values, "tracker": {"data_path": ".tracker", "log": {"log_type": "wandb"}}}
    lines = translated(values).lines
    assert sorted(line.field for line in lines) == sorted(leaves(values))
    assert all(line.fate for line in lines)


@pytest.mark.parametrize("section", ["prior", "prior.net", "prior.clip", "data", "data.splits", "train"])
def test_unknown_field_of_a_prior_is_refused_by_name(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"theirs.json: {section}.oddity is no setting .*found 3"):
        translated(changed(PRIOR, f"{section}.oddity", 3))


@pytest.mark.parametrize("section", ["decoder", "decoder.unets.0", "decoder.clip", "data", "train"])
def test_unknown_field_of_a_decoder_is_refused_by_name(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"theirs.json: {section}.oddity is no setting .*found 3"):
        translated(changed(DECODER, f"{section}.oddity", 3))


def test_unknown_section_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"theirs\.json: oddity is no setting"):
        translated({**PRIOR, "oddity": {}})


@pytest.mark.parametrize("name", ["predict_v", "text_cond_drop_prob"])
def test_field_of_a_later_release_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"prior.{name} is no setting .*a later release than 1.1"):
        translated(changed(PRIOR, f"prior.{name}", 0.1))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("decoder.loss_type", "l1", "squared error"),
        ("decoder.channels", 4, "RGB"),
        ("decoder.unets.0.channels", 1, "RGB"),
        ("decoder.unets.0.combine_upsample_fmaps", True, "library's default"),
        ("decoder.unets.0.resnet_groups", 4, "library's default"),
        ("decoder.vae", [{"dim": 8}], "in pixels"),
        ("decoder.use_dynamic_thres", True, "clipped"),
        ("decoder.beta_schedule", ["cubic"], "expected one of cosine"),
        ("decoder.image_sizes", [16, 32], "1 different sizes"),
        ("decoder.timesteps", "many", "a number"),
    ],
)
def test_value_that_crest_cannot_do_is_refused_by_name(name: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=f"theirs.json: {name}: found .*{told}"):
        translated(changed(DECODER, name, value))


def test_config_from_before_self_attn_was_a_setting_is_refused() -> None:
    values = copy.deepcopy(DECODER)
    del values["decoder"]["unets"][0]["self_attn"]
    with pytest.raises(ConfigError, match=r"decoder\.unets\.0\.self_attn: found nothing"):
        translated(values)


def test_split_of_7_2_1_is_accepted() -> None:
    # 0.7 + 0.2 + 0.1 is 0.9999999999999999 in floats, at which upstream stops
    assert translated(PRIOR).splits == (0.7, 0.2, 0.1)
    with pytest.raises(ConfigError, match=r"data\.splits\.train: found shares .*sum to 1"):
        translated(changed(PRIOR, "data.splits.test", 0.2))


def test_settings_that_differ_here_are_carried_over() -> None:
    values = changed(
        changed(DECODER, "decoder.p2_loss_weight_gamma", 1.0), "decoder.beta_schedule", ["linear"]
    )
    found = translated(changed(values, "train.use_ema", False))
    model, spec = found.run["model"], found.run["model"]["scratch"]
    # what the library drops independently of each other, and how much it makes of the bound
    assert (model["image_cond_drop_prob"], model["text_cond_drop_prob"]) == (0.1, 0.5)
    assert model["both_cond_drop_prob"] == 0.0
    assert model["variance_weight"] == pytest.approx(0.001 / 1000)
    assert model["p2_gamma"] == 1.0
    assert (spec["noise_schedule"], spec["image_embed_scale"], spec["arithmetic"]) == ("linear", 1.0, "1.1")
    assert found.run["optim"]["ema_decay"] == 0.0
    assert found.clip == "openai ViT-L/14"


def test_null_and_absent_mean_that_release_s_default() -> None:
    upsampler, number = DECODERS["upsampler"]
    spec = translated(upsampler, unet_number=number).run["model"]["scratch"]
    assert spec["attn_heads"] == 16, "null in the file"
    assert spec["init_cross_embed"] is True, "absent"
    assert spec["max_text_len"] == 256, "absent"
    assert (spec["unet_number"], spec["lowres_side_px"], spec["lowres_resize"]) == (2, 16, "nearest")
    # that release shows an upsampler the small picture alone
    assert spec["image_cond"] is False


@pytest.mark.parametrize(
    ("values", "number", "config_class"),
    [
        (PRIOR, 1, PriorTrainConfig),
        (DECODER, 1, DecoderTrainConfig),
        (DECODERS["upsampler"][0], 2, DecoderTrainConfig),
    ],
    ids=["prior", "decoder", "upsampler"],
)
def test_command_writes_a_config_that_loads(
    values: dict[str, Any], number: int, config_class: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = tmp_path / "theirs.json", tmp_path / "configs" / "ours.json"
    theirs.write_text(json.dumps(values), encoding="utf-8")
    assert main([str(theirs), "--out", str(ours), "--unet-number", str(number)]) == 0
    config = load_config(config_class, ours)
    assert config.optim.batch_size == values["data"]["batch_size"]
    told = capsys.readouterr().out
    assert "-- data.splits" not in told
    assert "fields translated" in told
    assert main([str(theirs), "--out", str(ours)]) == 1, "what is there is not overwritten"


def test_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = tmp_path / "theirs.json"
    for text in ("{", "[]", "{}", json.dumps({"prior": {}, "decoder": {}})):
        theirs.write_text(text, encoding="utf-8")
        assert main([str(theirs)]) == 1
        assert capsys.readouterr().err.startswith(f"{theirs}: ")
    assert main([str(tmp_path / "absent.json")]) == 1
