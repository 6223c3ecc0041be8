"""What can be turned in the scraper; one file serves it, `scraper.caption` and `scraper.pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from crest.config import Config, FileConfig


class DataConfig(Config):
    """Where everything that the scraper writes lies."""

    dir: Path
    """Data folder: records.jsonl, images/, captions.jsonl, shards/, crawl.json, manifest.json."""


class SourceConfig(Config):
    """Where the logos come from; a data folder belongs to one source."""

    site: Literal["sportslogohistory", "folder"]
    """Which reader: a web site by name, or "folder" for pictures on this machine."""
    url: str | None = None
    """Root address of the web site; null for a folder."""
    targets: tuple[str, ...] = ()
    """Pages to begin with, relative to url; empty: every league page that the root page links to."""
    path: Path | None = None
    """Folder of pictures with metadata.jsonl, metadata.csv or a .txt beside each; null for a web site."""
    licence: str = ""
    """Licence or terms note that every record of this source carries."""

    @model_validator(mode="after")
    def _is_complete(self) -> SourceConfig:
        if self.site == "folder" and self.path is None:
            raise ValueError('a "path" when site is "folder"')
        if self.site != "folder" and not (self.url or "").startswith(("http://", "https://")):
            raise ValueError('a "url" that begins with http:// or https://')
        return self

    @property
    def root_url(self) -> str:
        """The root address with its closing slash."""
        return f"{(self.url or '').rstrip('/')}/"


class FetchConfig(Config):
    """Manners and limits of fetching."""

    user_agent: str = "crest-scraper/0.1"
    """Name that every request carries and that robots.txt is read for."""
    contact: str = ""
    """Address or page of whoever runs the scraper, added to the user agent."""
    delay_s: float = Field(default=1.0, ge=0)
    """Seconds between two requests to one host; a longer crawl-delay in its robots.txt wins."""
    connections: int = Field(default=8, ge=1, le=64)
    """Requests in flight over all hosts; a host with a delay only ever sees one at a time."""
    timeout_s: float = Field(default=20.0, gt=0)
    """Seconds without a byte after which a request is given up."""
    retries: int = Field(default=3, ge=0)
    """Further attempts after 429, 5xx, a timeout or a truncated answer."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Seconds before the first further attempt; doubled each time, with jitter; Retry-After wins."""
    max_size_mb: float = Field(default=20.0, gt=0)
    """Largest answer that is taken, in megabytes."""
    allow_private: bool = False
    """Whether loopback and private addresses may be fetched (the demo's site is one)."""
    cache_dir: Path | None = None
    """Folder of answers by address, for conditional requests; null: data.dir/cache."""
    refresh: bool = False
    """Ask again for everything of a finished crawl; what has not changed comes from the cache."""


class ScreenConfig(Config):
    """Which pictures go further; every reason is counted."""

    min_side_px: int = Field(default=64, ge=1)
    """Pictures whose longer side is shorter are too small."""
    max_aspect: float = Field(default=12.0, ge=1)
    """Longer side over shorter side; beyond this a picture is a line, not a logo."""
    kinds: tuple[str, ...] = ()
    """Kinds that are kept ("primary", "alternate", "wordmark"); empty keeps all; unknown ones stay."""
    near_bits: int = Field(default=12, ge=0, le=32)
    """Pictures are compared when their perceptual hashes differ in at most so many of 64 bits."""
    duplicate_levels: float = Field(default=4.0, ge=0, le=255)
    """Pictures whose colours differ by at most so many of 255 levels (root mean square) are the same logo."""
    related_levels: float = Field(default=14.0, ge=0, le=255)
    """Pictures that differ by at most so many levels are relatives: they stay, but share one split."""


class CaptionConfig(Config):
    """Who describes the pictures that came without words."""

    weights: str | None = None
    """Captioner: a run folder, "stock/captioner", or null to leave them without."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures described at once."""
    device: str = "auto"
    """"auto" (CUDA if there is one, else CPU), "cpu", "cuda" or "cuda:N"."""


class PackConfig(Config):
    """How records and captions become shards."""

    side_px: int = Field(default=256, ge=8)
    """Longest side of a packed picture; smaller ones stay as they are, nothing is cropped."""
    samples_per_shard: int = Field(default=1000, ge=1)
    """Samples in one tar."""
    val_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of groups that validate training."""
    test_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of groups that only evaluation sees."""
    seed: int = 0
    """Seed of the split and of the order of samples."""
    use_captions: Literal["all", "source"] = "all"
    """"all": also those that the captioner wrote; "source": only the source's own."""

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> PackConfig:
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share that sum to less than 1")
        return self


class ScraperConfig(FileConfig):
    """One file for the three commands of the scraper."""

    data: DataConfig
    """Where the scraper writes."""
    source: SourceConfig
    """Where the logos come from."""
    fetch: FetchConfig = FetchConfig()
    """Manners and limits of fetching."""
    screen: ScreenConfig = ScreenConfig()
    """Which pictures go further."""
    caption: CaptionConfig = CaptionConfig()
    """Who describes the pictures that came without words."""
    pack: PackConfig = PackConfig()
    """How records and captions become shards."""
