"""What was not had, and why: a refusal has a name that is counted and a sentence that can be shown."""

from __future__ import annotations

from urllib.parse import urlsplit

from crest.errors import FetchError


class Refused(FetchError):  # noqa: N818 - counted, seldom reported
    """One address was not had, for a reason that is counted; the run goes on."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:  # it crosses processes
        return Refused, (self.reason, str(self))


class Unreachable(Refused):
    """A host did not even answer: no network, no such name, nobody listening."""

    def __init__(self, url: str, why: str) -> None:
        self.url, self.why = url, why
        super().__init__(
            "unreachable",
            f"{_host(url)}: did not answer ({why}), expected a web site; "
            "check the network, then run the same command again.",
        )

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:
        return Unreachable, (self.url, self.why)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
