"""Single files of published weights: a name, an address or a path -> a verified file of this machine.

A place is one of three, also wherever a config names weights:

- `owner/name:path/in/it`, a file of a repository of the hub, or `owner/name@revision:path/in/it`;
- an address, `https://…`;
- a path.

A decoder of several U-Nets may be followed by `#2`, the U-Net that is meant. Files of the first two are kept
under HF_HOME and asked for once; HF_ENDPOINT names a mirror, HF_HUB_OFFLINE leaves the network alone,
HF_TOKEN opens what is not public.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from crest import hub
from crest.downloads import Expected, download, head, is_offline, unreachable
from crest.errors import FetchError, WeightsError
from crest.records import file_hash, read_json, write_json

WEIGHTS: Final = "weights.safetensors"
CARD: Final = "weights.json"
_FILE: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w][\w./-]*))?:([^:]+)")
_PICKLED: Final = (".pth", ".pt", ".ckpt", ".bin")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PublishedFile:
    """What is known of a file that others published."""

    config: str
    """place of the JSON that belongs to it"""
    size_bytes: int | None = None
    sha256: str | None = None


PUBLISHED: Final[Mapping[str, PublishedFile]] = {
    "laion/DALLE2-PyTorch:prior/latest.pth": PublishedFile("laion/DALLE2-PyTorch:prior/prior_config.json"),
    "laion/DALLE2-PyTorch:prior/best.pth": PublishedFile("laion/DALLE2-PyTorch:prior/prior_config.json"),
    "laion/DALLE2-PyTorch:decoder/v1.0.2/latest.pth": PublishedFile(
        "laion/DALLE2-PyTorch:decoder/v1.0.2/decoder_config.json", size_bytes=3_930_800_893
    ),
    "nousr/conditioned-prior:vit-l-14/aesthetic/best.pth": PublishedFile(
        "nousr/conditioned-prior:vit-l-14/aesthetic/prior_config.json"
    ),
}
"""None of their SHA-256 was published outside the hub: there, what the hub says of a file is compared."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository of the hub."""

    repository: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        """Where the hub, or its mirror, gives it."""
        revision, path = quote(self.revision, safe=""), quote(self.path)
        return f"{hub.endpoint()}/{self.repository}/resolve/{revision}/{path}"


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine, and what is known of it."""

    place: str
    """as it was named, without the U-Net"""
    path: Path
    size_bytes: int
    sha256: str
    known_by: str
    """who told its SHA-256 before it came: "you", "Crest", "the hub"; empty when nobody did"""
    has_known_size: bool = False
    """whether its size was told before it came"""

    @property
    def said(self) -> str:
        """One line for people."""
        size = " as expected" if self.has_known_size else ""
        known = f"as {self.known_by} told" if self.known_by else "which nobody told beforehand"
        return f"{self.path}: {self.size_bytes} bytes{size}, SHA-256 {self.sha256}, {known}"


def hub_file(place: str) -> HubFile | None:
    """The file of a hub that a place names; None for a path or an address."""
    found = _FILE.fullmatch(split_unet(place)[0])
    if found is None or Path(place).exists():
        return None
    repository, revision, path = found.groups()
    if any(part in ("", ".", "..") for part in [*path.split("/"), *(revision or "main").split("/")]):
        return None
    return HubFile(repository, revision or "main", path)


def is_url(place: str) -> bool:
    """Whether a place is an address."""
    return place.startswith(("https://", "http://"))


def is_remote(place: str) -> bool:
    """Whether a place names a file that is not on this machine by itself."""
    return is_url(place) or hub_file(place) is not None


def is_published(place: str) -> bool:
    """Whether a place names a file as others publish them, which is converted before it is used."""
    path = Path(split_unet(place)[0])
    return is_remote(place) or (path.suffix in _PICKLED and not path.is_dir())


def split_unet(place: str) -> tuple[str, int | None]:
    """A place without the U-Net it asks for, and that number."""
    head_, mark, number = place.rpartition("#")
    return (head_, int(number)) if mark and number.isdigit() and not Path(place).exists() else (place, None)


def home() -> Path:
    """The folder of what Crest keeps for all projects: `crest` under HF_HOME."""
    place = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME")
    base = Path(place) if place else (Path(cache) if cache else Path.home() / ".cache") / "huggingface"
    return base.expanduser() / "crest"


def slug(place: str) -> str:
    """A folder name for a place, readable and its own."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", place)[-80:].strip("-.")
    return f"{readable}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def local_file(place: str, *, sha256: str | None = None, size_bytes: int | None = None) -> LocalFile:
    """The verified file behind a place; one that was had before is not asked for again.

    Args:
        place: name, address or path; see the module.
        sha256, size_bytes: what it must be, where the user knows; before what Crest and the hub know.
    Raises:
        FetchError: it can't be had, said within two seconds where there is no network.
        WeightsError: it is another file than was expected.
        DeviceError: the disk is full.
    """
    place, _ = split_unet(place)
    known = PUBLISHED.get(place, PublishedFile(""))
    told = Expected(size_bytes or known.size_bytes, sha256.lower() if sha256 else known.sha256)
    by = "you" if sha256 else "Crest" if told.sha256 else ""
    if told.sha256 is not None and not _SHA256.fullmatch(told.sha256):
        raise FetchError(f"{place}: found the sha256 {sha256}, expected 64 hex digits; copy it whole.")
    if not is_remote(place):
        return _on_this_machine(place, told, by)
    path = _kept_at(place)
    kept = _kept(place, path, told, by)
    return kept if kept is not None else _fetched(place, path, told, by)


def kept_hash(place: str) -> str | None:
    """The SHA-256 of the file behind a place, where it is known without asking anybody for it."""
    if is_remote(place):
        card = _card(_kept_at(place))
        return str(read_json(card)["sha256"]) if card.exists() else None
    return file_hash(Path(place)) if Path(place).is_file() else None


def conversion_folder(place: str, unet_number: int | None = None) -> Path:
    """Where crest.convert puts weights, and `model.start` looks for them, unless another folder is named.

    Under HF_HOME for a name or an address; beside the file for a path.
    """
    place, number = split_unet(place)
    number = unet_number or number
    path = Path(place)
    folder = home() / "converted" / slug(place) if is_remote(place) else path.with_name(f"{path.name}.crest")
    return folder / f"unet_{number}" if number else folder


def converted(place: str, kind: str) -> Path:
    """The weights file that crest.convert made of a place.

    Raises:
        WeightsError: it was not converted yet, or has several U-Nets and none is named.
    """
    base, number = split_unet(place)
    whole = conversion_folder(base)
    for folder in (conversion_folder(place), whole):
        if (folder / CARD).exists() and (folder / WEIGHTS).exists():
            made = read_json(folder / CARD).get("spec", {}).get("unet_number", 1)
            if number in (None, made):
                return folder / WEIGHTS
    several = sorted(card.parent.name.removeprefix("unet_") for card in whole.glob("unet_*/" + CARD))
    if several and number is None:
        named = " or ".join(f"{base}#{one}" for one in several)
        raise WeightsError(f"{place}: holds several U-Nets, expected one of them for a {kind}; name {named}.")
    raise WeightsError(
        f"{place}: was not converted yet, so there are no {kind} weights of it; run python -m crest.convert "
        f"{place} first (once)."
    )


def _on_this_machine(place: str, told: Expected, by: str) -> LocalFile:
    path = Path(place)
    if not path.is_file():
        hint = "name a file"
        if not path.exists():
            hint = 'a file of the hub is written "owner/name:path/in/it", an address begins with https://'
        raise FetchError(f"{place}: there is no such file; {hint}.")
    found = LocalFile(place, path, path.stat().st_size, file_hash(path), by, told.size_bytes is not None)
    _compare(found, told, "name another file, or copy it again")
    return found


def _kept_at(place: str) -> Path:
    file = hub_file(place)
    if file is not None:
        folder = f"{file.repository.replace('/', '--')}@{file.revision.replace('/', '--')}"
        return home() / "files" / folder / file.path
    name = Path(urlsplit(place).path).name or "file"
    return home() / "files" / slug(place) / name


def _card(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _kept(place: str, path: Path, told: Expected, by: str) -> LocalFile | None:
    """What was downloaded and verified before."""
    if not (path.exists() and _card(path).exists()):
        return None
    card = read_json(_card(path))
    if card.get("size_bytes") != path.stat().st_size:
        path.unlink()  # somebody else wrote to it: it is no longer what was verified
        return None
    found = LocalFile(place, path, card["size_bytes"], card["sha256"], by or card["known_by"], card["sized"])
    _compare(found, told, f"check it, or remove {path} to have it again")
    return found


def _compare(found: LocalFile, told: Expected, remedy: str) -> None:
    if told.size_bytes not in (None, found.size_bytes):
        raise WeightsError(
            f"{found.path}: is {found.size_bytes} bytes, expected {told.size_bytes}; {remedy}."
        )
    if told.sha256 not in (None, found.sha256):
        raise WeightsError(f"{found.path}: has the SHA-256 {found.sha256}, expected {told.sha256}; {remedy}.")


def _fetched(place: str, path: Path, told: Expected, by: str) -> LocalFile:
    file = hub_file(place)
    url = place if file is None else file.url
    if is_offline():
        raise FetchError(
            f"{place}: is not in {home() / 'files'}, and HF_HUB_OFFLINE is set; unset it, or name a file."
        )
    why = unreachable(url)
    if why is not None:
        server = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
        raise FetchError(
            f"{place}: is not on this machine, and {server} can't be reached ({why}); connect, set "
            "HF_ENDPOINT to a mirror, or name a file."
        )
    secret: dict[str, str] = {}
    if file is not None:
        token = os.environ.get("HF_TOKEN", "").strip()
        secret = {"Authorization": f"Bearer {token}"} if token else {}
        said = _said_by_hub(place, file, secret)
        if None not in (told.sha256, said.sha256) and told.sha256 != said.sha256:
            raise WeightsError(
                f"{place}: has the SHA-256 {said.sha256} on {hub.endpoint()}, expected {told.sha256}; it was "
                "changed there: name the revision that you mean as owner/name@revision:path."
            )
        by = by or ("the hub" if said.sha256 else "")
        told = Expected(told.size_bytes or said.size_bytes, told.sha256 or said.sha256)
    found = download(url, path, told, secret=secret)
    file_ = LocalFile(place, path, path.stat().st_size, found, by, told.size_bytes is not None)
    card = {"url": url, "size_bytes": file_.size_bytes, "sha256": found, "known_by": by}
    write_json(_card(path), {**card, "sized": file_.has_known_size})
    return file_


def _said_by_hub(place: str, file: HubFile, secret: Mapping[str, str]) -> Expected:
    """What the hub tells of a file: large ones lie there under their SHA-256."""
    status, headers = head(file.url, secret)
    code = headers.get("x-error-code", "")
    if status in (401, 403) or code == "GatedRepo":
        raise FetchError(
            f"{place}: {hub.endpoint()} shows it to its readers only (status {status}), or has no such "
            "repository; check the name, accept its terms there and set HF_TOKEN."
        )
    if status == 404:
        what = {"EntryNotFound": f"no file {file.path}", "RevisionNotFound": f"no revision {file.revision}"}
        lacks = what.get(code, f"no repository {file.repository}")
        raise FetchError(f"{place}: {hub.endpoint()} has {lacks}; check the name.")
    if not 200 <= status < 400:
        raise FetchError(f"{place}: {hub.endpoint()} answered with status {status}; try later.")
    tag = headers.get("x-linked-etag", headers.get("etag", "")).strip('"')
    size = headers.get("x-linked-size", "")
    return Expected(int(size) if size.isdigit() else None, tag if _SHA256.fullmatch(tag) else None)
