"""Ask a vision model over HTTP, in the OpenAI or the Anthropic form: pictures in, checked captions out.

The key comes from an environment variable and stands in no file, message or error. What is not exactly the
JSON that was asked for is refused by name, never guessed at. Redirects are not followed: they would take the
key along.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import ipaddress
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from crest.errors import ConfigError, FetchError
from scraper.answers import Spent
from scraper.config import ApiConfig
from scraper.cut_text import tidy

ANTHROPIC_VERSION: Final = "2023-06-01"
MAX_ANSWER_BYTES: Final = 4 << 20
MAX_CHARACTERS: Final = 1000
"""A longer caption is no caption."""
MAX_WAIT_S: Final = 600.0
_FENCED: Final = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)
_REFUSAL: Final = re.compile(
    r"^(?:i(?:['’]m| am) (?:very )?(?:sorry|unable|not able)|sorry,|i can(?:['’]t|not)\b|as an ai\b)",
    re.IGNORECASE,
)
_TOKENS_IN: Final = (
    "prompt_tokens", "input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"
)  # fmt: skip
_TOKENS_OUT: Final = ("completion_tokens", "output_tokens")
_CLOSED: Final = (401, 402, 403, 404)
"""Statuses that no other request would change."""


class UnusableError(Exception):
    """An answer that gives no captions, by its reason's name; what it cost counts all the same."""

    def __init__(self, reason: str, spent: Spent | None = None) -> None:
        super().__init__(reason)
        self.reason, self.spent = reason, spent or Spent(requests=1)


@dataclass(frozen=True)
class Shown:
    """A picture as it is sent: PNG bytes."""

    png: bytes
    caption: str = ""
    """of an example"""


@dataclass(frozen=True)
class Reply:
    """What came of one question."""

    texts: list[str]
    """one a picture, in order; empty where the answer says nothing usable"""
    reasons: list[str]
    """one a picture; empty where there is a text"""
    model: str
    """what the interface says that answered"""
    spent: Spent


class VisionApi:
    """An interface that describes pictures.

    Args:
        settings: where it is and what it costs.
        question: what it is asked of each picture.
        max_tokens: longest caption.
        examples: pictures with model captions, shown before the question.
        backoff_s: seconds before the first further attempt, doubled each time.
        sleep: waits.
    Raises:
        ConfigError: no key, http to another machine, or a budget without prices.
    """

    def __init__(
        self, settings: ApiConfig, question: str, max_tokens: int, examples: Sequence[Shown] = (), *,
        backoff_s: float = 1.0, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        check_settings(settings)
        self.settings, self.question, self.max_tokens = settings, question, max_tokens
        self._examples, self._backoff_s, self._sleep = tuple(examples), backoff_s, sleep
        self._key = os.environ[settings.key_variable].strip()
        path = "chat/completions" if settings.form == "openai" else "messages"
        self._url = f"{settings.url.rstrip('/')}/{path}"
        handlers: list[Any] = [_NoRedirects]
        if _is_here(settings.url):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        self._not_before = 0.0

    def ask(self, pictures: Sequence[Shown]) -> Reply:
        """Captions for some pictures in one request.

        Raises:
            UnusableError: the interface did not answer, or not what it was asked for.
            FetchError: it never will: key refused, no such model.
        """
        labels = [f"p{number}" for number in range(1, len(pictures) + 1)]
        answer = self._posted(self._body(pictures, labels))
        text, model, spent = self._read(answer, len(pictures))
        found = captions_of(text, labels, spent)
        reasons = [_fault(found[label]) for label in labels]
        texts = ["" if reason else tidy(found[label]) for label, reason in zip(labels, reasons, strict=True)]
        return Reply(texts, reasons, model, spent)

    def estimate(self, pictures: int) -> float:
        """About what a request will cost, before any was answered: 1,000 tokens a picture."""
        shown = pictures + len(self._examples)
        tokens_in, tokens_out = 1000 * shown + 300, (self.max_tokens + 20) * pictures
        return self._cost(tokens_in, tokens_out)

    def _cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.settings.price_in + tokens_out * self.settings.price_out) / 1e6

    def _body(self, pictures: Sequence[Shown], labels: Sequence[str]) -> dict[str, Any]:
        turns: list[dict[str, Any]] = []
        size = self.settings.pictures_per_request
        for start in range(0, len(self._examples), size):
            some = self._examples[start : start + size]
            names = [f"p{number}" for number in range(1, len(some) + 1)]
            model_answer = {
                "captions": [
                    {"picture": name, "caption": one.caption} for name, one in zip(names, some, strict=True)
                ]
            }
            turns.append({"role": "user", "content": self._content(some, names)})
            turns.append({"role": "assistant", "content": json.dumps(model_answer, ensure_ascii=False)})
        turns.append({"role": "user", "content": self._content(pictures, labels)})
        body: dict[str, Any] = {"model": self.settings.model, "messages": turns}
        if (
            self.settings.form == "anthropic"
        ):  # which wants a limit; others reckon hidden thoughts into theirs
            body["max_tokens"] = (self.max_tokens + 40) * len(pictures) + 100
        return body

    def _content(self, pictures: Sequence[Shown], labels: Sequence[str]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        for label, one in zip(labels, pictures, strict=True):
            data = base64.b64encode(one.png).decode()
            content.append({"type": "text", "text": f"{label}:"})
            if self.settings.form == "openai":
                content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
            else:
                source = {"type": "base64", "media_type": "image/png", "data": data}
                content.append({"type": "image", "source": source})
        form = '{"captions": [{"picture": "p1", "caption": "…"}]}'
        told = f"pictures {labels[0]} to {labels[-1]}" if len(labels) > 1 else f"picture {labels[0]}"
        asked = f"{self.question}\nAnswer for {told} with JSON alone, one entry a picture: {form}"
        return [*content, {"type": "text", "text": asked}]

    def _posted(self, body: Mapping[str, Any]) -> Any:
        """The interface's answer, after further attempts where they may help."""
        data = json.dumps(body, ensure_ascii=False).encode()
        for attempt in range(self.settings.retries + 1):
            self._wait_until(self._not_before)
            try:
                return self._post(data)
            except _AgainError as again:
                wait_s = again.wait_s
                if wait_s is None:
                    wait_s = self._backoff_s * 2**attempt * random.uniform(0.75, 1.25)
                if attempt == self.settings.retries or wait_s > MAX_WAIT_S:
                    raise UnusableError(again.reason, Spent()) from None
                if again.wait_s is not None:  # the interface is full: all other requests wait as well
                    self._not_before = max(self._not_before, time.monotonic() + wait_s)
                else:
                    self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _wait_until(self, moment: float) -> None:
        wait_s = moment - time.monotonic()
        if wait_s > 0:
            self._sleep(wait_s)

    def _post(self, data: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "crest"}
        if self.settings.form == "openai":
            headers["Authorization"] = f"Bearer {self._key}"
        else:
            headers |= {"x-api-key": self._key, "anthropic-version": ANTHROPIC_VERSION}
        request = urllib.request.Request(self._url, data, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.settings.timeout_s) as response:
                content = response.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except TimeoutError:
            raise _AgainError("api_timeout") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            is_late = isinstance(getattr(error, "reason", None), TimeoutError)
            raise _AgainError("api_timeout" if is_late else "api_unreachable") from None
        try:
            if len(content) > MAX_ANSWER_BYTES:
                raise ValueError
            return json.loads(content)
        except ValueError:
            raise UnusableError("api_not_json") from None

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Turn a status into a further attempt, a counted reason or an end."""
        reason = f"api_http_{error.code}"
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            raise _AgainError(reason, retry_after(error.headers.get("Retry-After"))) from None
        if error.code in _CLOSED or 300 <= error.code < 400:
            raise FetchError(
                f"{self._url}: answers {error.code} ({self._told(error)}), expected captions; check "
                f"caption.api.url, caption.api.model and the key in {self.settings.key_variable}."
            ) from None
        raise UnusableError(reason) from None

    def _told(self, error: urllib.error.HTTPError) -> str:
        """What the interface says of its refusal, in one line, without the key."""
        try:
            value = json.loads(error.read(10_000))
            said = value["error"]["message"] if isinstance(value["error"], dict) else value["error"]
        except (OSError, ValueError, KeyError, TypeError):
            said = error.reason
        return tidy(str(said)).replace(self._key, "***").rstrip(".")[:200]

    def _read(self, answer: Any, pictures: int) -> tuple[str, str, Spent]:
        """Text, model and usage of an answer; usage of one that holds nothing else counts too."""
        usage = answer.get("usage") if isinstance(answer, dict) else None
        spent = self._spent(usage if isinstance(usage, dict) else {}, pictures)
        try:
            if self.settings.form == "openai":
                choice = answer["choices"][0]
                text, end = choice["message"].get("content"), choice.get("finish_reason")
                is_refused = bool(choice["message"].get("refusal")) or end == "content_filter"
            else:
                end = answer.get("stop_reason")
                text = "".join(part["text"] for part in answer["content"] if part.get("type") == "text")
                is_refused = end == "refusal"
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UnusableError("api_not_json", spent) from None
        if is_refused:
            raise UnusableError("api_refused", spent)
        if end in ("length", "max_tokens"):
            raise UnusableError("api_cut", spent)
        if not isinstance(text, str) or not text.strip():
            raise UnusableError("api_empty", spent)
        return text, str(answer.get("model") or self.settings.model), spent

    def _spent(self, usage: Mapping[str, Any], pictures: int) -> Spent:
        """What an answer says that it cost; an estimate where it says nothing."""
        tokens_in, tokens_out = (
            sum(int(usage[name]) for name in names if isinstance(usage.get(name), int))
            for names in (_TOKENS_IN, _TOKENS_OUT)
        )
        is_told = tokens_in + tokens_out > 0
        cost = self._cost(tokens_in, tokens_out) if is_told else self.estimate(pictures)
        return Spent(1, tokens_in, tokens_out, cost)


class _AgainError(Exception):
    """A failure that another attempt may mend."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait_s = reason, wait_s


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def captions_of(text: str, labels: Sequence[str], spent: Spent | None = None) -> dict[str, str]:
    """The captions of an answer by label.

    Raises:
        UnusableError: `api_refused`, `api_not_json` (or JSON of another form), `api_wrong_count` (not exactly
            one caption for each picture that was shown).
    """
    bare = text.strip()
    fenced = _FENCED.match(bare)
    try:
        value = json.loads(fenced[1] if fenced else bare)
        rows = value["captions"]
        pairs = [(row["picture"], row["caption"]) for row in rows]
        if not all(isinstance(part, str) for pair in pairs for part in pair):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise UnusableError("api_refused" if _REFUSAL.match(bare) else "api_not_json", spent) from None
    # a caption too many or too few may mean that all are one picture off
    if sorted(label for label, _ in pairs) != sorted(labels):
        raise UnusableError("api_wrong_count", spent)
    return dict(pairs)


def _fault(caption: str) -> str:
    """Why a caption is none; empty for one that is."""
    if not tidy(caption).strip("…."):
        return "api_empty"
    if _REFUSAL.match(tidy(caption)):
        return "api_refused"
    return "api_too_long" if len(caption) > MAX_CHARACTERS else ""


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a Retry-After header in seconds or as a date; None when there is none."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None


def check_settings(settings: ApiConfig) -> None:
    """Look whether an interface can be asked at all.

    Raises:
        ConfigError: no key, http to another machine, or a budget without prices.
    """
    scheme = urlsplit(settings.url).scheme
    if scheme != "https" and not (scheme == "http" and _is_here(settings.url)):
        raise ConfigError(
            f"caption.api.url: {settings.url} would send the key unencrypted, expected https:// "
            "(http:// only to this machine); change it."
        )
    key = os.environ.get(settings.key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "is not set" if not key else "holds what can be no key (a space, a line break?)"
        raise ConfigError(
            f"{settings.key_variable}: {state}, expected the key of {settings.url}; export it in the shell "
            "that runs python -m scraper.caption."
        )
    if settings.max_cost is not None and settings.price_in == settings.price_out == 0:
        raise ConfigError(
            "caption.api.max_cost: is set, but price_in and price_out are 0, so it would never be reached; "
            "set them."
        )


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
