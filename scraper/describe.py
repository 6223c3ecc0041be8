"""Have pictures described by a captioner of ours, or measured: in this process, or in parts on a Ray cluster.

Answers are kept batch by batch (part by part on Ray): what was described once is never described again.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from crest.errors import DataError
from crest.records import hash_of, picture_bytes
from scraper.answers import Answer, Answers
from scraper.api_rounds import DAMAGED, Asked
from scraper.config import CaptionConfig, WorkConfig

if TYPE_CHECKING:
    from PIL.Image import Image

FEW: Final = 200
"""Pictures that are measured before a further process has started."""
EMPTY: Final = "empty_answer"


class Captioner(Protocol):
    """What this step needs of crest.models.captioner."""

    @property
    def hash(self) -> str:
        """Names the weights."""
        ...

    @property
    def prompt(self) -> str:
        """What it is asked; empty for one that takes no words."""
        ...

    def caption(self, pictures: Any) -> list[str]:
        """One description for each picture."""
        ...


@dataclass(frozen=True)
class Part:
    """Pictures of one job, and by whom they are to be described."""

    data_dir: Path
    pictures: tuple[Asked, ...]
    settings: CaptionConfig | None
    """of the captioner; None: measure colours"""


def load(settings: CaptionConfig) -> Captioner:
    """The captioner of a config, loaded once a process unless its weights are written again."""
    return _loaded(settings, weights_mark(settings))


@functools.lru_cache(maxsize=1)
def _loaded(settings: CaptionConfig, mark: tuple[Any, ...]) -> Captioner:
    from crest.models.captioner import load_captioner
    from crest.models.hub_captioner import Asking
    from crest.world import pick_device

    assert settings.weights is not None
    assert settings.route != "api"
    asking = Asking(settings.route, settings.prompt, settings.beams, settings.max_tokens)
    captioner: Captioner = load_captioner(
        settings.weights, pick_device(settings.device), asking, settings.revision
    )
    return captioner


def weights_mark(settings: CaptionConfig) -> tuple[Any, ...]:
    """Changes when the weights of a folder are written again."""
    folder = Path(settings.weights or "")
    if not settings.weights or not folder.is_dir():
        return ()
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin"))
    stats = [(path.name, path.stat()) for path in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def recipe_of(captioner: Captioner, settings: CaptionConfig) -> str:
    """What an answer of a captioner depends on, but the picture."""
    return hash_of("model", captioner.hash, captioner.prompt, settings.beams, settings.max_tokens)


def palette_recipe() -> str:
    """What measured colours depend on, but the picture."""
    from scraper import palette_words

    return hash_of("palette", palette_words.NAMES, palette_words.MIN_SHARE, palette_words.MAX_NAMES)


def described(
    captioner: Captioner, pictures: Iterable[Asked], data_dir: Path, batch_size: int
) -> Iterator[tuple[list[Answer], list[str]]]:
    """The captioner's words, batch by batch.

    Yields:
        answers, and the ids of pictures that can't be read.
    """
    from crest.images import flatten

    for batch in _batches(pictures, batch_size):
        opened, damaged = _opened(batch, data_dir)
        texts = captioner.caption([flatten(picture) for _, picture in opened]) if opened else []
        answers = []
        for (asked, _), text in zip(opened, texts, strict=True):
            said = " ".join(text.split())
            answers.append(Answer(asked.id, said, "" if said else EMPTY, captioner.hash))
        yield answers, damaged


def measured(pictures: Iterable[Asked], data_dir: Path) -> tuple[list[Answer], list[str]]:
    """The colours of pictures in words, and the ids of pictures that can't be read."""
    from scraper.palette_words import colour_sentence

    answers: list[Answer] = []
    damaged: list[str] = []
    for asked in pictures:
        opened, unread = _opened([asked], data_dir)
        damaged += unread
        answers += [Answer(asked.id, colour_sentence(picture) or "") for _, picture in opened]
    return answers, damaged


def work_on(part: Part) -> tuple[list[Answer], list[str]]:
    """One part, whoever works: a pure function of it."""
    if part.settings is None:
        return measured(part.pictures, part.data_dir)
    answers: list[Answer] = []
    damaged: list[str] = []
    for some, unread in described(
        load(part.settings), part.pictures, part.data_dir, part.settings.batch_size
    ):
        answers += some
        damaged += unread
    return answers, damaged


def describe_all(
    settings: CaptionConfig, work: WorkConfig, pictures: Iterable[Asked], count: int, answers: Answers,
    data_dir: Path, advance: Callable[[int], object],
) -> Counter[str]:  # fmt: skip
    """Have every picture described by the config's captioner, and keep the answers.

    Returns:
        named reason -> how many pictures were left without an answer that is kept.
    """
    captioner = load(settings)
    recipe = recipe_of(captioner, settings)
    if work.executor == "ray":
        place = Path(settings.weights or "")
        if place.exists():  # workers need not stand in the same folder
            settings = settings.model_copy(update={"weights": str(place.resolve())})
        results = _in_parts(settings, work, pictures, count, data_dir, settings.batch_size)
    else:
        results = described(captioner, pictures, data_dir, settings.batch_size)
    return _keep(results, recipe, answers, advance)


def measure_all(
    work: WorkConfig, pictures: Iterable[Asked], count: int, answers: Answers, data_dir: Path,
    advance: Callable[[int], object],
) -> Counter[str]:  # fmt: skip
    """Measure the colours of every picture, on all processors, and keep them."""
    if work.executor == "local" and count <= FEW:
        results: Iterable[tuple[list[Answer], list[str]]] = (
            measured(some, data_dir) for some in _batches(pictures, FEW)
        )
    else:
        results = _in_parts(None, work, pictures, count, data_dir, FEW)
    return _keep(results, palette_recipe(), answers, advance)


def _keep(
    results: Iterable[tuple[list[Answer], list[str]]], recipe: str, answers: Answers,
    advance: Callable[[int], object],
) -> Counter[str]:  # fmt: skip
    failures: Counter[str] = Counter()
    for some, damaged in results:
        answers.put(recipe, some)
        failures[DAMAGED] += len(damaged)
        advance(len(some) + len(damaged))
    return +failures


def _in_parts(
    settings: CaptionConfig | None, work: WorkConfig, pictures: Iterable[Asked], count: int, data_dir: Path,
    least: int,
) -> Iterator[tuple[list[Answer], list[str]]]:  # fmt: skip
    """Through the executor: parts small enough that all have work, large enough that a start pays."""
    from scraper.executor import run_jobs, worker_count

    size = max(1, min(work.rows_per_part, max(least, count // (4 * worker_count(work)))))
    where = data_dir.resolve()
    jobs = (Part(where, tuple(batch), settings) for batch in _batches(pictures, size))
    return run_jobs(work_on, jobs, work, size=-(-count // size))


def _batches(pictures: Iterable[Asked], size: int) -> Iterator[list[Asked]]:
    some: list[Asked] = []
    for picture in pictures:
        some.append(picture)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _opened(batch: Iterable[Asked], data_dir: Path) -> tuple[list[tuple[Asked, Image]], list[str]]:
    from crest.images import decode

    opened: list[tuple[Asked, Image]] = []
    damaged: list[str] = []
    for asked in batch:
        try:
            opened.append((asked, decode(picture_bytes(data_dir, asked.image), asked.image)))
        except DataError:
            damaged.append(asked.id)
    return opened, damaged
