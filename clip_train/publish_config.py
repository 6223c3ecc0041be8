"""What can be turned in publishing a CLIP."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from crest.config import Config, FileConfig


class PublishDataConfig(Config):
    """What is published, and where it is put together."""

    run: Path
    """Folder of a finished CLIP run."""
    shards: Path | None = None
    """Folder of the shards that it learned from, whose samples name sources and licences; null: the run's."""
    out: Path | None = None
    """Folder that is written, just as it is uploaded; null: `published` in the run folder."""


class PublishHubConfig(Config):
    """To which repository, and as what."""

    repository: str
    """"owner/name" on the hub, or on the mirror that HF_ENDPOINT names; the token is read from HF_TOKEN."""
    upload: bool = True
    """false: write the folder and upload nothing."""
    private: bool = True
    """Of a repository that is made; one that exists keeps its own setting."""
    licence: str = "other"
    """The weights' licence by the hub's short name, for instance "cc-by-4.0"."""
    limits: tuple[str, ...] = Field(default=())
    """Sentences for the model card's list of limits, beside those that follow from the run."""


class PublishConfig(FileConfig):
    """Publishing of a CLIP on a hub."""

    data: PublishDataConfig
    """From what."""
    hub: PublishHubConfig
    """To where."""
