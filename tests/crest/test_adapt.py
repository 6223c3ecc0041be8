"""`python -m crest.adapt`: weights with adapters in them, without them again, and what an adapter is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crest.adapt import main
from crest.adapter_files import parse
from crest.checkpoint import short_hash
from crest.models.decoder import load_decoder
from crest.models.prior import load_prior
from tests.crest.tiny_adapted import QUERY, write_adapter, write_base


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    base = write_base(tmp_path / "base")
    made = {name: write_adapter(base, tmp_path / name, seed) for seed, name in enumerate(("one", "two"), 1)}
    return {"base": base, **made, "out": str(tmp_path / "out")}


def tensors(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / "weights.safetensors")


def card(folder: str | Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((Path(folder) / "weights.json").read_text(encoding="utf-8"))
    return values


def test_merged_weights_are_those_of_the_place(places: dict[str, str], capsys: Any) -> None:
    base, one, two, out = places.values()
    assert main(["merge", base, f"{one}:0.5", two, "--out", out]) == 0
    digest = short_hash(Path(base) / "weights.safetensors")
    assert f"decoder {digest} with {one}/adapter.safetensors:0.5" in capsys.readouterr().out
    wanted, named, _ = load_decoder(f"{base}+{one}:0.5+{two}")
    assert all(torch.equal(tensors(out)[name], value) for name, value in wanted.state_dict().items())
    assert (card(out)["merged"]["hash"], card(out)["merged"]["base"]) == (named, digest)
    assert load_decoder(out)[2]["probe"] != card(base)["probe"]  # asked again, and verified by loading
    assert card(out)["fingerprint"] == card(base)["fingerprint"]


@pytest.mark.parametrize("kind", ["decoder", "prior"])
def test_what_is_taken_out_leaves_the_base_within_float32_s_rounding(tmp_path: Path, kind: str) -> None:
    base = write_base(tmp_path / "base", kind)
    one = write_adapter(base, tmp_path / "one", 1, kind)
    out, back = str(tmp_path / "out"), str(tmp_path / "back")
    assert main(["merge", base, f"{one}:0.7", "--out", out]) == 0
    assert main(["unmerge", out, one, "--out", back]) == 0
    before, merged, after = tensors(base), tensors(out), tensors(back)
    moved = 0
    for name, weight in before.items():
        # one rounding when it was added, one when it was taken away: half a unit of the last digit each
        size = torch.maximum(weight.abs(), merged[name].abs())
        error = (after[name].double() - weight.double()).abs()
        assert bool((error <= 2**-23 * size.double() + 1e-45).all()), name
        moved += not torch.equal(merged[name], weight)
    assert moved == len(parse(one).adapters[0].card["scales"])
    assert "merged" not in card(back)
    assert card(back)["restored"]["base"] == short_hash(Path(base) / "weights.safetensors")
    # and what fits the base fits it
    load = load_prior if kind == "prior" else load_decoder
    wanted, found = (load(f"{place}+{one}")[0].state_dict() for place in (base, back))
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_one_of_two_is_taken_out(places: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    base, one, two, out = places.values()
    assert main(["merge", base, f"{one}:0.5", two, "--out", out]) == 0
    assert main(["unmerge", out, two, "--out", str(tmp_path / "left")]) == 0
    assert f"still with {one}/adapter.safetensors:0.5" in capsys.readouterr().out
    wanted, digest, _ = load_decoder(f"{base}+{one}:0.5")
    assert torch.allclose(tensors(tmp_path / "left")[QUERY], wanted.state_dict()[QUERY], atol=1e-6)
    assert card(tmp_path / "left")["merged"]["hash"] == digest
    assert main(["unmerge", str(tmp_path / "left"), f"{one}:0.5", "--out", str(tmp_path / "none")]) == 0
    assert torch.allclose(tensors(tmp_path / "none")[QUERY], tensors(base)[QUERY], atol=1e-6)


def test_an_adapter_trained_beside_a_sum_fits_it_merged(places: dict[str, str], tmp_path: Path) -> None:
    base, one, _, out = places.values()
    upper = write_adapter(f"{base}+{one}:0.5", tmp_path / "upper", seed=3)
    assert main(["merge", base, f"{one}:0.5", "--out", out]) == 0
    wanted, found = (load_decoder(place)[0].state_dict()[QUERY] for place in (upper, f"{out}+{upper}"))
    assert torch.allclose(wanted, found, atol=1e-6)


def test_merged_in_half_precision_is_half_the_bytes(places: dict[str, str], capsys: Any) -> None:
    base, one, _, out = places.values()
    assert main(["merge", base, one, "--out", out, "--half"]) == 0
    sizes = [(Path(folder) / "weights.safetensors").stat().st_size for folder in (base, out)]
    header = 30_000
    assert sizes[1] < sizes[0] / 2 + header
    assert tensors(out)[QUERY].dtype == torch.float16
    assert main(["unmerge", out, one, "--out", out + "_back"]) == 1
    assert "was rounded to float16 when it was merged and can't be taken back" in capsys.readouterr().err


def test_what_is_not_known_of_a_merge_is_refused(places: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    base, one, two, out = places.values()
    assert main(["merge", base, f"{one}:0.5", "--out", out]) == 0
    back = str(tmp_path / "back")
    for merged, adapter, says in (
        (base, one, "was not merged, or nothing tells with what"),
        (
            out,
            two,
            f"which is not in {out}/weights.safetensors, expected one of {one}/adapter.safetensors:0.5",
        ),
        (out, f"{one}:1", f"which is not in {out}/weights.safetensors, expected one of {one}"),
        (one, one, "was not merged"),
    ):
        assert main(["unmerge", merged, adapter, "--out", back]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert main(["unmerge", out, one, one, "--out", back]) == 1  # once is all that there is of it
    assert "expected one of no more" in capsys.readouterr().err
    save_file({**tensors(out), QUERY: tensors(out)[QUERY] + 1}, Path(out) / "weights.safetensors")
    assert main(["unmerge", out, one, "--out", back]) == 1
    assert "is not the file that its card was written for" in capsys.readouterr().err
    assert not Path(back).exists()


def test_nothing_is_written_over(places: dict[str, str], capsys: Any) -> None:
    base, one, *_ = places.values()
    digest = short_hash(Path(base) / "weights.safetensors")
    for folder in (base, one):
        assert main(["merge", base, one, "--out", folder]) == 1
        assert "safetensors already; name another --out, or remove it" in capsys.readouterr().err
    assert short_hash(Path(base) / "weights.safetensors") == digest


def test_show_says_what_an_adapter_is(places: dict[str, str], capsys: Any) -> None:
    base, one, *_ = places.values()
    assert main(["show", one]) == 0
    shown = capsys.readouterr().out
    size, whole = (
        path.stat().st_size for path in (Path(one, "adapter.safetensors"), Path(base, "weights.safetensors"))
    )
    digest = short_hash(Path(base) / "weights.safetensors")
    for line in (
        f"{size:,}, {size / whole:.2%} of its base",
        f"base     {digest}, {base}",
        "rank     2, alpha 3",
    ):
        assert line in shown
    assert main(["show", base]) == 1
    assert "there is no adapter" in capsys.readouterr().err
    Path(base).rename(base + "_moved")
    assert main(["show", f"{one}/adapter.safetensors"]) == 0
    assert "its base is not there" in capsys.readouterr().out
