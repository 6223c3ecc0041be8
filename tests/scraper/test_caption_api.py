import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from crest.errors import ConfigError, DataError, FetchError
from crest.records import Record, read_captions, read_json
from scraper.answers import Answers
from scraper.api_rounds import Asked as Picture
from scraper.api_rounds import describe, open_api, read_examples
from scraper.caption import check, main
from scraper.caption_api import VisionApi, captions_of, retry_after
from scraper.config import CaptionConfig
from tests.scraper.api_server import KEY, ApiServer, Asked, Said, colour_at_centre, good


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREST_API_KEY", KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven discs, each of a colour of its own."""
    for number in range(7):
        picture = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        ImageDraw.Draw(picture).ellipse((5, 2, 35, 28), fill=(30 * number, 10, 200 - number, 255))
        picture.save(tmp_path / f"{number}.png")
    return tmp_path


def pictures(count: int = 7) -> list[Picture]:
    return [Picture(f"id{number}", f"{number}.png") for number in range(count)]


def settings(url: str, **api: Any) -> CaptionConfig:
    chosen = {"url": url, "model": "seer", "pictures_per_request": 3, "retries": 2, **api}
    return CaptionConfig.model_validate({"route": "api", "api": chosen})


class Run:
    """One go at seven pictures."""

    def __init__(self, folder: Path, config: CaptionConfig, count: int = 7) -> None:
        _, self.recipe = open_api(config)
        assert config.api is not None
        examples = read_examples(config.api.examples) if config.api.examples else []
        self.slept: list[float] = []
        api = VisionApi(
            config.api, config.prompt, config.max_tokens, examples, backoff_s=0.5, sleep=self.slept.append
        )
        self.answers = Answers(folder)
        self.advanced = 0
        known = self.answers.get(self.recipe, [one.id for one in pictures(count)])
        silent = [one for one in pictures(count) if one.id not in known]
        try:
            self.failures = describe(api, self.recipe, silent, self.answers, folder, self.advance)
        finally:
            self.spent = self.answers.spent(self.recipe)
            self.kept = self.answers.get(self.recipe, [one.id for one in pictures(count)])
            self.answers.close()

    def advance(self, count: int) -> None:
        self.advanced += count

    @property
    def texts(self) -> dict[str, str]:
        return {name: answer.text for name, answer in sorted(self.kept.items())}


def expected(folder: Path) -> dict[str, str]:
    return {one.id: colour_at_centre(Image.open(folder / one.image)) for one in pictures()}


@pytest.mark.parametrize("form", ["openai", "anthropic"])
def test_every_picture_gets_the_caption_that_was_written_for_it(folder: Path, form: str) -> None:
    with ApiServer(good) as server:
        run = Run(folder, settings(server.url, form=form, price_in=2.0, price_out=10.0))
    assert run.texts == expected(folder)
    assert (run.failures, run.advanced) == ({}, 7)
    assert {answer.revision for answer in run.kept.values()} == {"seer-1"}
    assert sorted(len(asked.pictures) for asked in server.requests) == [1, 3, 3]
    assert (run.spent.requests, run.spent.tokens_in, run.spent.tokens_out) == (3, 3000, 300)
    assert run.spent.cost == pytest.approx((3000 * 2 + 300 * 10) / 1e6)


def test_forms_carry_key_and_model_where_each_wants_them(folder: Path) -> None:
    with ApiServer(good) as server:
        for form in ("openai", "anthropic"):
            Run(folder, settings(server.url, form=form, pictures_per_request=7))
    openai, anthropic = server.requests
    assert (openai.path, openai.headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (anthropic.path, anthropic.headers["x-api-key"]) == ("/v1/messages", KEY)
    assert anthropic.headers["anthropic-version"] == "2023-06-01"
    assert anthropic.body["max_tokens"] > 0
    assert openai.body["model"] == anthropic.body["model"] == "seer"
    asked = [part["text"] for part in openai.parts if part["type"] == "text"]
    assert asked[:7] == [f"p{number}:" for number in range(1, 8)]
    assert asked[7].startswith("Describe this logo")
    assert openai.pictures[0].getpixel((0, 0)) == (255, 255, 255), "transparency was sent as black"


def test_examples_are_shown_first_as_if_they_had_been_answered(folder: Path) -> None:
    rows = [{"file_name": f"{number}.png", "text": f"Example {number}."} for number in range(2)]
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ApiServer(good) as server:
        config = settings(server.url, examples=str(folder / "examples.jsonl"), pictures_per_request=7)
        run = Run(folder, config)
    assert run.texts == expected(folder)
    user, assistant, question = server.requests[0].body["messages"]
    assert [turn["role"] for turn in (user, assistant, question)] == ["user", "assistant", "user"]
    assert sum(part["type"] == "image_url" for part in user["content"]) == 2
    answered = [row["caption"] for row in json.loads(assistant["content"])["captions"]]
    assert answered == ["Example 0.", "Example 1."]
    assert open_api(settings(server.url))[1] != run.recipe, "answers without examples would pass for these"


def test_an_example_without_words_is_told(folder: Path) -> None:
    (folder / "examples.jsonl").write_text('{"file_name": "0.png"}\n')
    with pytest.raises(DataError, match=r"examples\.jsonl:1: lacks file_name or text"):
        read_examples(folder / "examples.jsonl")


def nonsense(text: str, *, times: int, **how: Any) -> Callable[[Asked, int], Said]:
    return lambda asked, number: asked.said(text, **how) if number < times else good(asked, number)


WRONG = json.dumps({"captions": [{"picture": "p1", "caption": "A"}, {"picture": "p1", "caption": "B"}]})


@pytest.mark.parametrize(
    ("text", "how", "reason"),
    [
        ("Here are your captions: a red disc.", {}, "api_not_json"),
        ('{"captions": {"p1": "A red disc."}}', {}, "api_not_json"),
        ('{"captions": [{"picture": "p1", "caption": 7}]}', {}, "api_not_json"),
        ('{"captions": []}', {}, "api_wrong_count"),
        (WRONG, {}, "api_wrong_count"),
        ("", {}, "api_empty"),
        ("I'm sorry, but I can't help with logos.", {}, "api_refused"),
        ("{", {"end": "length"}, "api_cut"),
        ("no", {"end": "content_filter"}, "api_refused"),
    ],
)
def test_nonsense_is_asked_again_and_then_counted(
    folder: Path, text: str, how: dict[str, Any], reason: str
) -> None:
    with ApiServer(nonsense(text, times=10**6, **how)) as server:
        run = Run(folder, settings(server.url, requests_at_once=1), count=3)
    # three together, then each alone twice; a picture that is refused alone is not pressed further
    is_refused = reason == "api_refused"
    assert len(server.requests) == 1 + 3 * (1 if is_refused else 2)
    assert run.failures == ({} if is_refused else {reason: 3})
    assert {answer.reason for answer in run.kept.values()} == ({reason} if is_refused else set())
    assert run.advanced == 3
    assert run.spent.requests == len(server.requests), "nonsense is paid for too"
    with ApiServer(nonsense(text, times=1, **how)) as server:
        assert Run(folder, settings(server.url, requests_at_once=1)).texts == expected(folder)


def test_one_bad_picture_costs_no_other_its_caption(folder: Path) -> None:
    def picky(asked: Asked, number: int) -> Said:
        if any("90 10 197" in colour_at_centre(picture) for picture in asked.pictures):
            return 400, {}, {"error": {"message": "image is unsafe"}}
        return good(asked, number)

    with ApiServer(picky) as server:
        run = Run(folder, settings(server.url))
    assert run.texts == {name: text for name, text in expected(folder).items() if name != "id3"}
    assert run.failures == {"api_http_400": 1}


def test_an_empty_caption_among_good_ones_is_asked_again_alone(folder: Path) -> None:
    def forgetful(asked: Asked, number: int) -> Said:
        value = asked.captions(colour_at_centre)
        if number == 0:
            value["captions"][1]["caption"] = " "
        return asked.said(f"```json\n{json.dumps(value)}\n```")

    with ApiServer(forgetful) as server:
        run = Run(folder, settings(server.url, requests_at_once=1))
    assert run.texts == expected(folder)
    assert [len(asked.pictures) for asked in server.requests].count(1) == 2


def test_a_full_interface_is_given_the_time_that_it_asks_for(folder: Path) -> None:
    def full(asked: Asked, number: int) -> Said:
        return (429, {"Retry-After": "7"}, {}) if number == 0 else good(asked, number)

    with ApiServer(full) as server:
        run = Run(folder, settings(server.url, requests_at_once=1))
    assert run.texts == expected(folder)
    assert 6.5 < max(run.slept) <= 7
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None


def test_server_errors_are_tried_again_with_growing_waits(folder: Path) -> None:
    def broken(asked: Asked, number: int) -> Said:
        return (500, {}, b"oops") if number < 2 else good(asked, number)

    with ApiServer(broken) as server:
        run = Run(folder, settings(server.url, requests_at_once=1))
    assert run.texts == expected(folder)
    assert 0.37 < run.slept[0] < 0.63 < 0.75 <= run.slept[1] < 1.26


def test_an_interface_that_stays_broken_ends_the_run_and_keeps_what_it_gave(folder: Path) -> None:
    config: dict[str, Any] = {"requests_at_once": 1, "pictures_per_request": 1, "retries": 0}
    is_up = [False]

    def fails(asked: Asked, number: int) -> Said:
        return good(asked, number) if number == 0 or is_up[0] else (503, {}, b"")

    with (
        ApiServer(fails) as server,
        pytest.raises(FetchError, match=r"no answer to 5 requests .*api_http_503"),
    ):
        Run(folder, settings(server.url, **config))
    with ApiServer(fails) as server:
        with pytest.raises(FetchError, match=r"no answer to 5 requests in a row \(api_http_503\)"):
            Run(folder, settings(server.url, **config))
        assert len(server.requests) == 6
        is_up[0] = True
        assert Run(folder, settings(server.url, **config)).texts == expected(folder)
        assert len(server.requests) == 6 + 6, "what was answered is asked again"
    with ApiServer(lambda asked, number: (503, {}, b"")) as server:
        run = Run(folder, settings(server.url, **config), count=3)
        assert run.failures == {"api_http_503": 3}


def test_a_dead_interface_is_told_within_seconds(folder: Path) -> None:
    started = time.monotonic()
    run = Run(folder, settings("http://127.0.0.1:9/v1", retries=1))
    assert run.failures == {"api_unreachable": 7}
    assert time.monotonic() - started < 5


def test_the_key_is_told_to_nobody_but_the_interface(folder: Path, tmp_path: Path) -> None:
    def closed(asked: Asked, number: int) -> Said:
        return 401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}."}}

    with ApiServer(closed) as server, pytest.raises(FetchError) as caught:
        Run(folder, settings(server.url))
    assert "answers 401 (Incorrect API key provided: ***)" in str(caught.value)
    assert "key in CREST_API_KEY" in str(caught.value)
    assert KEY not in str(caught.value)
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_redirects_would_take_the_key_along_and_are_refused(folder: Path) -> None:
    with ApiServer(good) as other:

        def elsewhere(asked: Asked, number: int) -> Said:
            return 302, {"Location": f"{other.url}/chat/completions"}, b""

        with ApiServer(elsewhere) as server, pytest.raises(FetchError, match="answers 302"):
            Run(folder, settings(server.url))
        assert other.requests == []


def test_a_budget_ends_the_asking_before_it_is_spent(folder: Path) -> None:
    # a request costs 0.0012: 1,000 tokens in, 100 out
    prices: dict[str, Any] = {"price_in": 1.0, "price_out": 2.0, "pictures_per_request": 1}
    with ApiServer(good) as server:
        run = Run(folder, settings(server.url, max_cost=0.0055, **prices))
        assert run.failures == {"api_over_budget": 3}
        assert run.spent.cost == pytest.approx(4 * 0.0012)
        again = Run(folder, settings(server.url, max_cost=0.0055, **prices))
        assert len(server.requests) == 4, "another run spent more than the budget"
        assert again.failures == {"api_over_budget": 3}
        whole = Run(folder, settings(server.url, max_cost=1.0, **prices))
        assert len(server.requests) == 7
    assert whole.texts == expected(folder)


def test_an_interface_that_tells_no_usage_is_reckoned_by_estimate(folder: Path) -> None:
    def silent(asked: Asked, number: int) -> Said:
        return asked.said(json.dumps(asked.captions(colour_at_centre)), tokens=None)

    with ApiServer(silent) as server:
        one = {"pictures_per_request": 1, "requests_at_once": 1}
        run = Run(folder, settings(server.url, max_cost=0.004, price_in=1.0, **one))
    assert run.failures == {"api_over_budget": 4}
    assert 0.0035 < run.spent.cost <= 0.004


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": "http://api.example.com/v1"}, "would send the key unencrypted"),
        ({"key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY: is not set, expected the key of"),
        ({"max_cost": 1.0}, "price_in and price_out are 0"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_sent(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        open_api(settings(**{"url": "http://127.0.0.1:9/v1", **changes}))
    assert "\n" not in str(caught.value)


def test_a_key_with_a_line_break_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREST_API_KEY", f"{KEY}\nX: {KEY}")
    with pytest.raises(ConfigError, match="can be no key") as caught:
        open_api(settings("http://127.0.0.1:9/v1"))
    assert KEY not in str(caught.value)


def test_captions_may_come_in_any_order_but_not_too_many() -> None:
    rows = [{"picture": "p2", "caption": "B"}, {"picture": "p1", "caption": "A"}]
    assert captions_of(json.dumps({"captions": rows}), ["p1", "p2"]) == {"p1": "A", "p2": "B"}


def test_the_command_keeps_what_people_wrote_and_names_who_wrote_the_rest(
    folder: Path, shelf: Any, as_records: Callable[..., None]
) -> None:
    shelf.dir.mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        path.rename(shelf.dir / path.name)
    as_records(
        shelf.dir,
        [
            Record(one.id, one.image, "test", "A red disc by hand." if number == 2 else None, f"g{number}")
            for number, one in enumerate(pictures())
        ],
    )
    with ApiServer(good) as server:
        config = shelf.config(caption={**settings(server.url, price_in=1.0).model_dump(mode="json")})
        check(config)
        main(config)
        main(config)
        assert len(server.requests) == 2
    captions = read_captions(shelf.dir / "captions.jsonl")
    assert [one.id for one in captions] == [one.id for one in pictures()]
    assert (captions[2].text, captions[2].origin) == ("A red disc by hand.", "human")
    assert (captions[0].origin, captions[0].model, captions[0].revision) == ("model", "seer", "seer-1")
    assert captions[0].prompt.startswith("Describe this logo")
    manifest = read_json(shelf.dir / "captions.json")
    assert manifest["counts"]["model"] == 6
    assert manifest["details"]["spent"]["requests"] == 2
    assert KEY not in (shelf.dir / "captions.json").read_text()


def test_what_failed_is_asked_again_by_the_next_run(
    folder: Path, shelf: Any, as_records: Callable[..., None]
) -> None:
    shelf.dir.mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        path.rename(shelf.dir / path.name)
    as_records(shelf.dir, [Record(one.id, one.image, "test", None, one.id) for one in pictures()])
    is_well = [False]

    def moody(asked: Asked, number: int) -> Said:
        is_third = any("60 10 198" in colour_at_centre(picture) for picture in asked.pictures)
        return (400, {}, {}) if is_third and not is_well[0] else good(asked, number)

    with ApiServer(moody) as server:
        config = shelf.config(caption=settings(server.url).model_dump(mode="json"))
        main(config)
        manifest = read_json(shelf.dir / "captions.json")
        assert manifest["details"]["failures"] == {"api_http_400": 1}
        assert manifest["dropped"] == {"no_caption": 1}
        is_well[0], before = True, len(server.requests)
        main(config)
        assert len(server.requests) == before + 1
    assert len(read_captions(shelf.dir / "captions.jsonl")) == 7
    assert read_json(shelf.dir / "captions.json")["details"]["failures"] == {}
