"""Give every picture its words: the source's own, a captioner's where they are wanted, measured colours.

What a source wrote is never overwritten, and every caption says who wrote it. Records are streamed; a killed
run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from crest.config import run_command
from crest.errors import ConfigError
from crest.records import (
    Caption,
    Manifest,
    hash_of,
    read_json,
    read_manifest,
    stream_records,
    whole,
    write_json,
)
from scraper.answers import Answer, Answers
from scraper.config import CaptionConfig, ScraperConfig
from scraper.harvest import told
from scraper.lint import SharedWords, reasons_of
from scraper.own_words import own_captions

RECORDS_BY: Final = "python -m scraper (make scrape)"
MENDABLE: Final = ("damaged_picture", "api_")
"""How reasons begin that another run may do away with."""
FINAL: Final = ("api_refused", "api_over_budget")
_AHEAD: Final = 1000


@dataclass(frozen=True)
class Voice:
    """A captioner or a rule whose answers become captions."""

    recipe: str
    origin: str
    weight: float
    name: str = ""
    prompt: str = ""


@dataclass
class Tally:
    """What is counted while captions are written."""

    counts: Counter[str] = field(
        default_factory=lambda: Counter(
            human=0, rule=0, model=0, whole=0, cut_back=0, given_up=0, missing=0, folded=0, vague=0
        )
    )
    vague: Counter[str] = field(default_factory=Counter)
    """rule -> pictures whose heaviest caption it flags"""
    unanswered: Counter[str] = field(default_factory=Counter)
    """reason -> pictures that the captioner was shown in vain, for good"""
    pictures: int = 0
    described: int = 0


def main(config: ScraperConfig) -> None:
    """Write captions.jsonl in the order of the records, and captions.json."""
    from scraper.describe import weights_mark

    started = time.monotonic()
    folder, settings = config.data.dir, config.caption
    parent = read_manifest(folder, "records", RECORDS_BY)
    made_from = hash_of(parent.hash, settings.model_dump(mode="json"), weights_mark(settings))
    if _is_done(folder / "captions.json", made_from):
        print(f"{folder / 'captions.jsonl'}: up to date; nothing to do.")
        return
    shared = SharedWords(caption.text for caption in _leads(folder))
    with closing(Answers(folder)) as answers:
        voices, failures, details = _voices(config, shared, answers)
        tally = Tally()
        digest = _write_lines(
            folder,
            _lines(_composed(folder, settings, shared, answers, voices, tally)),
            folder / "captions.json",
        )
    failures.update(tally.unanswered)
    left = tally.pictures - tally.described
    manifest = Manifest(
        kind="captions",
        hash=digest,
        counts=dict(tally.counts),
        dropped={"no_caption": left},
        parents={"records": parent.hash, **details.pop("parents", {})},
        files={"captions.jsonl": (folder / "captions.jsonl").stat().st_size},
        details={
            "made_from": made_from,
            "vague": dict(tally.vague.most_common()),
            "failures": dict(sorted(failures.items())),
            **details,
        },
    )
    write_json(folder / "captions.json", dataclasses.asdict(manifest))
    _tell(folder, tally, failures, time.monotonic() - started)


def _tell(folder: Path, tally: Tally, failures: Counter[str], seconds: float) -> None:
    counts, left = tally.counts, tally.pictures - tally.described
    print(
        f"{folder}: {tally.pictures:,} logos came in; {tally.described:,} have words: {counts['human']:,} "
        f"captions by people ({counts['cut_back']:,} ended at a clause), {counts['model']:,} by a captioner, "
        f"{counts['rule']:,} by rule; {counts['vague']:,} are vague ({told(tally.vague)}); "
        f"{_failed(failures)}dropped {left:,}: {told({'no_caption': left})}; {seconds:.1f} s."
    )


def _failed(failures: Counter[str]) -> str:
    return f"the captioner had no words for {failures.total():,} ({told(failures)}); " if failures else ""


def _is_done(path: Path, made_from: str) -> bool:
    """Whether captions.json was made from just this, and nothing in it may be mended by asking again."""
    if not path.exists():
        return False
    details = read_json(path)["details"]
    failures = details.get("failures", {})
    mendable = [name for name in failures if name.startswith(MENDABLE) and name not in FINAL]
    return bool(details.get("made_from") == made_from and not mendable)


def _leads(folder: Path) -> Iterator[Caption]:
    """The first of each picture's own captions."""
    for record in stream_records(folder / "records.jsonl"):
        yield from own_captions([record])[0][:1]


def needs_words(own: Sequence[Caption], settings: CaptionConfig, shared: SharedWords) -> bool:
    """Whether the captioner is to be shown a picture that has these captions of its own."""
    if settings.describe == "all" or not own:
        return True
    return settings.describe == "vague" and all(reasons_of(caption.text, shared) for caption in own)


def _voices(
    config: ScraperConfig, shared: SharedWords, answers: Answers
) -> tuple[list[Voice], Counter[str], dict[str, Any]]:
    """Have everything asked that was not answered before.

    Returns:
        whose answers are used, reasons of pictures without one, and what the manifest says of it.
    """
    from tqdm import tqdm

    from scraper.api_rounds import Asked
    from scraper.describe import measure_all, palette_recipe

    folder, settings = config.data.dir, config.caption
    voices: list[Voice] = []
    failures: Counter[str] = Counter()
    details: dict[str, Any] = {}

    def silent(recipe: str, *, is_beside: bool) -> Iterator[Asked]:
        """Pictures without an answer; `is_beside`: those that have other words, else those that need some."""
        records = stream_records(folder / "records.jsonl")
        while some := list(islice(records, _AHEAD)):
            known = answers.get(recipe, [record.id for record in some])
            for record in some:
                is_meant = is_beside or needs_words(own_captions([record])[0], settings, shared)
                if is_meant and record.id not in known:
                    yield Asked(record.id, record.image)

    if settings.weights is not None or settings.route == "api":
        asked = _Asked(config)
        count = sum(1 for _ in silent(asked.voice.recipe, is_beside=False))
        with tqdm(total=count, desc="caption", unit="logo", disable=None) as bar:
            if count:
                pictures = silent(asked.voice.recipe, is_beside=False)
                failures += asked.describe(pictures, count, answers, bar.update)
        voices.append(asked.voice)
        details |= asked.details(answers)
    if settings.palette:
        recipe = palette_recipe()
        count = sum(1 for _ in silent(recipe, is_beside=True))
        with tqdm(total=count, desc="colours", unit="logo", disable=None) as bar:
            if count:
                measure_all(config.work, silent(recipe, is_beside=True), count, answers, folder, bar.update)
        voices.append(Voice(recipe, "rule", settings.palette_weight))
    return voices, failures, details


class _Asked:
    """The config's captioner, of ours or behind an interface."""

    def __init__(self, config: ScraperConfig) -> None:
        self._config, settings = config, config.caption
        self._api: Any = None
        if settings.route == "api":
            from scraper.api_rounds import open_api

            self._api, recipe = open_api(settings)
            name, prompt = self._api.settings.model, settings.prompt
            self._parents: dict[str, str] = {}
        else:
            from scraper.describe import load, recipe_of

            captioner = load(settings)
            recipe = recipe_of(captioner, settings)
            name, prompt = str(settings.weights), captioner.prompt
            self._parents = {"captioner": captioner.hash}
        self.voice = Voice(recipe, "model", settings.model_weight, name, prompt)

    def describe(self, pictures: Iterator[Any], count: int, answers: Answers, advance: Any) -> Counter[str]:
        """Have pictures described; named reason -> how many were not."""
        config = self._config
        if self._api is not None:
            from scraper.api_rounds import describe

            return describe(self._api, self.voice.recipe, pictures, answers, config.data.dir, advance)
        from scraper.describe import describe_all

        return describe_all(config.caption, config.work, pictures, count, answers, config.data.dir, advance)

    def details(self, answers: Answers) -> dict[str, Any]:
        """What captions.json says of it."""
        told_of = {"name": self.voice.name, "prompt": self.voice.prompt, "recipe": self.voice.recipe}
        details: dict[str, Any] = {"captioner": told_of, "parents": self._parents}
        if self._api is not None:
            details["spent"] = dataclasses.asdict(answers.spent(self.voice.recipe))
        return details


def _composed(
    folder: Path, settings: CaptionConfig, shared: SharedWords, answers: Answers, voices: Sequence[Voice],
    tally: Tally,
) -> Iterator[Caption]:  # fmt: skip
    """All captions in the order of the records, each picture's heaviest first; counts as it goes."""
    records = stream_records(folder / "records.jsonl")
    while some := list(islice(records, _AHEAD)):
        ids = [record.id for record in some]
        heard = [(voice, answers.get(voice.recipe, ids)) for voice in voices]
        for record in some:
            own, counts = own_captions([record])
            tally.counts.update(counts)
            captions = list(own)
            for voice, known in heard:
                is_meant = voice.origin == "rule" or needs_words(own, settings, shared)
                answer = known.get(record.id) if is_meant else None
                # colours alone would describe a palette, not a logo
                if answer is not None and (captions or voice.origin != "rule"):
                    captions += _spoken(answer, voice, tally)
            captions = _folded(captions, tally)
            tally.pictures += 1
            tally.described += bool(captions)
            tally.counts.update(caption.origin for caption in captions)
            found = reasons_of(captions[0].text, shared) if captions else ()
            tally.vague.update(found)
            tally.counts["vague"] += bool(found)
            yield from captions


def _spoken(answer: Answer, voice: Voice, tally: Tally) -> list[Caption]:
    """The caption of an answer; one that ran out of tokens is ended at a clause, or given up."""
    from scraper.cut_text import cut_back, is_cut

    text, reason = answer.text, answer.reason
    if is_cut(text):
        text, reason = cut_back(text) or "", "cut_answer"
    if not text:
        tally.unanswered.update([reason] if reason else [])
        return []
    return [Caption(answer.id, text, voice.origin, voice.name, answer.revision, voice.prompt, voice.weight)]


def _folded(captions: list[Caption], tally: Tally) -> list[Caption]:
    """The heaviest first, and of those that say the same only the first."""
    ordered = sorted(captions, key=lambda caption: -caption.weight)
    kept = {" ".join(one.text.casefold().split()).rstrip("."): one for one in reversed(ordered)}
    tally.counts["folded"] += len(ordered) - len(kept)
    return [caption for caption in ordered if any(caption is one for one in kept.values())]


def _lines(captions: Iterable[Caption]) -> Iterator[str]:
    for caption in captions:
        yield json.dumps(dataclasses.asdict(caption), ensure_ascii=False) + "\n"


def _write_lines(folder: Path, lines: Iterable[str], mark: Path) -> str:
    """Write captions.jsonl whole or not at all, line by line; returns its hash.

    The mark that says that it is finished goes only when all lines of the new file are written.
    """
    digest = hashlib.sha256()
    with whole(folder / "captions.jsonl") as stream:
        for line in lines:
            content = line.encode()
            digest.update(content)
            stream.write(content)
        stream.flush()  # a full disk tells now, and the mark stays
        mark.unlink(missing_ok=True)  # before the new file has its name: it never vouches for another
    return digest.hexdigest()[:16]


def check(config: ScraperConfig) -> None:
    """Look whether there are records, and whether the captioner can be asked."""
    read_manifest(config.data.dir, "records", RECORDS_BY)
    settings = config.caption
    if settings.route == "api":
        if settings.api is None:
            raise ConfigError('caption.api: is null, but the route is "api"; say where the interface is.')
        from scraper.caption_api import check_settings

        check_settings(settings.api)


if __name__ == "__main__":
    raise SystemExit(run_command("scraper.caption", ScraperConfig, main, check=check))
