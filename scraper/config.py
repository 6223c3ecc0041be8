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

    site: Literal["sportslogohistory", "folder", "shards", "url_table", "kanji", "instagram"]
    """Which reader: a web site by name, or what lies on this machine."""
    url: str | None = None
    """Root address of the web site; null for what lies on this machine."""
    targets: tuple[str, ...] = ()
    """Pages to begin with, relative to url; empty: every league page that the root page links to."""
    path: Path | None = None
    """folder: pictures with captions; shards: a folder of tars or one tar; url_table: a CSV, JSONL or Parquet
    file or a folder of them; kanji: KANJIDIC2 XML, gzip or not; instagram: what instaloader wrote."""
    captions: Path | None = None
    """folder: a table of picture and caption elsewhere than in metadata.jsonl or metadata.csv."""
    prompt: str | None = None
    """folder, instagram: one caption for every picture that has none of its own."""
    url_column: str = "url"
    """url_table: column of the picture's address."""
    caption_column: str | None = "caption"
    """url_table: column of its caption; null when there is none."""
    group_column: str | None = None
    """url_table: column of what must not be split over train and test."""
    drawings: Path | None = None
    """kanji: folder of KanjiVG's SVG files."""
    side_px: int = Field(default=256, ge=16)
    """kanji: side of the pictures that strokes are drawn at; SVG logos are drawn with this longest side,
    those of a url_table with pack.side_px."""
    profile: str | None = None
    """instagram: fetch this public profile into path with instaloader first (extra "instagram")."""
    posts: int = Field(default=1000, ge=1)
    """instagram: newest posts that are fetched at most."""
    written_by: str = "human"
    """Who wrote the source's captions: "human", "rule", or the name of a model."""
    licence: str = ""
    """Licence or terms note that every record of this source carries, unless it brings its own."""

    @model_validator(mode="after")
    def _is_complete(self) -> SourceConfig:
        if self.is_web and not (self.url or "").startswith(("http://", "https://")):
            raise ValueError('a "url" that begins with http:// or https://')
        if not self.is_web and self.path is None:
            raise ValueError(f'a "path" when site is "{self.site}"')
        if self.site == "kanji" and self.drawings is None:
            raise ValueError('"drawings", the folder of KanjiVG, when site is "kanji"')
        return self

    @property
    def is_web(self) -> bool:
        """Whether pages are read, not what lies on this machine."""
        return self.site == "sportslogohistory"

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
    """Requests in flight over all hosts (of each worker of a url_table); a host with a delay sees one."""
    timeout_s: float = Field(default=20.0, gt=0)
    """Seconds without a byte after which a request is given up."""
    retries: int = Field(default=3, ge=0)
    """Further attempts after 429, 5xx, a timeout or a truncated answer."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Seconds before the first further attempt; doubled each time, with jitter; Retry-After wins."""
    max_size_mb: float = Field(default=20.0, gt=0)
    """Largest answer that is taken, in megabytes."""
    max_megapixels: float = Field(default=64.0, gt=0, le=64)
    """Largest picture that is decoded, in millions of pixels; a bomb is refused by its header."""
    max_redirects: int = Field(default=5, ge=0, le=20)
    """Redirects that are followed from one address."""
    allow_hosts: tuple[str, ...] = ()
    """Names or addresses that may be private, loopback or link-local (the demo's site is one)."""
    respect_opt_out: bool = True
    """Leave out what X-Robots-Tag or a robots meta element marks noai, noimageai or noml."""
    retry_failed: bool = False
    """Visit once more what failed in a finished crawl (also: --retry-failed)."""
    cache_dir: Path | None = None
    """Folder of answers by address, for conditional requests; null: data.dir/cache. url_table: none."""
    refresh: bool = False
    """Ask again for everything of a finished crawl; what has not changed comes from a cache."""


class ScreenConfig(Config):
    """Which pictures go further; every reason is counted."""

    min_side_px: int = Field(default=64, ge=1)
    """Pictures whose longer side is shorter are too small."""
    wide_aspect: float = Field(default=6.0, ge=1)
    """Longer side over shorter side; pictures beyond this are kept, padded and counted."""
    kinds: tuple[str, ...] = ()
    """Kinds that are kept ("primary", "alternate", "wordmark"); empty keeps all; unknown ones stay."""
    pixels: bool = True
    """Look at every picture: find blank ones and near duplicates. false compares bytes only and does not
    decode what lies on this machine, several times faster; for collections that are known to be clean."""
    near_levels: float = Field(default=9.0, ge=0, le=255)
    """Pictures are compared when 16 cosine waves of their greys and colours differ by at most so many of 255
    levels (root mean square), as those of 99.7 % of 10,000 copies of drawn logos do …"""
    near_bits: int = Field(default=8, ge=0, le=64)
    """… and their perceptual hashes in at most so many of 64 bits (99.9 %)."""
    duplicate_difference: float = Field(default=0.12, ge=0, le=2)
    """Pictures are the same logo when, laid over each other, no window of an eighth of the logo lacks more
    than this share of common structure and no mean colour differs by more than 70 levels times this; the
    lesser one is dropped. Of the copies 98.5 % are within 0.12, and no other logo."""
    related_difference: float = Field(default=0.19, ge=0, le=2)
    """Up to this difference pictures are relatives: they stay, but share one split. Of the copies 99.6 % are
    within 0.19, and 0.02 % of the other logos; within 0.25 it would be 99.7 % and 0.2 %."""

    @model_validator(mode="after")
    def _drops_only_relatives(self) -> ScreenConfig:
        if self.related_difference < self.duplicate_difference:
            raise ValueError("a related_difference that is not below duplicate_difference")
        return self


class ApiConfig(Config):
    """A vision model behind an HTTP interface."""

    url: str
    """Address of the interface, for instance https://api.example.com/v1; http only to this machine."""
    form: Literal["openai", "anthropic"] = "openai"
    """Which request form it takes: chat completions (OpenAI and its likes) or messages (Anthropic)."""
    model: str
    """Name of the model, as the interface knows it."""
    key_variable: str = "CREST_API_KEY"
    """Environment variable that holds the key; the key itself never stands in a file."""
    examples: Path | None = None
    """JSON lines of file_name and text: pictures with model captions, shown before the question."""
    pictures_per_request: int = Field(default=4, ge=1, le=32)
    """Pictures asked about at once."""
    requests_at_once: int = Field(default=2, ge=1, le=32)
    """Requests in flight."""
    price_in: float = Field(default=0.0, ge=0)
    """Price of a million tokens that are sent, in the currency of `max_cost`."""
    price_out: float = Field(default=0.0, ge=0)
    """Price of a million tokens that are answered."""
    max_cost: float | None = Field(default=None, gt=0)
    """Stop asking before this is spent; null: no limit."""
    retries: int = Field(default=4, ge=0)
    """Further attempts after 429, 5xx, a timeout or an answer that is not the JSON that was asked for."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds without an answer after which a request is given up."""


class CaptionConfig(Config):
    """Who describes the pictures, and what is added to their words."""

    weights: str | None = None
    """Captioner: a run folder, "stock/captioner", a local folder or hub name of a published captioner (for
    instance nlpconnect/vit-gpt2-image-captioning), or null for none."""
    revision: str | None = None
    """Commit or tag of a hub name."""
    route: Literal["auto", "plain", "prompt", "chat", "api"] = "auto"
    """How the captioner is asked: without words, with a prompt, by its chat template, or over HTTP; "auto"
    reads it off the model."""
    prompt: str = "Describe this logo in one sentence: shapes, colours, and any words in quotes."
    """What a captioner that takes words is asked."""
    api: ApiConfig | None = None
    """The interface of the route "api"."""
    describe: Literal["missing", "vague", "all"] = "missing"
    """Pictures that the captioner is shown: those without words, also those whose words are vague, or all.
    What the source wrote stays in any case."""
    model_weight: float = Field(default=0.5, gt=0, le=1)
    """Weight of a model's caption beside one of the source's own (whose weight is 1)."""
    palette: bool = False
    """Add a caption with the measured colours in words ("Colours: navy, white.")."""
    palette_weight: float = Field(default=0.25, gt=0, le=1)
    """Weight of that caption."""
    beams: int = Field(default=1, ge=1, le=16)
    """1: greedy decoding; more: beam search."""
    max_tokens: int = Field(default=60, ge=1)
    """Longest answer, in tokens; Crest's own captioners know theirs."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures described at once."""
    device: str = "auto"
    """"auto" (CUDA if there is one, else CPU), "cpu", "cuda" or "cuda:N"."""


class PackConfig(Config):
    """How records and captions become shards."""

    side_px: int = Field(default=256, ge=8)
    """Longest side of a packed picture; smaller ones stay as they are, nothing is cropped."""
    format: Literal["png", "webp", "jpg"] = "png"
    """png and webp are lossless and keep alpha; jpg is flattened on white, for loaders that ask for it."""
    samples_per_shard: int = Field(default=1000, ge=1)
    """Samples in one tar at most."""
    shard_size_mb: float = Field(default=512.0, gt=0)
    """Size of one tar at most, in megabytes; a single larger sample still gets its own."""
    val_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of groups that validate training."""
    test_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of groups that only evaluation sees."""
    seed: int = 0
    """Seed of the split and of the order of samples."""
    use_captions: Literal["all", "human"] = "all"
    """"all": also those that a model or a rule wrote; "human": only what people wrote."""
    max_damaged_share: float = Field(default=0.01, ge=0, le=1)
    """Share of pictures that may be damaged before the step stops; each is named and counted."""

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> PackConfig:
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share that sum to less than 1")
        return self


class WorkConfig(Config):
    """Who does the work that falls into parts: url_table, caption and pack."""

    executor: Literal["local", "ray"] = "local"
    """Processes of this machine, or a Ray cluster (extra "ray")."""
    workers: int | None = Field(default=None, ge=1)
    """Parts in work at once; null: one for each processor."""
    address: str | None = None
    """Address of the Ray cluster; null starts one on this machine."""
    rows_per_part: int = Field(default=1000, ge=1)
    """Rows of a table in one part: what a killed worker costs."""


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
    work: WorkConfig = WorkConfig()
    """Who does the work that falls into parts."""
