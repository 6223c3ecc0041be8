"""A vision API on loopback, in either form: answers what a function says, and keeps what it was asked."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from PIL import Image

from tests.loopback import Loopback, Quiet

Said = tuple[int, dict[str, str], Any]
KEY = "sk-very-secret-0123456789"


class ApiServer(Loopback):
    """Serves /v1/chat/completions and /v1/messages.

    Args:
        answer: gets the request and its number from 0; gives status, headers and body (JSON-able, or bytes).
    """

    def __init__(self, answer: Callable[[Asked, int], Said]) -> None:
        self.requests: list[Asked] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                asked = Asked(
                    self.path,
                    {name.lower(): value for name, value in self.headers.items()},
                    json.loads(content),
                )
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(asked)
                status, headers, body = answer(asked, number)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.say(status, headers, data)

        super().__init__(Handler)

    @property
    def url(self) -> str:
        """Where the interface begins."""
        return f"{super().url}/v1"


class Asked:
    """One request, read back."""

    def __init__(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        self.path, self.headers, self.body = path, headers, body

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Of the last turn."""
        parts: list[dict[str, Any]] = self.body["messages"][-1]["content"]
        return parts

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures of the last turn, decoded."""
        found = []
        for part in self.parts:
            if part["type"] == "image_url":
                data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
            elif part["type"] == "image":
                assert part["source"]["media_type"] == "image/png"
                data = part["source"]["data"]
            else:
                continue
            found.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return found

    def captions(self, text: Callable[[Image.Image], str]) -> dict[str, Any]:
        """What a good model would answer."""
        rows = [
            {"picture": f"p{number}", "caption": text(picture)}
            for number, picture in enumerate(self.pictures, start=1)
        ]
        return {"captions": rows}

    def said(
        self, text: str, *, end: str | None = None, tokens: tuple[int, int] | None = (1000, 100)
    ) -> Said:
        """A text as the interface of this form wraps it."""
        if self.path.endswith("/messages"):
            usage = {"input_tokens": tokens[0], "output_tokens": tokens[1]} if tokens else {}
            content = [{"type": "text", "text": text}]
            return (
                200,
                {},
                {"model": "seer-1", "content": content, "stop_reason": end or "end_turn", "usage": usage},
            )
        usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]} if tokens else {}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": end or "stop"}
        return 200, {}, {"model": "seer-1", "choices": [choice], "usage": usage}


def colour_at_centre(picture: Image.Image) -> str:
    """A caption that only who saw the picture can give."""
    red, green, blue = picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))
    return f"A disc of colour {red} {green} {blue} on white."


def good(asked: Asked, number: int) -> Said:
    """What a good model answers."""
    return asked.said(json.dumps(asked.captions(colour_at_centre)))
