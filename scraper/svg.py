"""SVG -> PNG with alpha, by resvg; the only file that knows resvg_py.

Refuses whatever would leave the file: pictures, parts and entities of elsewhere; there is no network and no
other file for a drawing. resvg itself runs in a process of its own with limits on time and memory, so that a
drawing which is too much for it costs that process and is counted; the process is this file, run by its path.
Words in a drawing take the fonts of this machine: without the font they look different, without any font they
are not drawn. All else is the same everywhere for one version of resvg.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import zlib
from typing import IO, Final
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree
from xml.parsers import expat

MAX_SIZE_BYTES: Final = 20_000_000
"""Of a drawing when unzipped and its entities put in."""
MAX_DEPTH: Final = 200
MAX_ENTITY: Final = 1000
"""Characters of one entity; those that Illustrator declares are addresses of namespaces."""
MAX_PIXELS: Final = 64_000_000
"""Of a picture within the drawing."""
MAX_CPU_S: Final = 10
MAX_MEMORY_BYTES: Final = 3 << 30
_MAX_NESTED: Final = 3
"""A drawing may hold a drawing that holds a drawing."""
_SVG: Final = "http://www.w3.org/2000/svg"
_HREFS: Final = ("href", "{http://www.w3.org/1999/xlink}href")
_UNDRAWN: Final = frozenset({f"{{{_SVG}}}a", f"{{{_SVG}}}script", f"{{{_SVG}}}style"})
"""What their href points at is not drawn."""
_CSS_ELSEWHERE: Final = re.compile(r"""@import[^;]*;?|url\(\s*(?!["']?\s*#)[^)]*\)?""", re.IGNORECASE)
_ASKED: Final = struct.Struct(">III??")
"""size of the drawing, side_px, seconds, whether it is taller than wide, whether it has words"""
_ANSWERED: Final = struct.Struct(">?I")


def render_svg(content: bytes, where: str, side_px: int, *, max_cpu_s: int = MAX_CPU_S) -> bytes:
    """Draw an SVG.

    Args:
        content: an SVG file, gzip or not.
        where: what to name when it is refused.
        side_px: longest side of the picture; its aspect is kept.
        max_cpu_s: seconds of one processor that it may take.
    Returns:
        a PNG file with alpha.
    Raises:
        Refused: "broken_svg", "svg_external" (it needs another file) or "svg_too_complex".
    """
    from scraper.refused import Refused

    root = read_svg(content, where)
    has_words = next(root.iter(f"{{{_SVG}}}text"), None) is not None
    is_tall, drawing = _is_tall(root), ElementTree.tostring(root)
    artist = _idle.pop() if _idle else _Artist()
    try:
        is_drawn, answer = artist.draw(drawing, side_px, max_cpu_s, is_tall, has_words)
    except (EOFError, BrokenPipeError):
        artist.close()
        raise _too_complex(where, f"took {max_cpu_s} s or {MAX_MEMORY_BYTES >> 30} GiB of memory") from None
    _idle.append(artist)
    if is_drawn:
        return answer
    message = answer.decode()
    if "limit" in message or "pixmap" in message:
        raise _too_complex(where, message)
    raise Refused("broken_svg", f"{where}: can't be drawn ({message}); export it again or leave it out.")


def read_svg(content: bytes, where: str) -> ElementTree.Element:
    """The elements of an SVG, freed of all that points elsewhere.

    Args:
        content: an SVG file, gzip or not.
        where: what to name when it is refused.
    Raises:
        Refused: as for `render_svg`.
    """
    from scraper.refused import Refused

    try:
        root = _parsed(content, where)
        _keep_within(root, where, _MAX_NESTED)
    except (expat.ExpatError, zlib.error, ValueError, LookupError) as error:
        raise Refused(
            "broken_svg", f"{where}: is no whole SVG ({error}); export it again or leave it out."
        ) from None
    return root


def _too_complex(where: str, found: str) -> Exception:
    from scraper.refused import Refused

    return Refused("svg_too_complex", f"{where}: {found}, expected a drawing of a logo; simplify it.")


def _external(where: str, found: str) -> Exception:
    from scraper.refused import Refused

    return Refused("svg_external", f"{where}: needs {found[:80]}, expected all in one file; embed it.")


def _unzipped(content: bytes, where: str) -> bytes:
    if content[:2] == b"\x1f\x8b":
        unzipping = zlib.decompressobj(31)
        content = unzipping.decompress(content, MAX_SIZE_BYTES + 1)
        if not unzipping.eof and len(content) <= MAX_SIZE_BYTES:
            raise ValueError("its gzip stream is cut short")
    if len(content) > MAX_SIZE_BYTES:
        raise _too_complex(where, f"is longer than {MAX_SIZE_BYTES:,} bytes")
    return content


def _parsed(content: bytes, where: str) -> ElementTree.Element:
    """The element tree; entities are put in as long as they are short and hold no others."""
    parser = expat.ParserCreate(namespace_separator="}")
    builder = ElementTree.TreeBuilder()
    depth = size = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_complex(where, f"is nested more than {MAX_DEPTH} deep")
        count(*attributes.values())
        builder.start(_named(name), {_named(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_named(name))

    def data(text: str) -> None:
        count(text)
        builder.data(text)

    def count(*texts: str) -> None:
        nonlocal size
        size += sum(map(len, texts))
        if size > MAX_SIZE_BYTES:
            raise _too_complex(where, f"unfolds to more than {MAX_SIZE_BYTES:,} characters")

    def entity(name: str, is_parameter: bool, value: str | None, *_: str | None) -> None:
        if value is None:
            raise _external(where, f"the entity {name!r} of elsewhere")
        if is_parameter or "&" in value or len(value) > MAX_ENTITY:
            raise _too_complex(where, f"declares the entity {name!r}, long or made of others")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = data, entity
    parser.buffer_text = True
    parser.Parse(_unzipped(content, where), True)
    root = builder.close()
    if root.tag != f"{{{_SVG}}}svg":
        raise ValueError(f"its root is {root.tag[:60]!r}")
    return root


def _named(name: str) -> str:
    return "{" + name if "}" in name else name


def _keep_within(root: ElementTree.Element, where: str, nested: int) -> None:
    """Take out what points elsewhere and is not drawn; refuse what would be drawn."""
    for element in root.iter():
        if element.tag == f"{{{_SVG}}}style" and element.text:
            element.text = _CSS_ELSEWHERE.sub("none", element.text)
        for name, value in list(element.attrib.items()):
            if name in _HREFS:
                address = value.strip()
                if element.tag in _UNDRAWN or not element.tag.startswith(f"{{{_SVG}}}"):
                    del element.attrib[name]
                elif address.lower().startswith("data:"):
                    element.set(name, _embedded(address, where, nested))
                elif not address.startswith("#"):
                    raise _external(where, address or "a file without a name")
            elif "(" in value:
                element.set(name, _CSS_ELSEWHERE.sub("none", value))


def _embedded(address: str, where: str, nested: int) -> str:
    """A data: address that was looked into."""
    from PIL import Image

    kind, _, body = address.partition(",")
    content = unquote_to_bytes(body)
    if kind.lower().endswith(";base64"):
        try:
            content = base64.b64decode(re.sub(rb"\s", b"", content) + b"==")
        except binascii.Error as error:
            raise ValueError(f"an embedded picture: {error}") from None
    if "svg" in kind.lower():
        if nested == 0:
            raise _too_complex(where, "holds drawings within drawings")
        root = _parsed(content, where)
        _keep_within(root, where, nested - 1)
        return "data:image/svg+xml;base64," + base64.b64encode(ElementTree.tostring(root)).decode()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            pixels = picture.width * picture.height
    except Image.DecompressionBombError:
        pixels = MAX_PIXELS + 1
    except (OSError, SyntaxError) as error:
        raise ValueError(f"an embedded picture: {error}") from None
    if pixels > MAX_PIXELS:
        raise _too_complex(where, f"embeds a picture of more than {MAX_PIXELS:,} pixels")
    return f"{kind.partition(';')[0]};base64,{base64.b64encode(content).decode()}"


def _is_tall(root: ElementTree.Element) -> bool:
    """Whether its height is its longer side; a guess that the artist mends where units differ."""
    sides = [
        re.match(r"\s*[\d.]+(?:e\d+)?(?!.*%)", root.get(name, "").lower()) for name in ("width", "height")
    ]
    try:
        if sides[0] and sides[1]:
            width, height = (float(side[0]) for side in sides if side)
        else:
            _, _, width, height = map(float, re.split(r"[\s,]+", root.get("viewBox", "").strip()))
    except ValueError:
        return False
    return height > width


class _Artist:
    """A process that draws one SVG after another; in this process, it belongs to one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout
        if self._answers.read(1) != b"!":
            self.close()
            from crest.errors import RunError

            raise RunError(
                f"{__file__}: its process did not start, expected resvg_py in {sys.executable}; "
                "run pip install -e . again."
            )

    def draw(
        self, drawing: bytes, side_px: int, seconds: int, is_tall: bool, has_words: bool
    ) -> tuple[bool, bytes]:
        """Whether it was drawn, and the PNG or what was wrong; EOFError when the process died of it."""
        self._asks.write(_ASKED.pack(len(drawing), side_px, seconds, is_tall, has_words) + drawing)
        self._asks.flush()
        is_drawn, size_bytes = _ANSWERED.unpack(_read(self._answers, _ANSWERED.size))
        return is_drawn, _read(self._answers, size_bytes)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._asks.close()
        self._answers.close()
        self._process.wait()


_idle: list[_Artist] = []
"""Processes that wait for their next drawing; a fork must not share its parent's."""
os.register_at_fork(after_in_child=_idle.clear)


@atexit.register
def _close_all() -> None:
    while _idle:
        _idle.pop().close()


def _read(stream: IO[bytes], size_bytes: int) -> bytes:
    content = stream.read(size_bytes)
    if len(content) < size_bytes:
        raise EOFError
    return content


def _draw_what_is_asked() -> None:
    """The other process: draw until nothing more is asked."""
    import resource

    import resvg_py

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    asks, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"!")
    answers.flush()
    while head := asks.read(_ASKED.size):
        size_bytes, side_px, seconds, is_tall, has_words = _ASKED.unpack(head)
        drawing = _read(asks, size_bytes).decode()
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent_s = int(used.ru_utime + used.ru_stime) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (spent_s + seconds, resource.RLIM_INFINITY))
        try:
            for is_tall_now in (is_tall, not is_tall):
                side = {"height" if is_tall_now else "width": side_px}
                answer = resvg_py.svg_to_bytes(
                    svg_string=drawing, dpi=96, skip_system_fonts=not has_words, **side
                )
                if max(struct.unpack(">II", answer[16:24])) <= side_px:  # the size in the PNG's header
                    break
            is_drawn = True
        except Exception as error:
            is_drawn, answer = False, str(error).encode()
        answers.write(_ANSWERED.pack(is_drawn, len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    _draw_what_is_asked()
