"""Write the blind page: pictures re-encoded alike under opaque ids, plans, and the key that stays private.

Nothing public names a system, a file, a check or an order of systems; ids are random, never a hash of a path.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crest.errors import RunError
from crest.images import decode, read_image, square
from crest.records import hash_of, read_json, write_bytes, write_json, write_text
from eval.survey.config import SurveyConfig
from eval.survey.design import Showing, gold_items, plan
from eval.systems import System

HERE = Path(__file__).parent
QUESTIONS = {
    "match": "Which one matches the description better?",
    "quality": "Which is the better logo: clean, usable, well drawn?",
    "use": "Which would you rather use as the logo?",
}
Token = Callable[[], str]


def _token() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Pair:
    """Two pictures for one description; the first is the baseline's, or the destroyed one of a gold item."""

    prompt_id: str
    prompt: str
    pictures: tuple[Image.Image, Image.Image]
    roles: tuple[str, str]
    """what the key says of each picture: a system's name, "destroyed" or "whole" """


@dataclass(frozen=True)
class Bundle:
    """All that is written."""

    manifest: dict[str, Any]
    """public: embedded in the page"""
    key: dict[str, Any]
    """private"""
    images: dict[str, bytes]
    """public: id -> PNG"""
    links: list[tuple[str, int]]
    """private: rater id, number of its plan"""


def survey_pairs(systems: Sequence[System], most: int, side_px: int, seed: int) -> list[Pair]:
    """The first drawing of each prompt by both systems, at most so many prompts, drawn by seed."""
    base, other = systems
    firsts = [{d.prompt_id: d for d in reversed(system.drawings)} for system in (base, other)]
    prompt_ids = list(base.prompt_ids)
    if len(prompt_ids) > most:
        rng = np.random.default_rng(seed)
        prompt_ids = [prompt_ids[int(place)] for place in np.sort(rng.permutation(len(prompt_ids))[:most])]
    pairs = []
    for prompt_id in prompt_ids:
        drawings = [first[prompt_id] for first in firsts]
        a, b = (square(read_image(drawing.path), side_px) for drawing in drawings)
        pairs.append(Pair(prompt_id, drawings[0].prompt, (a, b), (base.name, other.name)))
    return pairs


def gold_pairs(
    pairs: Sequence[Pair], shards: Path | None, wanted: int, side_px: int, seed: int
) -> list[Pair]:
    """Items with a right answer: a whole logo against the same logo torn into tiles.

    Real logos with their captions where there are shards, else drawings of either system in turn.
    """
    rng = np.random.default_rng(seed + 1)
    if shards is not None:
        from crest.shards import read_samples

        samples = list(read_samples(shards, "test"))
        chosen = [samples[int(place)] for place in rng.permutation(len(samples))[:wanted]]
        whole = [(s.id, s.caption, square(decode(s.image, f"{shards} {s.id}"), side_px)) for s in chosen]
    else:
        places = rng.permutation(len(pairs))[:wanted]
        whole = [
            (pairs[int(p)].prompt_id, pairs[int(p)].prompt, pairs[int(p)].pictures[n % 2])
            for n, p in enumerate(places)
        ]
    return [
        Pair(picture_id, text, (torn(picture, rng), picture), ("destroyed", "whole"))
        for picture_id, text, picture in whole
    ]


def torn(picture: Image.Image, rng: np.random.Generator, tiles: int = 8) -> Image.Image:
    """The picture with its tiles in random order: same size, same colours, no logo."""
    side_px = picture.width - picture.width % tiles
    pixels = np.asarray(picture.resize((side_px, side_px)))
    step = side_px // tiles
    blocks = pixels.reshape(tiles, step, tiles, step, 3).swapaxes(1, 2).reshape(-1, step, step, 3)
    mixed = blocks[rng.permutation(len(blocks))].reshape(tiles, tiles, step, step, 3).swapaxes(1, 2)
    return Image.fromarray(np.ascontiguousarray(mixed.reshape(side_px, side_px, 3))).resize(picture.size)


def plain_png(picture: Image.Image) -> bytes:
    """The pixels as a PNG of one fixed kind, without any metadata."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(picture.convert("RGB"))).save(stream, format="PNG", compress_level=4)
    return stream.getvalue()


def bundle(
    config: SurveyConfig, pairs: Sequence[Pair], golds: Sequence[Pair], *, token: Token = _token
) -> Bundle:
    """Give everything its opaque id and lay out the plans.

    Args:
        token: makes random ids.
    """
    section = config.survey
    plans = plan(
        len(pairs), section.raters, section.answers_per_pair, gold_share=section.gold_share if golds else 0.0,
        repeat_share=section.repeat_share, most=section.most_per_rater, seed=section.seed,
    )  # fmt: skip
    survey_id = f"survey_{token()}"
    images: dict[str, bytes] = {}
    key_pairs: dict[str, dict[str, Any]] = {}
    ids: dict[tuple[str, int], tuple[str, str, str]] = {}

    def register(kind: str, number: int, pair: Pair) -> None:
        names = (f"img_{token()}", f"img_{token()}")
        images.update({name: plain_png(picture) for name, picture in zip(names, pair.pictures, strict=True)})
        pair_id = f"pair_{token()}"
        ids[kind, number] = (pair_id, *names)
        key_pairs[pair_id] = {
            "kind": kind,
            "prompt_id": pair.prompt_id,
            "prompt": pair.prompt,
            "pictures": dict(zip(names, pair.roles, strict=True)),
        }

    for number, pair in enumerate(pairs):
        register("real", number, pair)
    for number, pair in enumerate(golds):
        register("gold", number, pair)
    laid = [
        [_laid(showing, ids, key_pairs, token) for showing in showings if _exists(showing, golds)]
        for showings in plans
    ]
    shown = {pair_id for showings in laid for pair_id, _, _ in showings}
    manifest = {
        "format": "crest-survey-1",
        "survey_id": survey_id,
        "title": section.title,
        "consent": section.consent,
        "contact": section.contact,
        "questions": [{"id": name, "text": text} for name, text in QUESTIONS.items()],
        "pairs": {pair_id: key_pairs[pair_id]["prompt"] for pair_id in sorted(shown)},
        "plans": laid,
    }
    key = {
        "format": "crest-survey-key-1",
        "survey_id": survey_id,
        "baseline": section.baseline,
        "system": next(system.name for system in section.systems if system.name != section.baseline),
        "primary": section.primary,
        "questions": list(QUESTIONS),
        "exclude": config.exclude.model_dump(),
        "pairs": key_pairs,
    }
    return Bundle(manifest, key, images, [(f"rater_{token()}", number) for number in range(len(laid))])


def _exists(showing: Showing, golds: Sequence[Pair]) -> bool:
    return showing.kind != "gold" or showing.pair < len(golds)


def _laid(
    showing: Showing,
    ids: dict[tuple[str, int], tuple[str, str, str]],
    key_pairs: dict[str, dict[str, Any]],
    token: Token,
) -> tuple[str, str, str]:
    """(pair id, left picture, right picture); a repeat has a pair id of its own: nothing marks it."""
    kind = "gold" if showing.kind == "gold" else "real"
    pair_id, first, second = ids[kind, showing.pair]
    if showing.kind == "repeat":
        original = pair_id
        if ("repeat", showing.pair) not in ids:
            ids["repeat", showing.pair] = (f"pair_{token()}", first, second)
            key_pairs[ids["repeat", showing.pair][0]] = {
                **key_pairs[original],
                "kind": "repeat",
                "of": original,
            }
        pair_id = ids["repeat", showing.pair][0]
    return (pair_id, second, first) if showing.is_flipped else (pair_id, first, second)


def page_html(manifest: dict[str, Any]) -> str:
    """The page with style, script and manifest inside; texts can't end the script element."""
    embedded = json.dumps(manifest, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        embedded = embedded.replace(character, f"\\u{ord(character):04x}")
    template = (HERE / "page.html").read_text(encoding="utf-8")
    parts = {
        "/*style*/": (HERE / "page.css").read_text(encoding="utf-8"),
        "/*script*/": (HERE / "page.js").read_text(encoding="utf-8"),
        "/*manifest*/": embedded,
    }
    for mark, content in parts.items():
        before, found, after = template.partition(mark)
        assert found, mark
        template = before + content + after
    return template


def export(config: SurveyConfig, systems: Sequence[System]) -> Bundle:
    """Write index.html, images/ and private/ of a survey.

    An export of the same inputs leaves the ids as they are; one of other inputs is refused, for answers may
    be out.

    Raises:
        RunError: the folder holds another survey.
        ConfigError: too many pairs for the raters.
    """
    section = config.survey
    private = section.dir / "private"
    inputs = hash_of(
        [system.hash for system in systems],
        {**section.model_dump(mode="json", exclude={"dir"})},
        config.exclude.model_dump(),
    )
    if (private / "key.json").exists():
        key = read_json(private / "key.json")
        if key.get("inputs") != inputs:
            raise RunError(
                f"{section.dir}: holds a survey of other pictures or settings, and answers to it may be out; "
                "name another survey.dir, or remove this one."
            )
        if (section.dir / "index.html").exists():
            manifest = read_manifest_of(section.dir / "index.html")
            return Bundle(manifest, key, {}, [])
    pairs = survey_pairs(systems, section.pairs, section.side_px, section.seed)
    wanted = gold_items(len(pairs), section.raters, section.answers_per_pair, section.gold_share)
    golds = gold_pairs(pairs, section.shards, wanted, section.side_px, section.seed)
    made = bundle(config, pairs, golds)
    for old in (section.dir / "images").glob("img_*.png"):  # of an export that was cut short
        old.unlink()
    for name, content in made.images.items():
        write_bytes(section.dir / "images" / f"{name}.png", content)
    write_text(private / "links.csv", links_csv(made.links))
    write_json(private / "key.json", {**made.key, "inputs": inputs})
    os.chmod(private, 0o700)  # noqa: PTH101
    write_text(section.dir / "index.html", page_html(made.manifest))  # last: its presence means done
    return made


def read_manifest_of(page: Path) -> dict[str, Any]:
    """The manifest inside an exported page."""
    _, _, rest = page.read_text(encoding="utf-8").partition('<script type="application/json" id="manifest">')
    found: dict[str, Any] = json.loads(rest.partition("</script>")[0])
    return found


def links_csv(links: Sequence[tuple[str, int]]) -> str:
    """One link a rater, to be appended to the address where the page is hosted."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["rater_id", "plan", "link"])
    for rater, number in links:
        writer.writerow([rater, number, f"index.html?rater={rater}&plan={number}"])
    return stream.getvalue()
