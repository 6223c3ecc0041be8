"""Merge adapters into the prior or decoder that they sit beside, take them out again, or say what they are.

Which base an adapter fits is compared by its hash. Merged weights are written in float32, because in half
precision they would not lead back to their base.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crest.config import guarded
from crest.errors import WeightsError

if TYPE_CHECKING:
    from crest.adapter_files import Adapter


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m crest.adapt merge | unmerge | show …`: 0 done, 1 refused."""
    doc = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m crest.adapt", description=doc)
    commands = parser.add_subparsers(dest="command", required=True)
    beside = "a run folder or file, at scale 1 or, as in ADAPTER:0.5, at another"
    joined = commands.add_parser("merge", help="a base with adapters as weights of their own")
    joined.add_argument("base", metavar="BASE", help="as a config names it; BASE+ADAPTER too")
    joined.add_argument("adapters", nargs="+", metavar="ADAPTER", help=beside)
    joined.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    joined.add_argument("--half", action="store_true", help="in float16, half the bytes; can't be taken back")
    taken = commands.add_parser("unmerge", help="merged weights without some of their adapters")
    taken.add_argument("merged", metavar="MERGED", help="a folder that merge, or run.export merged, wrote")
    taken.add_argument("adapters", nargs="+", metavar="ADAPTER", help="those to take out")
    taken.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    shown = commands.add_parser("show", help="what an adapter is and belongs to")
    shown.add_argument("place", metavar="FILE", help="a run folder or file")
    told = parser.parse_args(argv)
    if told.command == "merge":
        return guarded(lambda: merge(told.base, told.adapters, told.out, half=told.half))
    if told.command == "unmerge":
        return guarded(lambda: unmerge(told.merged, told.adapters, told.out))
    return guarded(lambda: print(show(told.place)))


def merge(base: str, adapters: Sequence[str], out: Path, *, half: bool = False) -> None:
    """Write the weights that BASE+ADAPTER… names, with a record of what they were made of.

    Args:
        adapters: places with or without a scale.
        half: as float16.
    Raises:
        WeightsError: an adapter of another base, or a folder that holds weights already.
    """
    from crest.adapter_files import parse

    place = "+".join((base, *adapters))
    model, card = _loaded(place, str(parse(place).adapters[0].card["of"]))
    card["merged"]["half"] = half
    path = _write(out, model, card, half)
    print(f"{path}: {card['kind']} {card['merged']['base']} with {_named(card['merged']['adapters'])}")


def unmerge(merged: str, adapters: Sequence[str], out: Path) -> None:
    """Write merged weights without these adapters: their base again, up to float32's rounding.

    Raises:
        WeightsError: weights without a record of a merge, or not those of the record; an adapter that is not
            in it, or at another scale; weights in half precision.
    """
    import torch

    from crest.adapter_files import ADAPTED, add_changes
    from crest.checkpoint import locate_weights, read_card
    from crest.records import file_hash, read_json

    path = locate_weights(merged, ADAPTED[1])
    kind = str(read_json(path.with_suffix(".json")).get("kind")) if path.with_suffix(".json").exists() else ""
    card = read_card(path, kind or ADAPTED[1])
    record = card.get("merged")
    if not record:
        raise WeightsError(
            f"{path}: was not merged, or nothing tells with what, expected a record in {path.stem}.json; "
            "take the base itself."
        )
    if card["sha256"] != file_hash(path):
        raise WeightsError(
            f"{path}: is not the file that its card was written for, so nothing is known of a merge; copy "
            "both again."
        )
    if record.get("half"):
        raise WeightsError(
            f"{path}: was rounded to float16 when it was merged and can't be taken back; take the base, "
            f"{record['place']} ({record['base']})."
        )
    left = list(record["adapters"])
    chosen = [_taken(place, left, path) for place in adapters]
    model, card = _loaded(str(path), kind)
    with torch.no_grad():
        add_changes(model.state_dict(), chosen, sign=-1.0)
    if left:
        from crest.records import hash_of

        counted = sorted((one["hash"], one["scale"]) for one in left if one["scale"])
        digest = hash_of(record["base"], counted) if counted else record["base"]
        card["merged"] = {**record, "adapters": left, "hash": digest}
    else:
        card |= {"parents": record["parents"], "spec": record["spec"] or card["spec"]}
        del card["merged"]
        card |= {"merged": record["before"]} if record["before"] else {}
        card["restored"] = {"base": record["base"], "place": record["place"]}
    path = _write(out, model, card)
    rest = f", still with {_named(left)}" if left else f", the {kind} {record['base']} again"
    print(f"{path}: without {', '.join(one.said for one in chosen)}{rest}")


def _taken(place: str, left: list[dict[str, Any]], path: Path) -> Adapter:
    """The adapter at the scale that it was merged at; it leaves the list."""
    from dataclasses import replace

    from crest.adapter_files import read_adapter, scaled
    from crest.adapters import ADAPTER

    name, scale = scaled(place)
    file = Path(name) / ADAPTER if Path(name).is_dir() else Path(name)
    adapter = read_adapter(file)
    for line in left:
        if line["hash"] == adapter.hash and scale in (None, line["scale"]):
            left.remove(line)
            return replace(adapter, scale=line["scale"])
    raise WeightsError(
        f"{place}: is {adapter.hash}, which is not in {path}, expected one of {_named(left) or 'no more'}; "
        "name those that were merged, at their scales or without."
    )


def show(place: str) -> str:
    """What an adapter is, as lines for a terminal.

    Raises:
        WeightsError: no adapter.
    """
    from crest.adapter_files import read_adapter
    from crest.adapters import ADAPTER
    from crest.checkpoint import locate_weights
    from crest.errors import CrestError

    file = Path(place) / ADAPTER if Path(place).is_dir() else Path(place)
    if not file.is_file():
        raise WeightsError(
            f"{file}: there is no adapter; expected a run folder with {ADAPTER} or such a file."
        )
    adapter = read_adapter(file)
    card, size = adapter.card, file.stat().st_size
    try:
        whole = locate_weights(str(card["place"]), str(card["of"])).stat().st_size
        share = f", {size / whole:.2%} of its base"
    except CrestError:
        share = ", its base is not there"
    number = card.get("unet_number")
    rows = [
        ("file", f"{file}, {adapter.hash}"),
        ("of", f"a {card['of']}" + (f", unet_number {number}" if number else "") + f" ({card['family']})"),
        ("base", f"{adapter.base}, {card['place']}"),
        ("bytes", f"{size:,}{share}"),
        ("rank", f"{card['rank']}, alpha {card['alpha']:g}, beside {len(card['scales'])} matrices"),
        ("targets", ", ".join(card["targets"])),
        ("parents", ", ".join(f"{name} {digest}" for name, digest in card["parents"].items()) or "none"),
        ("made", f"step {card['step']}, recipe {card['recipe']}"),
    ]
    return "\n".join(f"{name:<8} {value}" for name, value in rows)


def _loaded(place: str, kind: str) -> tuple[Any, dict[str, Any]]:
    from crest.models.families import KIND_PRIOR, load_decoder_family, load_prior_family

    load = load_prior_family if kind == KIND_PRIOR else load_decoder_family
    model, _, card = load(place)
    return model, card


def _write(out: Path, model: Any, card: Mapping[str, Any], half: bool = False) -> Path:
    from crest.checkpoint import export_weights, exported
    from crest.models.fingerprint import probe

    if (found := exported(out)) is not None:
        raise WeightsError(f"{out}: holds {found.name} already; name another --out, or remove it.")
    told = {name: value for name, value in card.items() if name != "sha256"}
    if "probe" in told:
        model.eval()
        told["probe"] = probe(model)
    return export_weights(out, model, told, half=half)


def _named(lines: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{line['path']}:{line['scale']:g} ({line['hash']})" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
