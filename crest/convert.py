"""Turn published weights of a prior or decoder (dalle2-pytorch up to release 1.1) into ours, once.

Of a place (see crest/hub_files.py) comes a verified file, of that its tensors, none of which is unpickled,
of those weights.safetensors and a card. What was converted before is left as it is; what was interrupted goes
on: a download where it stopped, a decoder of several U-Nets with the first that is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from crest.config import guarded
from crest.errors import WeightsError
from crest.hub_files import (
    CARD,
    PUBLISHED,
    WEIGHTS,
    conversion_folder,
    is_remote,
    kept_hash,
    local_file,
    split_unet,
)
from crest.records import file_hash, read_json

if TYPE_CHECKING:
    from crest.models.published_containers import Chosen


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m crest.convert PLACE [--config JSON] [--out FOLDER] …`; the exit status."""
    doc = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m crest.convert", description=doc)
    parser.add_argument("place", help="owner/name:path/in/it of a hub, https://…, or a path")
    parser.add_argument(
        "--config", metavar="PLACE", help="JSON published with it; absent: what is inside, or known"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="absent: where model.start finds it by PLACE"
    )
    parser.add_argument(
        "--unet-number", type=int, metavar="N", help="of a decoder, from 1; absent: all in the file"
    )
    parser.add_argument("--sha256", metavar="HEX", help="what the file must be")
    told = parser.parse_args(argv)

    def work() -> None:
        paths = convert_place(
            told.place, told.config, told.out, unet_number=told.unet_number, sha256=told.sha256
        )
        for path in paths:
            print(f'name it in a config: "{path.parent}"' + (f' or "{told.place}"' if not told.out else ""))

    return guarded(work)


@dataclass(frozen=True)
class _Job:
    """What a folder of converted weights is made from."""

    place: str
    config: str | None
    config_sha256: str | None
    """of a JSON on this machine"""
    sha256: str | None
    """of the file, as far as it is known without asking for it"""

    def is_done(self, folder: Path) -> bool:
        """Whether a folder holds what it would.

        Raises:
            WeightsError: it holds something else.
        """
        if not ((folder / CARD).exists() and (folder / WEIGHTS).exists()):
            return False
        card = read_json(folder / CARD)
        made = card.get("published", {}).get("file", {})
        ours = (self.place, self.config, self.config_sha256, self.sha256 or made.get("sha256"))
        if tuple(made.get(name) for name in ("place", "config", "config_sha256", "sha256")) != ours:
            what = made.get("place") or f"another {card.get('kind')}"
            raise WeightsError(
                f"{folder}: holds weights of {what}, of another file or with another config, expected those "
                f"of {self.place}; name another --out, or remove it."
            )
        print(f"{folder / WEIGHTS}: was converted before; nothing to do")
        return True


def convert_place(
    place: str,
    config: str | None = None,
    out: Path | None = None,
    *,
    unet_number: int | None = None,
    sha256: str | None = None,
    trained: bool = True,
) -> list[Path]:
    """Convert what a place names, unless that was done, and tell what was left out.

    Args:
        config: place of the JSON that was published with it; None: what the file holds, or what is known of
            the place.
        out: folder of the result, with a folder `unet_N` for each U-Net where a decoder has several and none
            was asked for; None: one by which `model.start` finds it under its place.
        unet_number: only that U-Net; `place#N` says the same.
        sha256: what the file must be.
        trained: as for `convert_file`.
    Returns:
        the weights files.
    Raises:
        FetchError, DeviceError: the file can't be had.
        ConfigError: a field of the config that Crest cannot translate.
        WeightsError: a file that is not what was expected, does not fit its config, or whose network answers
            as a random one; or a folder that holds something else.
    """
    place, number = split_unet(place)
    number = unet_number or number
    folder = out or conversion_folder(place, number)
    if config is None and place in PUBLISHED:
        config = PUBLISHED[place].config
    here = Path(config) if config is not None and not is_remote(config) else None
    known = kept_hash(place)
    job = _Job(
        place,
        config,
        file_hash(here) if here is not None and here.is_file() else None,
        sha256.lower() if sha256 else known,
    )
    done = _done(folder, job, number)
    if done:
        return done
    file = local_file(place, sha256=sha256)
    print(file.said)
    path = local_file(config).path if config is not None else None
    told = {
        "place": place,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "sha256_told_by": file.known_by,
        "config": config,
        "config_sha256": job.config_sha256,
    }
    job = dataclasses.replace(job, sha256=file.sha256)
    return convert_file(
        file.path, path, folder, number, name=place, told=told, is_done=job.is_done, trained=trained
    )


def _done(folder: Path, job: _Job, number: int | None) -> list[Path]:
    """The weights that were made of the same before; none where something is missing."""
    if job.is_done(folder):
        return [folder / WEIGHTS]
    numbered = [] if number else sorted(folder.glob("unet_*/" + CARD))
    if not numbered or len(numbered) != read_json(numbered[0])["published"]["file"]["unets"]:
        return []
    return [card.parent / WEIGHTS for card in numbered if job.is_done(card.parent)]


def convert_file(
    file: Path,
    config: Path | None,
    out: Path,
    unet_number: int | None = None,
    *,
    name: str = "",
    told: Mapping[str, Any] = MappingProxyType({}),
    is_done: Callable[[Path], bool] = lambda _: False,
    trained: bool = True,
) -> list[Path]:
    """Write `weights.safetensors` and its card, for each U-Net of a decoder, and tell what was left out.

    Args:
        name: of the file, for messages.
        told: for the card: what is known of the file.
        is_done: whether a folder is left as it is.
        trained: refuse weights that answer as random ones do; False is for weights that are random.
    """
    from crest.models.published_containers import choose

    name = name or str(file)
    chosen = choose(_read(file), name)
    numbers = [unet_number] if unet_number else (chosen.unets or [1])
    folders = [out] if len(numbers) == 1 else [out / f"unet_{number}" for number in numbers]
    for number, folder in zip(numbers, folders, strict=True):
        if not is_done(folder):
            _convert_one(chosen, config, folder, number, name, {**told, "unets": len(numbers)}, trained)
    return [folder / WEIGHTS for folder in folders]


def _convert_one(
    chosen: Chosen,
    config: Path | None,
    folder: Path,
    number: int,
    name: str,
    told: Mapping[str, Any],
    trained: bool,
) -> None:
    from crest.models.published import convert, fill

    container = {"model": chosen.tensors, "config": chosen.config}
    published = fill(container, config, file=name, unet_number=number, trained=trained)
    weights = published.weights
    taken = len(weights.tensors) - len(weights.added)
    assert taken + sum(weights.dropped.values()) == len(chosen.tensors), "neither taken nor counted"
    dropped = {**chosen.dropped, **weights.dropped}
    facts = {"weights": chosen.which, "release": chosen.release, "dropped": dropped, "file": dict(told)}
    path = convert(published, folder, name, facts)
    print(f"weights: {chosen.which}" + (f", of dalle2-pytorch {chosen.release}" if chosen.release else ""))
    for reason, count in dropped.items():
        print(f"left out: {count} of {reason}")
    for added in weights.added:
        print(f"zero, because the file is older than it: {added}")
    kind, arithmetic = published.translation.kind, published.translation.spec.arithmetic
    print(f"{path}: a {kind}, {len(weights.tensors)} tensors, arithmetic {arithmetic}")


def _read(file: Path) -> Mapping[Any, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    from crest.pickles import read_pickle

    return read_pickle(file)


if __name__ == "__main__":
    sys.exit(main())
