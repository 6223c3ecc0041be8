"""Compare captioners with what people wrote of held-out logos: report.json, report.html, answers.jsonl.

The only file that knows sacrebleu. The same logos are held out as in the captioner's training, so none that
it learned from is shown to it here.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from caption_train.report_config import CHANCE, CaptionReportConfig, SystemConfig
from crest.config import resolved_json, run_command
from crest.records import read_manifest, write_json, write_jsonl, write_text

if TYPE_CHECKING:
    from caption_train.held_out import HeldOut
    from caption_train.report_scores import Figure


def n_gram_scores(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF of a corpus, 0 to 100.

    Args:
        written: one text a logo.
        references: what people wrote of each logo, one text or several.
    """
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    streams = [
        [texts[number] if number < len(texts) else None for texts in references] for number in range(most)
    ]
    return {
        "bleu": float(BLEU(lowercase=True).corpus_score(list(written), streams).score),
        "chrf": float(CHRF(lowercase=True).corpus_score(list(written), streams).score),
    }


def write_down(
    system: SystemConfig, config: CaptionReportConfig, logos: Sequence[HeldOut]
) -> tuple[dict[str, str], dict[str, str]]:
    """What a captioner says of the logos.

    Returns:
        id -> text, and what names the captioner.
    """
    from caption_train.held_out import contents, written_before

    if system.captions is not None:
        return written_before(system.captions, logos), {"captions": str(system.captions)}
    from tqdm import tqdm

    from crest.images import decode
    from crest.models.captioner import load_captioner
    from crest.models.hub_captioner import QUESTION, Asking
    from crest.world import pick_device

    asking = Asking(system.route, system.prompt or QUESTION, system.beams, system.max_tokens)
    place = str(system.weights)
    captioner = load_captioner(place, pick_device(config.report.device), asking, system.revision)
    found: dict[str, str] = {}
    batch: list[tuple[str, Any]] = []

    def describe() -> None:
        texts = captioner.caption([picture for _, picture in batch])
        found.update((name, " ".join(text.split())) for (name, _), text in zip(batch, texts, strict=True))
        batch.clear()

    for one, content in tqdm(
        contents(config.data, logos), total=len(logos), desc=system.name, unit="logo", disable=None
    ):
        batch.append((one.id, decode(content, one.id)))
        if len(batch) == config.report.batch_size:
            describe()
    if batch:
        describe()
    return found, {"weights": place, "hash": captioner.hash, "prompt": captioner.prompt}


def scored(
    written: Sequence[str], logos: Sequence[HeldOut], config: CaptionReportConfig
) -> dict[str, Figure]:
    """All figures of one system."""
    from caption_train.report_scores import TITLES, Figure, score

    figures = score(
        written,
        [one.texts[0] for one in logos],
        [one.group for one in logos],
        resamples=config.report.resamples,
        seed=config.report.seed,
    )
    ngrams = n_gram_scores(written, [one.texts for one in logos])
    figures |= {name: Figure(value) for name, value in ngrams.items()}
    return {name: figures[name] for name in TITLES if name in figures}


def main(config: CaptionReportConfig) -> None:
    """Have every captioner describe the held-out logos, and tell how far that is what people said."""
    from caption_train.held_out import contents, data_hash, read_held_out
    from caption_train.report_page import render, thumbnail
    from caption_train.report_scores import someone_elses

    started = time.monotonic()
    logos = read_held_out(config.data)
    true = [one.texts[0] for one in logos]
    groups = [one.group for one in logos]
    written: dict[str, list[str]] = {}
    captioners: dict[str, dict[str, str]] = {}
    for system in config.report.systems:
        found, captioners[system.name] = write_down(system, config, logos)
        written[system.name] = [found.get(one.id, "") for one in logos]
    figures = {
        name: scored(texts, logos, config)
        for name, texts in {**written, CHANCE: someone_elses(true, groups)}.items()
    }
    told = {
        "data": {"records": str(config.data.records), "hash": data_hash(logos)},
        "logos": len(logos),
        "groups": len(set(groups)),
        "captioners": captioners,
        "systems": {
            name: {metric: dataclasses.asdict(figure) for metric, figure in own.items()}
            for name, own in figures.items()
        },
    }
    folder = config.report.dir
    rows = [
        {"id": one.id, "human": list(one.texts), **{name: texts[place] for name, texts in written.items()}}
        for place, one in enumerate(logos)
    ]
    write_jsonl(folder / "answers.jsonl", rows)
    shown = sorted(range(len(logos)), key=lambda place: logos[place].id)[: config.report.shown]
    pictures = {
        one.id: thumbnail(content, one.id)
        for one, content in contents(config.data, [logos[place] for place in shown])
    }
    seen = [(pictures[logos[place].id], rows[place]) for place in shown]
    page = render(config.report, told, figures, seen, resolved_json(config))
    write_text(folder / "report.html", page)
    write_json(folder / "report.json", told)
    print(f"{folder / 'report.html'}: {len(logos):,} held-out logos; {time.monotonic() - started:.1f} s.")
    for name, own in figures.items():
        things = f", of things {own['object_f1'].value:.1%}" if "object_f1" in own else ""
        colours = f"{own['colour_f1'].value:.1%}" if "colour_f1" in own else "none to compare"
        print(f"  {name}: F1 of colour words {colours}{things}")


def check(config: CaptionReportConfig) -> None:
    """Look whether the logos are there."""
    folder = config.data.records
    if (folder / "records.jsonl").exists():
        read_manifest(folder, "records", "python -m scraper (make scrape)")
    else:
        read_manifest(folder, "shards", "python -m scraper.pack (make shards)")


if __name__ == "__main__":
    sys.exit(run_command("caption_train.report", CaptionReportConfig, main, check=check))
