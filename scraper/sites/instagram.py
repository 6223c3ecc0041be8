"""What instaloader left on disk -> entries; and, where it is installed, the call that fetches a profile.

The only file that knows instaloader. Words are those of the post without the hashtags at its end. Videos,
their thumbnails and profile pictures are counted and left; private profiles and log-ins are refused.
"""

from __future__ import annotations

import datetime
import json
import lzma
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from crest.errors import ConfigError, CrestError, DataError, FetchError
from crest.records import hash_of, write_json
from scraper.config import SourceConfig
from scraper.cut_text import tidy
from scraper.harvest import Drop
from scraper.sites import Card, Item, Listing, writable
from scraper.sites.folder import reading

PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".avif")
METADATA_SUFFIXES: Final = (".json.xz", ".json")
LOADER_SETTINGS: Final[Mapping[str, Any]] = {
    "quiet": True,
    "download_videos": False,
    "download_video_thumbnails": False,
    "download_geotags": False,
    "download_comments": False,
    "save_metadata": True,
    "compress_json": True,
    "post_metadata_txt_pattern": "",
    "iphone_support": False,
    "sanitize_paths": True,
}
"""Pictures and the words of their posts, nothing else."""
PINNED: Final = 3
"""Posts that a profile may show before its newest."""
ALT_WRITER: Final = "instagram"
"""Who is said to have written an alt text: nearly all are the site's own guesses."""
FETCHED: Final = ".fetched.json"
_NOT_POSTS: Final = re.compile(r"_(profile_pic|cover)(_\d+)?$")
_SLIDE: Final = re.compile(r"(?P<base>.+)_(?P<number>\d{1,2})$")
_HASHTAGS: Final = re.compile(r"(?:(?:(?:^|\s)[\s.•·\-–—_|]*|(?<=\w))[#＃]\w+)+[\s.•·\-–—_|]*$")
_ALT_START: Final = re.compile(
    r"^(Photo|Image|Photo shared|Video)( shared)? by .+? on \w+ \d+, \d{4}( tagging [^.]*)?\.\s*"
)
_NO_ALT: Final = "No photo description available."
_SENTENCES: Final = (
    (
        "TooManyRequestsException",
        "answered too many requests",
        "wait some hours and run the same command again",
    ),
    ("ProfileNotExistsException", "there is no such profile", "correct source.profile"),
    ("PrivateProfileNotFollowedException", "is private", "name a public profile"),
    (
        "LoginRequiredException",
        "wants a log-in (private, or too many visits)",
        "name a public profile, or wait",
    ),
    ("LoginException", "wants a log-in", "name a public profile, or wait"),
    ("AbortDownloadException", "turned us away", "wait some hours and run the same command again"),
    ("ConnectionException", "could not be reached", "check the network and run the same command again"),
    ("InstaloaderException", "could not be read", "run the same command again, or update instaloader"),
    ("OSError", "could not be reached", "check the network and run the same command again"),
)


class Loader(Protocol):
    """What is used of instaloader.Instaloader."""

    context: Any

    def download_profiles(self, profiles: set[Any], **settings: Any) -> None:
        """Fetch the posts of profiles."""
        ...


class Instagram:
    """The posts of a profile, as instaloader keeps them."""

    def open(self, source: SourceConfig) -> Listing:
        """List the pictures in the order of their names; fetches the profile first where one is named.

        Raises:
            DataError: no such folder, or no picture in it.
            ConfigError: a profile is named, but instaloader is not installed.
            FetchError: the profile could not be had.
        """
        assert source.path is not None
        if source.profile is not None:
            fetch(source.profile, source.path, source.posts)
        shown = "a folder that instaloader filled; correct source.path or set source.profile"
        if not source.path.is_dir():
            state = "is a file" if source.path.exists() else "there is no such folder"
            raise DataError(f"{source.path}: {state}, expected {shown}.")
        files = _files(source.path)
        pictures = sum(name.lower().endswith(PICTURE_SUFFIXES) for name in files)
        if not pictures:
            state = f"holds {len(files)} files but no picture" if files else "is empty"
            raise DataError(f"{source.path}: {state}, expected {shown}.")
        stats = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files.items()]
        entries = _entries(files, tidy(source.prompt or ""))
        return Listing(writable(entries), hash_of(stats), pictures=pictures)


def fetch(profile: str, folder: Path, posts: int) -> None:
    """Fetch a public profile's newest posts into a folder; a second call fetches what is new.

    Raises:
        ConfigError: instaloader is not installed.
        FetchError: the profile could not be had.
    """
    try:
        import instaloader
    except ImportError:
        raise ConfigError(
            f"source.profile: is {profile!r}, but instaloader is not installed, expected the extra "
            "instagram; run pip install -e '.[instagram]', or set it to null to read what is in source.path."
        ) from None

    class Hasty(instaloader.RateController):  # type: ignore[misc]
        """Ends the run at "too many requests", where instaloader would sleep for an hour and ask again."""

        def handle_429(self, query_type: str) -> None:
            raise instaloader.AbortDownloadException("too many requests")

    escaped = str(folder).replace("{", "{{").replace("}", "}}")
    loader = instaloader.Instaloader(dirname_pattern=escaped, rate_controller=Hasty, **LOADER_SETTINGS)
    try:
        fetch_profile(loader, instaloader.Profile.from_username, profile, folder, posts)
    finally:
        loader.close()


def fetch_profile(
    loader: Loader, find: Callable[[Any, str], Any], profile: str, folder: Path, posts: int
) -> None:
    """Let a loader fetch a profile.

    It stops at the first post that is there already, but only once all had been fetched: an interrupted run
    would never go beyond what it has.

    Args:
        loader: an instaloader.Instaloader.
        find: gives the profile by the loader's context and its name.
        profile: name of the profile.
        folder: where the loader writes.
        posts: how many at most.
    Raises:
        FetchError: it could not be had.
    """
    done = folder / FETCHED
    mark = {"profile": profile, "posts": posts}
    is_update = done.exists() and json.loads(done.read_text(encoding="utf-8")) == mark
    try:
        found = find(loader.context, profile)
        loader.download_profiles(
            {found}, profile_pic=False, fast_update=is_update, raise_errors=True, max_count=posts
        )
    except CrestError:
        raise
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        told = next((rest for name, *rest in _SENTENCES if name in names), None)
        if told is None:
            raise  # our own mistake, or instaloader's
        detail = re.sub(r"\s+", " ", str(error)).rstrip(".")[:120]
        raise FetchError(
            f"instagram.com/{profile}: {told[0]} ({detail}), expected a public profile; {told[1]}."
        ) from None
    write_json(done, mark)


@dataclass
class _Post:
    """The files of one post."""

    pictures: list[tuple[int, str]] = field(default_factory=list)
    """(number of the slide, 0 for a single one; name)"""
    videos: list[tuple[int, str]] = field(default_factory=list)
    metadata: str = ""
    text: str = ""


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not name.startswith("."):
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def _entries(files: Mapping[str, Path], prompt: str) -> Iterator[Item | Drop]:
    posts, apart = _posts(files)
    yield from apart
    for base, post in posts.items():
        node: Mapping[str, Any] = {}
        if post.metadata:
            try:
                kind, node = _node(files[post.metadata])
            except (ValueError, RecursionError, EOFError, OSError, lzma.LZMAError) as error:
                yield Drop("broken_metadata", f"{post.metadata}: {error}")
                kind = "Post"
            if kind != "Post":
                yield from (Drop("not_a_post", name) for _, name in (*post.pictures, *post.videos))
                continue
        text = "" if node else _text(files.get(post.text))
        filmed = _filmed(node) | {number for number, _ in post.videos}
        shown = {number for number, _ in (*post.videos, *post.pictures)}
        yield from (Drop("video", name) for _, name in post.videos)
        yield from (Drop("video", f"{base}: slide {number}") for number in sorted(filmed - shown - {0}))
        if filmed == {0} and not shown:
            yield Drop("video", base)
        for number, name in sorted(post.pictures):
            if number in filmed:
                yield Drop("video_thumbnail", name)
            else:
                yield Item(_card(base, number, node, text, prompt), name, reading(files[name]))


def _posts(files: Mapping[str, Path]) -> tuple[dict[str, _Post], list[Drop]]:
    """Files by the post that they belong to, and the pictures that belong to none."""
    posts: dict[str, _Post] = {}
    apart: list[Drop] = []
    for name in files:
        suffix = next((one for one in METADATA_SUFFIXES if name.lower().endswith(one)), "")
        if suffix:
            posts.setdefault(name[: -len(suffix)], _Post()).metadata = name
    for name in files:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - of a name within the folder
        suffix = suffix.lower()
        if suffix not in (*PICTURE_SUFFIXES, ".mp4", ".txt"):
            continue
        if suffix != ".txt" and _NOT_POSTS.search(stem):
            apart.append(Drop("profile_picture", name))
            continue
        base, number = _base(stem, posts)
        if suffix == ".txt":
            if base in posts or number == 0:
                posts.setdefault(base, _Post()).text = name
            continue
        post = posts.setdefault(base, _Post())
        (post.videos if suffix == ".mp4" else post.pictures).append((number, name))
    return dict(sorted(posts.items())), apart


def _base(stem: str, posts: Mapping[str, _Post]) -> tuple[str, int]:
    """The name of a post's files without the number of the slide."""
    slide = _SLIDE.match(stem)
    if stem in posts or slide is None:
        return stem, 0
    if slide["base"] in posts or slide["base"].endswith("_UTC"):
        return slide["base"], int(slide["number"])
    return stem, 0


def _node(path: Path) -> tuple[str, Mapping[str, Any]]:
    """What kind of thing the metadata is of, and what it says."""
    content = path.read_bytes()
    if path.name.lower().endswith(".xz"):
        content = lzma.decompress(content)
    value = json.loads(content)
    node = _object(value).get("node")
    if not isinstance(node, dict):
        raise ValueError("holds no node, expected what instaloader writes")
    return str(_object(value.get("instaloader")).get("node_type") or "Post"), node


def _text(path: Path | None) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path else ""


def _filmed(node: Mapping[str, Any]) -> set[int]:
    """The numbers of the slides that are videos; 0 where the post is one."""
    filmed = {number for number, slide in enumerate(_slides(node), start=1) if slide.get("is_video")}
    is_video = bool(node.get("is_video")) or node.get("__typename") == "GraphVideo"
    return filmed | ({0} if is_video else set())


def _slides(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _edges(node, "edge_sidecar_to_children")


def _edges(node: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    edges = _object(node.get(name)).get("edges")
    return [_object(_object(edge).get("node")) for edge in (edges if isinstance(edges, list) else [])]


def _object(value: object) -> Mapping[str, Any]:
    """A value that should be an object; empty for one that is something else, or missing."""
    return value if isinstance(value, dict) else {}


def _year(taken: object) -> str:
    """The year of a Unix time; empty where it is missing or damaged."""
    try:
        return str(datetime.datetime.fromtimestamp(float(str(taken)), datetime.UTC).year) if taken else ""
    except (ValueError, OverflowError, OSError):  # no number, or none of a date
        return ""


def caption_of(text: str) -> str:
    """A post's words without the block of hashtags at their end; those within a sentence stay."""
    return tidy(_HASHTAGS.sub("", text))


def _card(base: str, number: int, node: Mapping[str, Any], text: str, prompt: str) -> Card:
    said = node.get("caption")
    said = said.get("text") if isinstance(said, dict) else said
    captions = _edges(node, "edge_media_to_caption")
    words = caption_of(str((captions[0].get("text") if captions else said) or text))
    slides = _slides(node)
    shown = slides[number - 1] if 0 < number <= len(slides) else node
    alt = _ALT_START.sub("", tidy(str(shown.get("accessibility_caption") or "")))
    alt = "" if alt == _NO_ALT else alt
    shortcode = str(node.get("shortcode") or node.get("code") or "")
    owner = str(_object(node.get("owner")).get("username") or "")
    return Card(
        image_urls=(),
        title=owner or shortcode or base.rpartition("/")[2],
        caption=words or alt or prompt or None,
        written_by=ALT_WRITER if alt and not words else "",
        years=_year(node.get("taken_at_timestamp") or node.get("date")),
        page_url=f"https://www.instagram.com/p/{shortcode}/" if shortcode else "",
        group=shortcode or base,
        source_file=f"{base}_{number}".lower(),
    )
