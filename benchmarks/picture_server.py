"""Drawn logos behind a web server on loopback that costs little: what both sides of a race fetch from.

One process, one thread, epoll, whole answers ready in memory. Keeps connections or closes them as the client
asks. `python -m benchmarks.picture_server FOLDER` serves the pictures of a folder and prints its port.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WORDS = ("LIONS", "HARBOUR FC", "1904", "NORTH STARS", "ROVERS", "EAGLES", "UNITED", "KINGS", "BC VEGA")
_PALETTE_COLOURS = 64
_KINDS = {"jpg": "image/jpeg", "png": "image/png"}


def draw_logo(seed: int) -> Image.Image:
    """A crest of flat shapes and a word, antialiased, on nothing, 256 to 800 px wide; one a seed."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(256, 801))
    height = int(width * rng.uniform(0.6, 1.3)) if seed % 4 else width
    height = min(max(height, 256), 800)
    big = (width * 2, height * 2)
    picture = Image.new("RGBA", big, (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    colours = [(*rng.integers(0, 256, 3).tolist(), 255) for _ in range(5)]
    across, down = big
    edge = across // 40

    def place(x: float, y: float) -> tuple[float, float]:
        return across * x, down * y

    shield = [place(0.08, 0.06), place(0.92, 0.06), place(0.92, 0.55), place(0.5, 0.96), place(0.08, 0.55)]
    if seed % 3 == 0:
        pen.polygon(shield, fill=colours[0], outline=colours[1], width=edge)
    elif seed % 3 == 1:
        pen.ellipse((*place(0.05, 0.05), *place(0.95, 0.95)), fill=colours[0], outline=colours[1], width=edge)
    else:
        box = (*place(0.05, 0.1), *place(0.95, 0.9))
        pen.rounded_rectangle(box, across // 8, fill=colours[0], outline=colours[1], width=edge)
    for number in range(int(rng.integers(3, 9))):
        x, y = rng.uniform(0.15, 0.65, 2)
        wide, high = rng.uniform(0.08, 0.3, 2)
        box = (*place(x, y), *place(x + wide, y + high))
        colour = colours[1 + number % 4]
        if number % 3 == 0:
            pen.ellipse(box, fill=colour)
        elif number % 3 == 1:
            pen.polygon([place(x, y + high), place(x + wide / 2, y), place(x + wide, y + high)], fill=colour)
        else:
            pen.arc(box, 0, int(rng.integers(90, 360)), fill=colour, width=edge)
    pen.text(place(0.5, 0.72), WORDS[seed % len(WORDS)], fill=colours[4], anchor="mm", font_size=across // 9)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def encoded(seed: int) -> tuple[str, bytes]:
    """The logo of a seed as a file: of ten, four JPEG (q 90), four PNG with alpha, two PNG without."""
    picture, place = draw_logo(seed), seed % 10
    stream = io.BytesIO()
    if place in (4, 5, 6, 7):
        picture.save(stream, "PNG")
        return "png", stream.getvalue()
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture)
    if place < 4:
        flat.save(stream, "JPEG", quality=90)
        return "jpg", stream.getvalue()
    flat.save(stream, "PNG")
    return "png", stream.getvalue()


def recoloured(png: bytes, number: int) -> bytes:
    """A palette PNG with other colours: another picture in the time it takes to sum 200 bytes."""
    first = png.index(b"PLTE") - 4
    size = struct.unpack(">I", png[first : first + 4])[0]
    colours = np.frombuffer(png, np.uint8, size, first + 8)
    shift = np.random.default_rng(number).integers(0, 256, 3).astype(np.uint8)
    body = b"PLTE" + (colours.reshape(-1, 3) + shift).astype(np.uint8).tobytes()
    checked = struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
    return png[:first] + checked + png[first + 12 + size :]


def draw_folder(folder: Path, count: int, palettes: int) -> None:
    """Draw `count` logos as files and `palettes` palette PNGs beside them, once."""
    folder.mkdir(parents=True, exist_ok=True)
    have = {path.stem for path in folder.iterdir()}
    for seed in range(count):
        if f"{seed:06d}" not in have:
            kind, content = encoded(seed)
            (folder / f"{seed:06d}.{kind}").write_bytes(content)
    for seed in range(palettes):
        if f"p{seed:05d}" not in have:
            flat = Image.new("RGB", (picture := draw_logo(seed + count)).size, "white")
            flat.paste(picture, mask=picture)
            stream = io.BytesIO()
            flat.quantize(_PALETTE_COLOURS, dither=Image.Dither.NONE).save(stream, "PNG")
            (folder / f"p{seed:05d}.png").write_bytes(stream.getvalue())


class _Pictures:
    """Answers by path: the folder's files by name, and `/r/<n>.png`, the n-th recoloured palette PNG."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self._palettes = [content for name, content in self._files.items() if name.startswith("p")]

    def answer(self, path: str, *, closes: bool) -> bytes:
        name = path.lstrip("/")
        if name.startswith("r/"):
            number = int(name[2:].partition(".")[0])
            content = recoloured(self._palettes[number % len(self._palettes)], number)
        else:
            found = self._files.get(name)
            if found is None:
                return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            content = found
        end = "Connection: close\r\n\r\n" if closes else "\r\n"
        kind = _KINDS[name.rpartition(".")[2]]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n{end}"
        return head.encode() + content


def serve(folder: Path) -> None:
    """Answer until killed; prints the port first."""
    pictures = _Pictures(folder)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    open_sockets: dict[int, socket.socket] = {}
    asked: dict[int, bytes] = {}
    unsent: dict[int, tuple[memoryview, bool]] = {}

    def close(number: int) -> None:
        open_sockets.pop(number).close()
        asked.pop(number, None)
        unsent.pop(number, None)

    def send(number: int, answer: memoryview, *, closes: bool) -> None:
        try:
            sent = open_sockets[number].send(answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            close(number)
            return
        if sent < len(answer):
            unsent[number] = (answer[sent:], closes)
            poll.modify(number, select.EPOLLOUT)
        elif closes:
            close(number)
        elif unsent.pop(number, None):
            poll.modify(number, select.EPOLLIN)

    while True:
        for number, event in poll.poll():
            if number == listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        open_sockets[sock.fileno()] = sock
                        poll.register(sock, select.EPOLLIN)
            elif event & select.EPOLLOUT:
                answer, closes = unsent[number]
                send(number, answer, closes=closes)
            else:
                try:
                    block = open_sockets[number].recv(1 << 16)
                except OSError:
                    block = b""
                if not block:
                    close(number)
                    continue
                request = asked.pop(number, b"") + block
                if not request.endswith(b"\r\n\r\n"):
                    asked[number] = request
                    continue
                closes = b"connection: close" in request.lower()
                path = request.split(b" ", 2)[1].decode()
                send(number, memoryview(pictures.answer(path, closes=closes)), closes=closes)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server in its own process."""
    words = [sys.executable, "-m", "benchmarks.picture_server", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def ceiling(address: str, paths: list[str], *, keeps: bool) -> float:
    """Answers per second that one bare client gets, one after the other: what the server alone can do."""
    host, port = address.removeprefix("http://").split(":")

    def connect() -> socket.socket:
        return socket.create_connection((host, int(port)))

    started = time.perf_counter()
    sock = connect()
    for path in paths:
        end = "" if keeps else "Connection: close\r\n"
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{end}\r\n".encode())
        got = sock.recv(1 << 20)
        head = got.index(b"\r\n\r\n") + 4
        size = int(got.split(b"Content-Length: ", 1)[1].split(b"\r\n", 1)[0])
        left = head + size - len(got)
        while left > 0:
            left -= len(sock.recv(1 << 20))
        if not keeps:
            sock.close()
            sock = connect()
    sock.close()
    return len(paths) / (time.perf_counter() - started)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
