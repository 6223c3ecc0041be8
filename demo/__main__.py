"""The main job: serve a site of logos, scrape it, tune all models, draw, judge, and write one page.

Goes on where it was interrupted. A step whose config or stock weights have changed is done anew with all that
rests on it; what does not rest on it is kept.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from typing import Final

from crest.config import run_command
from crest.errors import ConfigError
from crest.interruption import heed
from crest.records import read_json
from demo.config import SYSTEMS, DemoConfig, load_step, step_path
from demo.steps import STEPS, Journal, Plan, sources_of

AGAIN: Final = "run make demo again to go on"
DEFAULT: Final = "configs/demo/demo.json"


def check(config: DemoConfig) -> None:
    """Look whether the configs of all steps are sound and the stock weights are there."""
    sources_of(config)
    _load_light_configs(config)


def main(config: DemoConfig) -> None:
    """Run what is left to do, and say what came out."""
    started = time.monotonic()
    folder = config.place.dir
    journal = Journal(folder)
    sources = sources_of(config)
    plan = journal.plan(sources)
    page = folder / "report" / "index.html"
    if not plan.todo:
        print(f"{folder}: the demo is finished (remove that folder to run it anew); the page is {page}")
        _say_verdict(config)
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning stalls a run whose cores are contested
    step = plan.todo[0]
    try:
        _start_over(journal, plan)
        for step in plan.todo:
            number = STEPS.index(step) + 1
            print(f"[{number}/{len(STEPS)}] {step.name}: {step.does} …", flush=True)
            with journal.running(step, sources[step.name], since=started):
                heed()
                if step == plan.todo[0]:
                    _load_heavy_configs(config)  # a typo is told now, not after minutes of training
                RUN[step.name](config, journal)
            started = time.monotonic()
            print(f"[{number}/{len(STEPS)}] {step.name}: {journal.seconds()[step.name]:.1f} s", flush=True)
    except KeyboardInterrupt:
        print(f"\ninterrupted in {step.name}; {AGAIN}", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"\nthe page is {page}")
    _say_verdict(config)


def _say_verdict(config: DemoConfig) -> None:
    metrics = read_json(config.place.dir / "report" / "metrics.json")
    print(*(metrics[f"verdict.{line}"] for line in (1, 2, 3)), sep="\n")


def _start_over(journal: Journal, plan: Plan) -> None:
    """Clear what no longer holds, and say in one line what is kept and what is not."""
    if plan.stale:
        names = ", ".join(step.name for step in plan.stale)
        kept = ", ".join(step.name for step in STEPS if step not in plan.todo) or "nothing"
        print(f"{journal.folder}: {'; '.join(plan.reasons)}; starting afresh: {names}; kept: {kept}")
        journal.forget(plan.stale)
    elif len(plan.todo) < len(STEPS):
        before = len(STEPS) - len(plan.todo)
        print(f"{journal.folder}: going on; {before} of {len(STEPS)} steps were finished before")


def _load_light_configs(config: DemoConfig) -> None:
    from caption_train.config import CaptionTrainConfig
    from caption_train.report_config import CaptionReportConfig
    from clip_train.config import ClipTrainConfig, EmbedConfig
    from decoder_train.config import DecoderTrainConfig
    from eval.config import EvalConfig
    from eval.survey.config import SurveyConfig
    from prior_train.config import PriorTrainConfig
    from scraper.config import ScraperConfig

    load_step(config, "data", ScraperConfig)
    load_step(config, "captioner", CaptionTrainConfig)
    captioners = load_step(config, "captions", CaptionReportConfig).report.systems
    load_step(config, "clip", ClipTrainConfig)
    load_step(config, "embed", EmbedConfig)
    load_step(config, "prior", PriorTrainConfig)
    load_step(config, "decoder_64", DecoderTrainConfig)
    load_step(config, "eval", EvalConfig)
    load_step(config, "survey", SurveyConfig)
    names = {system.name for system in captioners}
    if not names.issuperset(SYSTEMS):
        raise ConfigError(
            f"{step_path(config, 'captions')}: report.systems are {', '.join(sorted(names))}, expected "
            f"{' and '.join(SYSTEMS)} among them, which the page compares; name them so."
        )


def _load_heavy_configs(config: DemoConfig) -> None:
    from crest.generate_config import GenerateConfig

    for name in ("generate_stock", "generate"):
        load_step(config, name, GenerateConfig)


def scrape(config: DemoConfig, journal: Journal) -> None:
    """Serve the world on loopback and scrape it over HTTP."""
    import json
    from urllib.parse import urlsplit

    from demo.league import league
    from demo.site import LeagueSite
    from scraper.__main__ import main as run
    from scraper.config import ScraperConfig

    world = config.world
    leagues = [league(world.seed, index, world.clubs_per_league) for index in range(world.leagues)]
    port = urlsplit(load_step(config, "data", ScraperConfig).source.root_url).port or 0
    try:
        site = LeagueSite(leagues, port, draw_ahead=True)
    except OSError:  # something else listens there
        site = LeagueSite(leagues, draw_ahead=True)
    with site:
        run(load_step(config, "data", ScraperConfig, f"source.url={json.dumps(site.url)}"))


def captioner(config: DemoConfig, journal: Journal) -> None:
    """Fine-tune the captioner."""
    from caption_train.__main__ import main as run
    from caption_train.config import CaptionTrainConfig

    run(load_step(config, "captioner", CaptionTrainConfig))


def captions(config: DemoConfig, journal: Journal) -> None:
    """Compare the captioners."""
    from caption_train.report import main as run
    from caption_train.report_config import CaptionReportConfig

    run(load_step(config, "captions", CaptionReportConfig))


def caption(config: DemoConfig, journal: Journal) -> None:
    """Describe what has no words."""
    from scraper.caption import main as run
    from scraper.config import ScraperConfig

    run(load_step(config, "data", ScraperConfig))


def pack(config: DemoConfig, journal: Journal) -> None:
    """Pack shards."""
    from scraper.config import ScraperConfig
    from scraper.pack import main as run

    run(load_step(config, "data", ScraperConfig))


def clip(config: DemoConfig, journal: Journal) -> None:
    """Fine-tune CLIP."""
    from clip_train.__main__ import main as run
    from clip_train.config import ClipTrainConfig

    run(load_step(config, "clip", ClipTrainConfig))


def embed(config: DemoConfig, journal: Journal) -> None:
    """Embed the shards."""
    from clip_train.config import EmbedConfig
    from clip_train.embed import main as run

    run(load_step(config, "embed", EmbedConfig))


def prior(config: DemoConfig, journal: Journal) -> None:
    """Fine-tune the prior."""
    from prior_train.__main__ import main as run
    from prior_train.config import PriorTrainConfig

    run(load_step(config, "prior", PriorTrainConfig))


def decoder(config: DemoConfig, journal: Journal) -> None:
    """Fine-tune the decoder."""
    from decoder_train.__main__ import main as run
    from decoder_train.config import DecoderTrainConfig

    run(load_step(config, "decoder_64", DecoderTrainConfig))


def generate(config: DemoConfig, journal: Journal) -> None:
    """Write the held-out prompts with their truth, and draw them with both models."""
    from crest.generate import generate as draw
    from crest.generate import read_prompts
    from crest.generate_config import GenerateConfig
    from crest.records import write_bytes, write_jsonl
    from crest.shards import png_bytes
    from demo.hindsight import SIDE_PX
    from demo.league import held_out_prompts

    prompts = held_out_prompts(config.prompts.seed, config.prompts.count)
    rows = []
    for number, prompt in enumerate(prompts):
        name = f"{number:04d}"
        write_bytes(config.place.dir / "truth" / f"{name}.png", png_bytes(prompt.draw(SIDE_PX)))
        specification = prompt.specification.to_dict()
        dress = dataclasses.asdict(prompt.dress)
        rows.append({"id": name, "text": prompt.text, "specification": specification, "dress": dress})
    write_jsonl(config.place.dir / "prompts.jsonl", rows)
    for name in ("generate_stock", "generate"):
        one = load_step(config, name, GenerateConfig)
        draw(one, read_prompts(config.place.dir / "prompts.jsonl"))


def evaluate(config: DemoConfig, journal: Journal) -> None:
    """Judge by specification, by truth and by the reference CLIP."""
    from caption_train.report_config import CaptionReportConfig
    from crest.records import write_json
    from demo.hindsight import (
        check_captions,
        compare_captioners,
        judge_samples,
        measure_retrieval,
        read_truths,
    )
    from demo.league import league_logos
    from eval.__main__ import main as run
    from eval.config import EvalConfig

    folder, settings, world = config.place.dir, load_step(config, "eval", EvalConfig), config.world
    out = folder / "judge"
    systems = {system.name: system for system in settings.eval.systems}
    figures = judge_samples(
        {name: system.samples for name, system in systems.items()},
        read_truths(folder / "prompts.jsonl"),
        out / "verdicts.jsonl",
    )
    logos = list(league_logos(world.seed, world.leagues, world.clubs_per_league))
    figures |= check_captions(folder / "data", logos, out / "captions.jsonl")
    answers = load_step(config, "captions", CaptionReportConfig).report.dir / "answers.jsonl"
    figures |= compare_captioners(answers, folder / "data", logos, out / "captions_held_out.jsonl")
    clips = {name: system.clip for name, system in systems.items() if system.clip is not None}
    figures |= measure_retrieval(
        clips, folder / "data" / "shards", out / "retrieval.json", settings.eval.device
    )
    run(settings)
    write_json(out / "metrics.json", figures)  # last: its presence means done


def survey(config: DemoConfig, journal: Journal) -> None:
    """Export the survey."""
    from eval.survey.__main__ import main as run
    from eval.survey.config import SurveyConfig

    run(load_step(config, "survey", SurveyConfig))


def report(config: DemoConfig, journal: Journal) -> None:
    """Write the page."""
    from demo.report import write_report

    write_report(config, journal)


RUN: Final[dict[str, Callable[[DemoConfig, Journal], None]]] = {
    "scrape": scrape,
    "captioner": captioner,
    "captions": captions,
    "caption": caption,
    "pack": pack,
    "clip": clip,
    "embed": embed,
    "prior": prior,
    "decoder": decoder,
    "generate": generate,
    "eval": evaluate,
    "survey": survey,
    "report": report,
}


if __name__ == "__main__":
    sys.exit(run_command("demo", DemoConfig, main, check=check, default_config=DEFAULT))
