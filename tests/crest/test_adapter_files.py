"""Adapters as files: what a place names, sums that do not depend on an order, and whom they fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crest.adapter_files import parse
from crest.adapters import save_adapter
from crest.checkpoint import export_weights, load_model, locate_weights, short_hash
from crest.errors import WeightsError
from crest.models.clip import TextFeatures
from crest.models.decoder import load_decoder
from crest.models.families import load_decoder_family, load_prior_family
from crest.models.prior import load_prior, sample_image_embed
from tests.crest.tiny_adapted import QUERY, adapted, write_adapter, write_base


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write_base(tmp_path / "base")


@pytest.fixture
def style(base: str, tmp_path: Path) -> str:
    return write_adapter(base, tmp_path / "style", seed=1)


@pytest.fixture
def subject(base: str, tmp_path: Path) -> str:
    return write_adapter(base, tmp_path / "subject", seed=2)


def weights(place: str) -> dict[str, Tensor]:
    return load_decoder(place)[0].state_dict()


def change(folder: str, name: str) -> Tensor:
    """(alpha / rank) up down, alpha 3 and rank 2."""
    parts = load_file(Path(folder) / "adapter.safetensors")
    return 1.5 * parts[f"{name}.up"].double() @ parts[f"{name}.down"].double()


def test_a_place_names_a_sum_of_changes_at_their_scales(base: str, style: str, subject: str) -> None:
    plain, tuned = weights(base), weights(f"{base}+{style}:0.5+{subject}:-2")
    names = parse(style).adapters[0].card["scales"]
    assert any("cross_attn" in name for name in names)
    for name, weight in plain.items():
        wanted = weight.double()
        if name in names:
            wanted = wanted + 0.5 * change(style, name) - 2 * change(subject, name)
        assert torch.allclose(tuned[name].double(), wanted, rtol=0, atol=1e-6), name
        assert (name in names) != torch.equal(tuned[name], weight)


def test_the_order_of_adapters_changes_nothing(base: str, style: str, subject: str) -> None:
    one, digest, _ = load_decoder(f"{base}+{style}+{subject}:0.3")
    other, same, _ = load_decoder(f"{base}+{subject}:0.3+{style}:1")
    assert digest == same
    assert all(torch.equal(one.state_dict()[name], weight) for name, weight in other.state_dict().items())
    assert load_decoder(f"{base}+{subject}+{style}:0.3")[1] != digest


def test_scale_0_is_the_base(base: str, style: str) -> None:
    plain, digest, _ = load_decoder(base)
    silent, same, _ = load_decoder(f"{base}+{style}:0")
    assert digest == same
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in silent.state_dict().items())


def test_an_adapter_alone_stands_beside_the_base_that_it_names(base: str, style: str) -> None:
    wanted, alone = weights(f"{base}+{style}"), weights(style)
    file = weights(f"{style}/adapter.safetensors")
    assert all(torch.equal(wanted[name], alone[name]) for name in wanted)
    assert all(torch.equal(wanted[name], file[name]) for name in wanted)
    assert torch.equal(
        weights(f"{style}:0.5")[QUERY],
        weights(f"{base}+{style}:0.5")[QUERY],
    )
    assert locate_weights(style, "decoder") == Path(base) / "weights.safetensors"


def test_what_is_drawn_with_a_place_is_what_the_adapted_model_says(base: str, style: str) -> None:
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    told = (torch.randn(2, 16), torch.randn(2, 4, 24), *torch.ones(2, 2, dtype=torch.bool))
    models: list[Any] = [adapted(base, 1), load_decoder_family(style)[0], load_decoder(base)[0]]
    with torch.no_grad():
        wanted, found, plain = (model(inputs, torch.tensor([3, 15]), *told) for model in models)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert float((plain - wanted).abs().max()) > 1e-2


def test_a_base_that_moved_is_told_and_can_be_named(base: str, style: str, tmp_path: Path) -> None:
    wanted = weights(style)
    Path(base).rename(tmp_path / "elsewhere")
    digest = short_hash(tmp_path / "elsewhere" / "weights.safetensors")
    with pytest.raises(
        WeightsError, match=rf"its base {digest} can't be had \(.*/base.*\); .* PLACE\+.*style"
    ):
        load_decoder(style)
    found = weights(f"{tmp_path}/elsewhere+{style}")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_another_base_is_refused_in_one_sentence_with_both_hashes(
    base: str, style: str, tmp_path: Path
) -> None:
    other = write_base(tmp_path / "other", seed=9)
    ours, theirs = (short_hash(Path(place) / "weights.safetensors") for place in (base, other))
    says = f"belongs to the decoder {ours} \\({base}\\), but {other} is {theirs}; write {base}\\+{style}"
    for look in (locate_weights, lambda place, _: load_decoder_family(place)):
        with pytest.raises(WeightsError, match=says) as refused:
            look(f"{other}+{style}", "decoder")
        assert "\n" not in str(refused.value)
    Path(base, "weights.safetensors").write_bytes(Path(other, "weights.safetensors").read_bytes())
    Path(base, "weights.json").write_bytes(Path(other, "weights.json").read_bytes())
    with pytest.raises(WeightsError, match=rf"{ours}.* but .* is {theirs}; write the place of {ours}"):
        load_decoder(style)  # trained again since


def test_numbers_that_do_not_belong_to_their_card_are_noticed(base: str, style: str) -> None:
    path = Path(base) / "weights.safetensors"
    tensors = load_file(path)
    tensors[QUERY] *= 1.0001  # the probe's tolerance lets this pass
    save_file(tensors, path, {"kind": "decoder"})
    load_decoder(base)
    with pytest.raises(WeightsError, match=r"but not the numbers that .*adapter\.safetensors was trained"):
        load_decoder(style)


def test_an_adapter_beside_an_adapted_base(base: str, style: str, tmp_path: Path) -> None:
    place = f"{base}+{style}:0.5"
    upper = write_adapter(place, tmp_path / "upper", seed=3)
    name = QUERY
    wanted = weights(base)[name].double() + 0.5 * change(style, name) + change(upper, name)
    for written in (upper, f"{place}+{upper}", f"{style}:0.5+{upper}"):
        assert torch.allclose(weights(written)[name].double(), wanted, atol=1e-6)
    with pytest.raises(WeightsError, match=r"upper/adapter.safetensors: belongs to the decoder"):
        load_decoder(f"{base}+{style}:0.4+{upper}")
    with pytest.raises(WeightsError, match=r"upper/adapter.safetensors: belongs to the decoder"):
        load_decoder(f"{base}+{upper}")


def test_names_with_a_plus_or_a_colon_stay_whole(tmp_path: Path) -> None:
    base = write_base(tmp_path / "a+b")
    one = write_adapter(base, tmp_path / "red+gold", seed=1)
    named = parse(f"{base}+{one}:0.5+{one}")
    assert (named.base, [(str(a.path.parent), a.scale) for a in named.adapters]) == (
        base, [(one, 0.5), (one, 1.0)],
    )  # fmt: skip
    (tmp_path / "x:2").mkdir()
    assert parse(str(tmp_path / "x:2")).base == str(tmp_path / "x:2")
    assert parse("owner/name:path/of.pth#2").base == "owner/name:path/of.pth#2"
    assert parse(f"owner/name:of.pth+{one}:2").base == "owner/name:of.pth"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{base}+nowhere", r"nowhere: there is no adapter; expected a run folder with adapter.safetensors"),
        ("{base}+{style}:much", r"style:much: there is no adapter; .* BASE\+ADAPTER:scale with a number"),
        ("{base}+{style}:nan", r"there is no adapter"),
        ("{base}+{base}", r"there is no adapter"),
        ("{base}+{base}/weights.safetensors", r"holds a None, expected an adapter"),
        ("{base}+{prior}", r"is an adapter of a prior, expected one of a decoder; name the right file"),
        ("{prior}", r"is an adapter of a prior, expected one of a decoder; name the right file"),
        ("{base}+{style}+{other_clip}", r"trained with CLIP d{16}, but .*style.* with c{16}; stack"),
        ("{base}+{clip}", r"is an adapter of a run that exports its weights whole"),
        ("{base}+{broken}", r"is not a whole safetensors file"),
    ],
)
def test_what_is_no_sum_is_refused(base: str, style: str, tmp_path: Path, written: str, says: str) -> None:
    clip = tmp_path / "clip" / "adapter.safetensors"
    save_adapter(clip, torch.nn.Linear(2, 2))
    broken = tmp_path / "broken" / "adapter.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(b"12345678901234")
    prior = write_base(tmp_path / "prior_base", "prior")
    places = {
        "base": base, "style": style, "clip": clip, "broken": broken,
        "prior": write_adapter(prior, tmp_path / "prior", 1, "prior"),
        "other_clip": write_adapter(base, tmp_path / "other_clip", 2, clip="d" * 16),
    }  # fmt: skip
    with pytest.raises(WeightsError, match=says):
        load_decoder(written.format(**places))


def test_other_kinds_know_no_adapters_behind_a_place(base: str, style: str) -> None:
    with pytest.raises(WeightsError, match="there are no clip weights"):
        locate_weights(f"{base}+{style}", "clip")


def test_a_prior_may_learn_to_be_guided(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "prior")
    tuned = write_adapter(base, tmp_path / "tuned", 1, "prior", "d" * 16, saw_dropped_conditions=True)
    text = TextFeatures(torch.nn.functional.normalize(torch.randn(2, 16), dim=-1), torch.randn(2, 4, 16))
    prior, _, card = load_prior(tuned)
    assert card["parents"]["clip"] == load_prior_family(tuned)[2]["parents"]["clip"] == "d" * 16
    drawn = sample_image_embed(prior, text, seeds=[1, 2], cond_scale=2.0, steps=2)
    assert drawn.shape == (2, 16)
    assert not load_prior(base)[0].spec.saw_dropped_conditions


def test_a_half_precision_base_is_remembered_and_fits(tmp_path: Path) -> None:
    base = write_base(tmp_path / "half", half=True)
    style = write_adapter(base, tmp_path / "style", seed=1)
    name = QUERY
    wanted = load_file(Path(base) / "weights.safetensors")[name].double() + change(style, name)
    assert torch.allclose(weights(style)[name].double(), wanted, atol=1e-6)


def test_an_adapter_s_file_says_what_it_is(base: str, style: str) -> None:
    card: Any = parse(style).adapters[0].card
    beside = json.loads((Path(style) / "adapter.json").read_text(encoding="utf-8"))
    assert (card["kind"], card["of"], card["family"], card["unet_number"]) == (
        "adapter",
        "decoder",
        "crest",
        1,
    )
    assert (card["base"], card["place"]) == (short_hash(Path(base) / "weights.safetensors"), base)
    assert (card["rank"], card["alpha"], card["step"]) == (2, 3.0, 7)
    assert card["targets"] == [
        f"unet.*.{name}.weight" for name in ("to_q", "to_kv", "to_out.0", "time_mlp.1")
    ]
    assert len(card["recipe"]) == 16
    assert beside["sha256"][:16] == parse(style).adapters[0].hash
    assert sorted(path.name for path in Path(style).iterdir()) == ["adapter.json", "adapter.safetensors"]


def test_a_family_that_verifies_sees_its_file_s_weights(base: str, style: str) -> None:
    seen: list[Tensor] = []

    def verify(model: torch.nn.Module, card: Any, file: str) -> None:
        seen.append(model.state_dict()[QUERY].clone())

    load_model(style, "decoder", lambda path, card: load_decoder(base)[0], verify)
    assert torch.equal(seen[0], weights(base)[QUERY])


def test_merged_exports_say_what_is_in_them(base: str, tmp_path: Path) -> None:
    model: Any = adapted(base, 1)
    card = {"kind": "decoder", "spec": model.spec.model_dump(mode="json"), "parents": {"clip": "c" * 16}}
    path = export_weights(tmp_path / "merged", model, card)
    merged, digest, read = load_decoder(str(tmp_path / "merged"))
    assert digest == short_hash(path)
    assert read["merged"]["base"] == short_hash(Path(base) / "weights.safetensors")
    assert [line["scale"] for line in read["merged"]["adapters"]] == [1.0]
    again = load_decoder(f"{base}+{tmp_path}/merged")[0].state_dict()
    assert all(torch.allclose(again[name], value, atol=1e-6) for name, value in merged.state_dict().items())
