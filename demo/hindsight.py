"""What only the demo can know, because it drew the truth itself: whether drawings and captions are right.

Measures finished files and writes judge/; changes nothing that it measures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from crest.colours import COLOURS, SPELLINGS
from crest.records import Split, read_captions, read_jsonl, read_records, write_json, write_jsonl
from demo.config import SYSTEMS
from demo.heraldry import CHARGES, SHAPES, Specification
from demo.wording import OTHER_NAMES

if TYPE_CHECKING:
    from crest.models.clip import ClipEncoder
    from crest.pixels import Pictures
    from demo.league import Logo

SIDE_PX: Final = 64
CAPTION_ATTRIBUTES: Final = ("shape", "field_colour", "charge", "charge_colour")
QUERIES: Final = 4
FOUND: Final = 5


def judge_samples(
    folders: Mapping[str, Path], truths: Mapping[str, Specification], path: Path
) -> dict[str, float]:
    """Judge what each system drew by the nearest drawable specification.

    Args:
        folders: system -> folder with samples.jsonl.
        truths: prompt id -> what was asked for.
        path: where one row a picture is written.
    Returns:
        `<system>.<attribute>`: share of pictures, in [0, 1].
    """
    from tqdm import tqdm

    from crest.images import read_image, square
    from demo.judge import ATTRIBUTES, Judge, marks

    judge = Judge(SIDE_PX)
    rows: list[dict[str, Any]] = []
    shares: dict[str, float] = {}
    for system, folder in folders.items():
        drawings = list(read_jsonl(folder / "samples.jsonl"))
        mine = []
        for first in tqdm(range(0, len(drawings), 16), desc=f"judge {system}", unit="batch", disable=None):
            part = drawings[first : first + 16]
            pictures = [square(read_image(folder / row["file"]), SIDE_PX) for row in part]
            pixels = np.stack([np.asarray(picture, dtype=np.float32) / 255 for picture in pictures])
            for row, verdict in zip(part, judge.judge_many(pixels), strict=True):
                mine.append(
                    {
                        "prompt_id": row["prompt_id"],
                        "system": system,
                        "file": row["file"],
                        **marks(verdict, truths[row["prompt_id"]]),
                        "seen": verdict.specification.to_dict(),
                        "distance": round(verdict.distance, 5),
                    }
                )
        for name in ("exact", *ATTRIBUTES):
            shares[f"{system}.{name}"] = sum(row[name] for row in mine) / len(mine)
        rows += mine
    write_jsonl(path, rows)
    return shares


def _spellings(words: Iterable[str]) -> dict[str, str]:
    """Every way to write one of the words -> the word; the longer first, as 'navy blue' before 'navy'."""
    found = {other: word for word in words for other in (word, *OTHER_NAMES.get(word, ()))}
    found |= {other: word for other, word in SPELLINGS.items() if word in words}
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


_SHAPE_WORDS: Final = _spellings(SHAPES)
_CHARGE_WORDS: Final = _spellings(CHARGES)
_COLOUR_WORDS: Final = _spellings(COLOURS)


def _any(words: Iterable[str], name: str) -> str:
    return rf"(?P<{name}>{'|'.join(words)})"


_FIELD: Final = re.compile(
    rf"\b{_any(_COLOUR_WORDS, 'first')}"
    rf"(?: and {_any(_COLOUR_WORDS, 'second')} (?:halved|striped|chevroned|quartered))? "
    rf"{_any(_SHAPE_WORDS, 'shape')}\b",
    re.IGNORECASE,
)
_CHARGE: Final = re.compile(
    rf"\b{_any(_COLOUR_WORDS, 'colour')} {_any(_CHARGE_WORDS, 'charge')}\b", re.IGNORECASE
)


def caption_marks(text: str, truth: Specification) -> dict[str, bool]:
    """Which attributes of a crest a caption in the league's manner tells right.

    Colours count where they belong: the field's before the shape, the charge's before the charge.
    """
    field, charge = _FIELD.search(text), _CHARGE.search(text)
    colours: tuple[str, ...] = ()
    if field is not None:
        colours = tuple(_COLOUR_WORDS[field[name].lower()] for name in ("first", "second") if field[name])
    return {
        "shape": field is not None and _SHAPE_WORDS[field["shape"].lower()] == truth.shape,
        "field_colour": colours == truth.field_colours,
        "charge": charge is not None and _CHARGE_WORDS[charge["charge"].lower()] == truth.charge,
        "charge_colour": charge is not None
        and _COLOUR_WORDS[charge["colour"].lower()] == truth.charge_colour,
    }


def check_captions(data_dir: Path, logos: Iterable[Logo], path: Path) -> dict[str, float]:
    """Check the captions that the captioner wrote against what was drawn.

    Args:
        data_dir: the scraper's data folder.
        logos: the league's logos; a record's picture address names its logo.
        path: where one row a caption is written.
    Returns:
        `captioner.captions`, how many of crests the captioner wrote, and where there are any, shares in
        [0, 1]: `captioner.<attribute>`, `captioner.all`.
    """
    truths = _truths_by_id(data_dir, logos)
    rows: list[dict[str, Any]] = []
    for caption in read_captions(data_dir / "captions.jsonl"):
        truth = truths.get(caption.id)
        if caption.origin == "model" and truth is not None:
            rows.append({"id": caption.id, "text": caption.text, **caption_marks(caption.text, truth)})
    write_jsonl(path, rows)
    found: dict[str, float] = {"captioner.captions": len(rows)}
    return found | (_caption_shares(rows, "captioner") if rows else {})


def _truths_by_id(data_dir: Path, logos: Iterable[Logo]) -> dict[str, Specification]:
    """What the pictures of a scraper's data folder show, by id; wordmarks are left out."""
    from demo.site import THUMB_PX

    truths = {logo.file_name: logo.specification for logo in logos}
    found: dict[str, Specification] = {}
    for record in read_records(data_dir / "records.jsonl"):
        name = record.image_url.rpartition("/")[2].replace(f"-{THUMB_PX}x{THUMB_PX}", "")
        truth = truths.get(name)
        if truth is not None:
            found[record.id] = truth
    return found


def _caption_shares(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    shares = {f"{name}.{mark}": sum(row[mark] for row in rows) / len(rows) for mark in CAPTION_ATTRIBUTES}
    whole = sum(all(row[mark] for mark in CAPTION_ATTRIBUTES) for row in rows)
    return {**shares, f"{name}.all": whole / len(rows)}


def compare_captioners(answers: Path, data_dir: Path, logos: Iterable[Logo], path: Path) -> dict[str, float]:
    """Check what the captioners said of crests whose clubs were held out from fine-tuning.

    Args:
        answers: answers.jsonl of the step `captions`.
        data_dir: the scraper's data folder.
        logos: the league's logos; a record's picture address names its logo.
        path: where one row a caption is written.
    Returns:
        `captioner.held_out.samples`, and per captioner, in [0, 1], `captioner.held_out.<name>.<attribute>`,
        `.all` and `.colour_word_f1` (against the human caption).
    """
    from caption_train.words import word_scores

    truths = _truths_by_id(data_dir, logos)
    held_out = [row for row in read_jsonl(answers) if row["id"] in truths]
    figures: dict[str, float] = {"captioner.held_out.samples": len(held_out)}
    rows: list[dict[str, Any]] = []
    for name in SYSTEMS if held_out else ():
        mine = [
            {
                "id": row["id"],
                "captioner": name,
                "text": row[name],
                **caption_marks(row[name], truths[row["id"]]),
            }
            for row in held_out
        ]
        rows += mine
        figures |= _caption_shares(mine, f"captioner.held_out.{name}")
        scores = word_scores([row[name] for row in held_out], [row["human"][0] for row in held_out], ())
        figures[f"captioner.held_out.{name}.colour_word_f1"] = scores["colour_word_f1"]
    write_jsonl(path, rows)
    return figures


def measure_retrieval(clips: Mapping[str, str], shards: Path, path: Path, device: str) -> dict[str, float]:
    """Retrieval among held-out logos before and after CLIP was tuned.

    Args:
        clips: "stock" and "tuned" -> weights.
        shards: the league's shards.
        path: where a few queries with what each CLIP found are written.
    Returns:
        `retrieval.<split>.<clip>.<figure>` and `retrieval.<split>.samples`; shares in [0, 1].
    """
    import torch

    from clip_train.retrieval import number_captions, retrieval_metrics
    from crest.models.clip import load_clip
    from crest.pixels import open_pictures
    from crest.world import pick_device

    figures: dict[str, float] = {}
    found: dict[str, Any] = {}
    splits: tuple[Split, ...] = ("val", "test")
    for name, place in clips.items():
        clip = load_clip(place, pick_device(device))
        for split in splits:
            pictures = open_pictures(shards, split, clip.model.side_px)
            if len(pictures) < 2:
                continue
            image_embed, text_embed = _embed(clip, pictures)
            same = number_captions(pictures.captions)
            figures[f"retrieval.{split}.samples"] = len(pictures)
            for figure, value in retrieval_metrics(image_embed, text_embed, same).items():
                figures[f"retrieval.{split}.{name}.{figure}"] = round(value, 6)
            if split == "test":
                rows = torch.linspace(0, len(pictures) - 1, min(QUERIES, len(pictures))).long()
                nearest = (text_embed[rows] @ image_embed.T).topk(min(FOUND, len(pictures)), dim=1).indices
                found["queries"] = [
                    {"id": pictures.ids[row], "caption": pictures.captions[row]} for row in rows.tolist()
                ]
                found[name] = [[pictures.ids[number] for number in row] for row in nearest.tolist()]
    write_json(path, found)
    return figures


def _embed(clip: ClipEncoder, pictures: Pictures) -> Any:
    import torch

    images, texts = [], []
    for first in range(0, len(pictures), 128):
        last = min(first + 128, len(pictures))
        images.append(clip.encode_image(torch.from_numpy(pictures.floats(np.arange(first, last)))).cpu())
        texts.append(clip.encode_text(pictures.captions[first:last]).text_embed.cpu())
    return torch.cat(images), torch.cat(texts)


def read_truths(prompts: Path) -> dict[str, Specification]:
    """What each prompt of the demo's prompts.jsonl asks for, by its id."""
    return {row["id"]: Specification.from_dict(row["specification"]) for row in read_jsonl(prompts)}


def confusions(
    rows: Sequence[Mapping[str, Any]], truths: Mapping[str, Specification], system: str
) -> list[str]:
    """A system's most frequent mistakes in words, the most frequent first: 'charge sun drawn as ball (3)'."""
    from collections import Counter

    counted: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        truth = truths[row["prompt_id"]].to_dict()
        if row["system"] == system:
            for name in ("shape", "field", "field_colour", "charge", "charge_colour"):
                asked, seen = truth[name], row["seen"][name]
                if asked is not None and seen is not None and asked != seen:
                    counted[name.replace("_", " "), asked, seen] += 1
    return [
        f"{what} {asked} drawn as {seen} ({times})" for (what, asked, seen), times in counted.most_common(6)
    ]
