"""Published weights by name: a repository of the Hugging Face hub, or a mirror, as a local folder; and back.

The only file that knows huggingface_hub; single files are crest/hub_files.py's. HF_ENDPOINT names a mirror,
HF_HUB_OFFLINE and HF_HOME mean what they mean there. A hub that can't be reached is told at once, in one
sentence, unless the repository was had before. Takes configuration, vocabularies and weights only: code from
a repository is not even fetched. The token is read from the environment and kept nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crest.downloads import is_offline, unreachable
from crest.errors import FetchError
from crest.records import read_json

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
PATIENCE_S: Final = 10.0
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL: Final = (".json", ".txt", ".txt.gz", ".model", ".jinja", ".tiktoken")
_WEIGHTS: Final = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
)
"""The best form first; a repository that has both is taken in one."""


@dataclass(frozen=True)
class Snapshot:
    """One state of a repository, on this machine."""

    folder: Path
    commit: str
    """40 hex digits"""


def is_hub_name(place: str) -> bool:
    """Whether this could be a repository's name ("owner/name") rather than a path."""
    return _NAME.fullmatch(place) is not None and not Path(place).exists()


def endpoint() -> str:
    """The hub that is asked: HF_ENDPOINT, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def wanted(names: Sequence[str]) -> list[str]:
    """The files of a repository that loading needs: small ones of its top folder, one form of weights."""
    chosen = [name for name in names if "/" not in name and name.endswith(_SMALL)]
    for form in _WEIGHTS:
        weights = [name for name in names if form.fullmatch(name)]
        if weights:
            return sorted(chosen + weights)
    return sorted(chosen)


def fetch(name: str, revision: str | None = None, *, cache_dir: Path | None = None) -> Snapshot:
    """Download what is needed of a repository, or take it from the cache.

    Args:
        revision: commit, branch or tag; None: the default branch.
        cache_dir: None: the hub's own cache (HF_HUB_CACHE, HF_HOME).
    Raises:
        FetchError: no such repository or revision, no right to read it, or a hub that does not answer and a
            cache that lacks it.
    """
    cache_dir = cache_dir or _cache_of_the_environment()
    try:
        # asked first and once: the library would try again and again for every single file
        commit, listed = _asked(name, revision)
    except _SilenceError as silence:
        known = _cached(name, revision, cache_dir)
        if known is not None:
            return known
        raise silence.told() from None
    names = wanted(listed)
    if "config.json" not in names:
        raise FetchError(f"{name}: holds no config.json at {commit[:12]}, so no model; check the name.")
    folder = _download(name, names, commit, cache_dir)
    _note(folder, revision or "main", commit)
    return Snapshot(folder, commit)


def fetch_files(
    name: str,
    alternatives: Sequence[Sequence[str]],
    *,
    also_small: bool = False,
    cache_dir: Path | None = None,
) -> Path:
    """A folder with certain files of a repository: from the cache, and only what it lacks from the hub.

    Args:
        alternatives: sets of files, the best first; the first that is there whole will do.
        also_small: download the repository's other small files with it.
        cache_dir: None: the hub's own cache (HF_HUB_CACHE, HF_HOME).
    Raises:
        FetchError: neither the cache nor the hub has them.
    """
    from huggingface_hub import try_to_load_from_cache

    cache_dir = cache_dir or _cache_of_the_environment()
    for names in alternatives:
        found = [try_to_load_from_cache(name, file, cache_dir=cache_dir) for file in names]
        if all(isinstance(path, str) for path in found):
            return Path(str(found[0])).parent
    try:
        commit, listed = _asked(name, None)
    except _SilenceError as silence:
        raise silence.told() from None
    chosen = next((names for names in alternatives if set(names) <= set(listed)), None)
    if chosen is None:
        expected = " or ".join(", ".join(names) for names in alternatives)
        raise FetchError(f"{name}: holds no {expected} at {commit[:12]}; check the name.")
    small = [file for file in listed if "/" not in file and file.endswith(_SMALL)] if also_small else []
    folder = _download(name, sorted({*chosen, *small}), commit, cache_dir)
    _note(folder, "main", commit)
    return folder


class _SilenceError(Exception):
    """The hub was asked, and did not answer."""

    def __init__(self, name: str, revision: str | None, why: str) -> None:
        super().__init__(name)
        self._name, self._at, self._why = name, f" at {revision}" if revision else "", why

    def told(self) -> FetchError:
        return FetchError(
            f"{self._name}: is no folder on this machine, and {endpoint()} could not be asked for it"
            f"{self._at} ({self._why}); connect, set HF_ENDPOINT to a mirror, or download the repository and "
            "name its folder."
        )


def _asked(name: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit of a repository and the names of its files; one question, asked once."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = endpoint()
    if is_offline():
        raise _SilenceError(name, revision, "HF_HUB_OFFLINE is set")
    if why := unreachable(hub):  # the library would wait for a name that does not resolve
        raise _SilenceError(name, revision, why)
    try:
        info = HfApi(endpoint=hub).model_info(name, revision=revision, timeout=PATIENCE_S)
    except GatedRepoError:
        raise FetchError(
            f"{name}: its owner asks for consent first; accept the terms at {hub}/{name} and set HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise FetchError(
            f"{name}: is no folder on this machine, and {hub} has no such repository (or HF_TOKEN may not "
            "read it); check the name."
        ) from None
    except RevisionNotFoundError:
        raise FetchError(f"{name}: {hub} has no revision {revision}; check caption.revision.") from None
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx2.HTTPError, ValueError) as error:
        why = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else _told(error)
        raise _SilenceError(name, revision, why) from None
    return str(info.sha), [sibling.rfilename for sibling in info.siblings or ()]


def _download(name: str, names: Sequence[str], commit: str, cache_dir: Path | None) -> Path:
    import httpx2
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    hub = endpoint()
    try:
        paths = [
            hf_hub_download(name, file, revision=commit, endpoint=hub, cache_dir=cache_dir) for file in names
        ]
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx2.HTTPError) as error:
        raise FetchError(
            f"{name}: {hub} stopped answering in mid-download ({_told(error)}); run the same command again, "
            "what came is kept."
        ) from None
    return Path(paths[0]).parent


def token() -> str:
    """What proves to the hub who publishes: HF_TOKEN, and nothing that a file of this machine holds.

    Raises:
        FetchError: it is not set.
    """
    found = os.environ.get("HF_TOKEN", "").strip()
    if not found:
        raise FetchError(
            f"HF_TOKEN: is not set, expected a token that may write to {endpoint()}; make one at "
            f"{endpoint()}/settings/tokens and export it."
        )
    return found


def publish(folder: Path, name: str, *, private: bool, message: str, marks: Sequence[str]) -> str:
    """Upload a folder as one commit of a model repository, which is made if there is none.

    Args:
        name: "owner/name".
        private: of a repository that is made; one that exists keeps its own setting.
        message: of the commit.
        marks: files one of which tells a repository of this kind from others.
    Returns:
        the commit's address.
    Raises:
        FetchError: no token (HF_TOKEN), one that may not write, a repository of another kind, or a hub that
            does not answer.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    hub = endpoint()
    api = HfApi(endpoint=hub, token=token())
    try:
        _refuse_another_kind(api, name, marks)
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message).commit_url)
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx2.HTTPError, ValueError, OSError) as error:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status in (401, 403):
            raise FetchError(
                f"{name}: {hub} refused HF_TOKEN (status {status}), expected a token that may write there; "
                "make one with write access, or name a repository of your own."
            ) from None
        why = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else _told(error)
        raise FetchError(
            f"{name}: {hub} did not take the upload ({why}); run the same command again, what was uploaded "
            "is not sent twice."
        ) from None


def _refuse_another_kind(api: Any, name: str, marks: Sequence[str]) -> None:
    """Raise where the name belongs to something else than what is to be written there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(name, timeout=PATIENCE_S)
    except RepositoryNotFoundError:
        for kind in ("dataset", "space"):
            if api.repo_exists(name, repo_type=kind):
                raise FetchError(
                    f"{name}: is a {kind} on {endpoint()}, expected a model or nothing; take another name."
                ) from None
        return
    files = {sibling.rfilename for sibling in info.siblings or ()} - {".gitattributes", "README.md"}
    if files and not files & set(marks):
        raise FetchError(
            f"{name}: holds {min(files)} and none of {', '.join(marks)}, so a model of another kind; name "
            "another repository."
        )


def _cache_of_the_environment() -> Path | None:
    """What the library would read when it is imported, read now."""
    if place := os.environ.get("HF_HUB_CACHE"):
        return Path(place)
    return Path(place) / "hub" if (place := os.environ.get("HF_HOME")) else None


def _note(folder: Path, revision: str, commit: str) -> None:
    """Remember which commit a branch or tag meant, as the hub's own cache does, for when there is no hub."""
    path = folder.parents[1] / "refs" / revision
    if revision != commit:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit, encoding="utf-8")


def _cached(name: str, revision: str | None, cache_dir: Path | None) -> Snapshot | None:
    """A snapshot that was downloaded whole before."""
    from huggingface_hub import try_to_load_from_cache

    found: Any = try_to_load_from_cache(name, "config.json", cache_dir=cache_dir, revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return Snapshot(folder, folder.name) if is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """Whether a folder has a configuration and all the weights that it speaks of."""
    if not (folder / "config.json").exists():
        return False
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).exists():
            return all(
                (folder / part).exists() for part in set(read_json(folder / index)["weight_map"].values())
            )
    return (folder / "model.safetensors").exists() or (folder / "pytorch_model.bin").exists()


def _told(error: Exception) -> str:
    """The first line of an error, without the library's advice."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
