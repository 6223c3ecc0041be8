"""Have an interface describe many pictures: some at once, again where it answered nonsense, within a budget.

Answers are kept the moment they come. A batch that fails is asked picture by picture, so that one bad picture
costs no other its caption; what fails to the end is counted by reason.
"""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crest.errors import ConfigError, DataError, FetchError
from crest.images import decode, flatten
from crest.records import content_id, hash_of, picture_bytes, read_jsonl
from scraper.answers import Answer, Answers, Spent
from scraper.caption_api import Shown, UnusableError, VisionApi
from scraper.config import CaptionConfig

SIDE_PX: Final = 768
"""Longest side of a picture that is sent: lettering stays readable, and tokens few."""
GIVE_UP: Final = 5
"""Requests in a row without any answer, after which the interface counts as gone."""
FOR_GOOD: Final = ("api_refused",)
"""Reasons that asking another day would not change."""
OVER_BUDGET: Final = "api_over_budget"
DAMAGED: Final = "damaged_picture"


@dataclass(frozen=True)
class Asked:
    """A picture to be described."""

    id: str
    image: str
    """`Record.image`"""


@dataclass(frozen=True)
class Batch:
    """Pictures that are asked about at once."""

    pictures: tuple[Asked, ...]
    attempt: int = 0


@dataclass
class Outcome:
    """What came of one batch."""

    batch: Batch
    failed: dict[str, str]
    """id -> reason"""
    spent: Spent
    is_answered: bool
    """whether the interface said anything at all"""
    spoils: bool = False
    """whether the pictures may have failed because of one another"""


class Budget:
    """What may still be spent; requests in flight count by estimate."""

    def __init__(self, max_cost: float | None, spent: float) -> None:
        self.max_cost, self.spent = max_cost, spent
        self._largest = 0.0
        """dearest request so far, per picture"""

    def allows(self, estimate: float, pictures: int, in_flight: int) -> bool:
        """Whether a further request would stay within it."""
        if self.max_cost is None:
            return True
        each = self._largest or estimate / max(1, pictures)
        return self.spent + each * (pictures + in_flight) <= self.max_cost

    def settle(self, cost: float, pictures: int) -> None:
        """Count what a request cost."""
        self.spent += cost
        self._largest = max(self._largest, cost / max(1, pictures))


def describe(
    api: VisionApi, recipe: str, pictures: Iterable[Asked], answers: Answers, data_dir: Path,
    advance: Callable[[int], object],
) -> Counter[str]:  # fmt: skip
    """Ask for a caption of every picture, and keep the answers.

    Args:
        recipe: names the interface, its model and the question.
        pictures: taken as they are needed, never all at once.
        data_dir: where their bytes lie.
        advance: told how many pictures are settled.
    Returns:
        named reason -> how many pictures are left without an answer that is kept.
    Raises:
        FetchError: the interface is gone or refuses the key; what was answered is kept.
    """
    settings = api.settings
    budget = Budget(settings.max_cost, answers.spent(recipe).cost)
    failures: Counter[str] = Counter()
    fresh = _batches(pictures, settings.pictures_per_request)
    again: deque[Batch] = deque()
    in_flight: dict[Future[Outcome], Batch] = {}
    silent = 0

    def work(batch: Batch) -> Outcome:
        return _ask(api, recipe, batch, answers, data_dir)

    with ThreadPoolExecutor(settings.requests_at_once) as pool:
        while True:
            while len(in_flight) < settings.requests_at_once:
                batch = again.popleft() if again else next(fresh, None)
                if batch is None:
                    break
                count = len(batch.pictures)
                waiting = sum(len(other.pictures) for other in in_flight.values())
                if not budget.allows(api.estimate(count), count, waiting):
                    failures[OVER_BUDGET] += count
                    advance(count)
                    continue
                in_flight[pool.submit(work, batch)] = batch
            if not in_flight:
                return failures
            for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                batch = in_flight.pop(future)
                done = future.result()
                budget.settle(done.spent.cost, len(batch.pictures))
                silent = 0 if done.is_answered else silent + 1
                if silent >= GIVE_UP:
                    raise FetchError(
                        f"{settings.url}: gave no answer to {silent} requests in a row "
                        f"({next(iter(done.failed.values()))}), expected captions; what was answered is "
                        "kept, run python -m scraper.caption again later."
                    )
                retried, given_up = _settled(done, settings.retries)
                again += retried
                failures.update(given_up)
                advance(len(batch.pictures) - len(retried))


def _batches(pictures: Iterable[Asked], size: int) -> Iterator[Batch]:
    some: list[Asked] = []
    for picture in pictures:
        some.append(picture)
        if len(some) == size:
            yield Batch(tuple(some))
            some = []
    if some:
        yield Batch(tuple(some))


def _ask(api: VisionApi, recipe: str, batch: Batch, answers: Answers, data_dir: Path) -> Outcome:
    """One request, its answers kept at once; runs in a thread."""
    shown: list[tuple[Asked, Shown]] = []
    failed: dict[str, str] = {}
    for picture in batch.pictures:
        try:
            shown.append((picture, Shown(_png(picture_bytes(data_dir, picture.image), picture.image))))
        except DataError:
            failed[picture.id] = DAMAGED
    if not shown:
        return Outcome(batch, failed, Spent(), is_answered=True)
    try:
        reply = api.ask([one for _, one in shown])
    except UnusableError as error:
        kept = []
        if error.reason in FOR_GOOD and len(shown) == 1:
            kept = [Answer(shown[0][0].id, "", error.reason)]
        answers.put(recipe, kept, error.spent)
        failed |= {picture.id: error.reason for picture, _ in shown}
        return Outcome(batch, failed, error.spent, is_answered=bool(error.spent.requests), spoils=True)
    kept = []
    for (picture, _), text, reason in zip(shown, reply.texts, reply.reasons, strict=True):
        if reason:
            failed[picture.id] = reason
        if not reason or reason in FOR_GOOD:
            kept.append(Answer(picture.id, text, reason, reply.model))
    answers.put(recipe, kept, reply.spent)
    return Outcome(batch, failed, reply.spent, is_answered=True)


def _settled(done: Outcome, retries: int) -> tuple[list[Batch], list[str]]:
    """What of a batch is asked once more, each picture alone, and the reasons of what is given up."""
    again: list[Batch] = []
    given_up: list[str] = []
    is_alone = len(done.batch.pictures) == 1
    for picture in done.batch.pictures:
        reason = done.failed.get(picture.id)
        if reason is None:
            continue
        if reason in FOR_GOOD and (is_alone or not done.spoils):
            continue  # kept as an answer
        # an interface that did not answer was asked often enough already
        if reason == DAMAGED or not done.is_answered or done.batch.attempt >= retries:
            given_up.append(reason)
        else:
            again.append(Batch((picture,), done.batch.attempt + 1))
    return again, given_up


def _png(content: bytes, where: str) -> bytes:
    """A picture as it is sent: on white, its longest side at most SIDE_PX."""
    picture = flatten(decode(content, where))
    picture.thumbnail((SIDE_PX, SIDE_PX))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=False)
    return stream.getvalue()


def read_examples(path: Path) -> list[Shown]:
    """Pictures with model captions: JSON lines of file_name (beside the file) and text.

    Raises:
        DataError: a line without one of them, or a picture that can't be read.
    """
    examples = []
    for number, row in enumerate(read_jsonl(path), start=1):
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}:{number}: lacks file_name or text, expected both; mend that line.")
        examples.append(Shown(_png(picture_bytes(path.parent, name), name), " ".join(text.split())))
    return examples


def open_api(settings: CaptionConfig) -> tuple[VisionApi, str]:
    """The interface of a config, and the recipe of its answers.

    Raises:
        ConfigError: no interface is named, or it can't be asked.
    """
    if settings.api is None:
        raise ConfigError('caption.api: is null, but the route is "api"; say where the interface is.')
    api = settings.api
    examples = read_examples(api.examples) if api.examples is not None else []
    shown = [(content_id(one.png), one.caption) for one in examples]
    recipe = hash_of("api", api.url, api.form, api.model, settings.prompt, shown)
    return VisionApi(api, settings.prompt, settings.max_tokens, examples), recipe
