import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from crest.errors import ConfigError, DataError
from crest.records import Caption, Record, hash_of, read_captions, read_json
from scraper.answers import Answer, Answers
from scraper.api_rounds import Asked as Picture
from scraper.caption import check, main
from scraper.collect import collect
from scraper.describe import described
from scraper.own_words import own_captions
from tests.scraper.api_server import KEY, ApiServer, Asked, Said, good


def record(name, caption, *further, **fields):
    return Record(
        id=name,
        image=f"{name}.png",
        source="test",
        caption=caption,
        group=name,
        further_captions=further,
        **fields,
    )


class FakeCaptioner:
    hash = "f00d"
    prompt = ""

    def __init__(self):
        self.modes, self.sizes = [], []

    def caption(self, pictures):
        self.modes += [picture.mode for picture in pictures]
        self.sizes.append(len(pictures))
        return [
            f"A {'white' if picture.getpixel((0, 0)) == (255, 255, 255) else 'dark'}  ground. "
            for picture in pictures
        ]


def test_own_words_are_kept_as_they_are():
    captions, counts = own_captions([record("a", 'A red; and blue, "X".'), record("b", None)])
    assert [(one.id, one.text, one.origin) for one in captions] == [("a", 'A red; and blue, "X".', "human")]
    assert counts == {"whole": 1, "cut_back": 0, "given_up": 0, "missing": 1}


def test_cut_captions_end_at_a_clause_or_are_given_up():
    captions, counts = own_captions(
        [record("a", "A red shield with a gold crown above the…"), record("b", "A red…")]
    )
    assert [one.text for one in captions] == ["A red shield with a gold crown."]
    assert counts == {"whole": 0, "cut_back": 1, "given_up": 1, "missing": 0}


def test_all_of_a_sources_captions_are_kept_under_their_writers_name():
    captions, counts = own_captions(
        [
            record(
                "a", "Red shield.", "A shield in red.", "Red shield.", "A red shield with a crown above the…"
            ),
            record("b", "strokes of one", written_by="rule"),
            record("c", "a red sign", written_by="blip-large"),
        ]
    )
    assert [(one.id, one.text, one.origin, one.model) for one in captions] == [
        ("a", "Red shield.", "human", ""),
        ("a", "A shield in red.", "human", ""),
        ("a", "A red shield with a crown.", "human", ""),
        ("b", "strokes of one", "rule", ""),
        ("c", "a red sign", "model", "blip-large"),
    ]
    assert counts == {"whole": 4, "cut_back": 1, "given_up": 0, "missing": 0}


def test_captioner_sees_transparent_pictures_on_white_and_damaged_ones_not_at_all(tmp_path, draw):
    for number in range(5):
        draw(number, has_alpha=True).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    captioner = FakeCaptioner()
    pictures = [Picture(f"id{number}", f"{number}.png") for number in range(5)]
    results = list(described(captioner, iter(pictures), tmp_path, batch_size=2))
    assert [[(one.id, one.text) for one in answers] for answers, _ in results] == [
        [("id0", "A white ground."), ("id1", "A white ground.")],
        [("id2", "A white ground.")],
        [("id4", "A white ground.")],
    ]
    assert [damaged for _, damaged in results] == [[], ["id3"], []]
    assert captioner.modes == ["RGB"] * 4
    assert captioner.sizes == [2, 1, 1]


@pytest.fixture
def config(shelf, tmp_path, draw):
    (tmp_path / "mine").mkdir()
    for number in range(3):
        draw(number).save(tmp_path / "mine" / f"{number}.png")
    (tmp_path / "mine" / "0.txt").write_text("A badge of badges.")
    config = shelf.config(source={"site": "folder", "path": str(tmp_path / "mine")})
    collect(config)
    return config


def test_captions_file_is_written_and_left_alone_when_run_again(config, shelf, capsys):
    main(config)
    assert "dropped 2: no_caption 2" in capsys.readouterr().out
    assert [one.text for one in read_captions(shelf.dir / "captions.jsonl")] == ["A badge of badges."]
    main(config)
    assert "up to date" in capsys.readouterr().out


def test_without_records_the_step_before_is_named(shelf):
    with pytest.raises(DataError, match="run python -m scraper"):
        main(shelf.config())


TEXTS = {
    "good": "A navy shield with a white star.",
    "vague": "A blue lion drawing.",
    "silent": None,
    "cut": "A red shield with a gold crown above the…",
}


@pytest.fixture
def gallery(shelf, draw, as_records):
    """Four pictures: one told well, one vaguely, one not at all, one with two captions."""
    shelf.dir.mkdir()
    for number, name in enumerate(TEXTS):
        draw(number, has_alpha=True).save(shelf.dir / f"{name}.png")
    further = {"cut": ("Another word for a red shield with a crown.",)}
    as_records(shelf.dir, [record(name, text, *further.get(name, ())) for name, text in TEXTS.items()])
    return shelf


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setenv("CREST_API_KEY", KEY)
    with ApiServer(good) as server:
        yield server


def asking(server, **caption):
    api = {"url": server.url, "model": "seer", "pictures_per_request": 1, "requests_at_once": 1}
    return {"route": "api", "api": api, **caption}


def origins(folder):
    found = {}
    for caption in read_captions(folder / "captions.jsonl"):
        found.setdefault(caption.id, []).append((caption.origin, caption.weight))
    return found


@pytest.mark.parametrize(
    ("describe", "shown"),
    [("missing", {"silent"}), ("vague", {"silent", "vague"}), ("all", set(TEXTS))],
)
def test_the_captioner_is_shown_what_the_config_says_and_people_keep_their_words(
    gallery, api, describe, shown
):
    main(gallery.config(caption=asking(api, describe=describe)))
    captions = read_captions(gallery.dir / "captions.jsonl")
    assert {one.id for one in captions if one.origin == "model"} == shown
    by_people = [one for one in captions if one.origin == "human"]
    assert [one.text for one in by_people] == [
        TEXTS["good"],
        TEXTS["vague"],
        "A red shield with a gold crown.",
        "Another word for a red shield with a crown.",
    ]
    assert {(one.weight, one.model, one.prompt) for one in by_people} == {(1.0, "", "")}
    assert list(origins(gallery.dir)) == list(TEXTS), "captions left the order of the records"
    manifest = read_json(gallery.dir / "captions.json")
    assert manifest["counts"]["human"] == 4
    assert manifest["counts"]["model"] == len(shown)
    assert manifest["dropped"] == {"no_caption": 0}


def test_several_captions_stand_with_weights_the_heaviest_first(gallery, api):
    caption = asking(api, describe="all", palette=True, model_weight=0.6, palette_weight=0.2)
    main(gallery.config(caption=caption))
    assert origins(gallery.dir)["cut"] == [("human", 1.0), ("human", 1.0), ("model", 0.6), ("rule", 0.2)]
    assert origins(gallery.dir)["silent"] == [("model", 0.6), ("rule", 0.2)]
    main(gallery.config(caption={**caption, "model_weight": 0.1}))
    assert origins(gallery.dir)["silent"] == [("rule", 0.2), ("model", 0.1)]
    assert len(api.requests) == 4, "another weight is no reason to ask again"


def test_measured_colours_are_told_beside_words_but_never_alone(gallery):
    main(gallery.config(caption={"palette": True}))
    captions = read_captions(gallery.dir / "captions.jsonl")
    assert {one.id for one in captions} == {"good", "vague", "cut"}
    by_rule = [one for one in captions if one.origin == "rule"]
    assert len(by_rule) == 3
    assert all(one.text.startswith(("Colours: ", "Colour: ")) for one in by_rule)
    assert read_json(gallery.dir / "captions.json")["counts"]["rule"] == 3


def test_who_says_the_same_is_heard_once(gallery, monkeypatch):
    monkeypatch.setenv("CREST_API_KEY", KEY)

    def parrot(asked: Asked, number: int) -> Said:
        return asked.said(json.dumps(asked.captions(lambda picture: "a Navy shield with a white star")))

    with ApiServer(parrot) as server:
        main(gallery.config(caption=asking(server, describe="all")))
    assert origins(gallery.dir)["good"] == [("human", 1.0)]
    assert read_json(gallery.dir / "captions.json")["counts"]["folded"] == 1


def test_vague_captions_are_counted_by_rule(gallery):
    main(gallery.config())
    manifest = read_json(gallery.dir / "captions.json")
    assert manifest["details"]["vague"] == {"generic_phrase": 1}
    assert manifest["counts"]["vague"] == 1


def test_a_picture_that_is_damaged_is_counted_and_stops_nobody(gallery, api):
    (gallery.dir / "silent.png").write_bytes(b"\x89PNG")
    main(gallery.config(caption=asking(api, describe="all")))
    manifest = read_json(gallery.dir / "captions.json")
    assert manifest["details"]["failures"] == {"damaged_picture": 1}
    assert (manifest["counts"]["model"], manifest["dropped"]) == (3, {"no_caption": 1})


def test_answers_that_ran_out_of_words_are_ended_at_a_clause_or_given_up(gallery, monkeypatch):
    monkeypatch.setenv("CREST_API_KEY", KEY)
    said = iter(["A gold crown on a navy shield with a very…", "A gold…"])

    def rambler(asked: Asked, number: int) -> Said:
        return asked.said(json.dumps(asked.captions(lambda picture: next(said))))

    with ApiServer(rambler) as server:
        main(gallery.config(caption=asking(server, describe="vague")))
    texts = {
        one.id: one.text for one in read_captions(gallery.dir / "captions.jsonl") if one.origin == "model"
    }
    assert texts == {"vague": "A gold crown on a navy shield."}
    assert read_json(gallery.dir / "captions.json")["details"]["failures"] == {"cut_answer": 1}


@pytest.fixture(scope="session")
def own_weights(tmp_path_factory):
    """A tiny captioner of ours, of random weights."""
    import torch

    from crest.checkpoint import export_weights
    from crest.models.captioner import KIND, CaptionerModel, CaptionerSpec, learn_vocabulary

    torch.manual_seed(0)
    sizes = {"side_px": 16, "patch_px": 8, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    spec = CaptionerSpec(**sizes, max_tokens=12, **learn_vocabulary(["a red shield", "a gold star"], 280))
    model = CaptionerModel(spec)
    for weight in model.parameters():
        weight.data *= 6  # so that what it says depends on what it sees
    folder = tmp_path_factory.mktemp("weights")
    export_weights(folder, model, {"kind": KIND, "spec": spec.model_dump(mode="json"), "parents": {}})
    return folder


def test_a_captioner_of_ours_is_named_with_its_weights(gallery, own_weights):
    from crest.models.captioner import load_captioner

    main(gallery.config(caption={"weights": str(own_weights), "describe": "all", "device": "cpu"}))
    by_model = [one for one in read_captions(gallery.dir / "captions.jsonl") if one.origin == "model"]
    captioner = load_captioner(own_weights)
    assert by_model
    writers = {(one.model, one.revision, one.prompt) for one in by_model}
    assert writers == {(str(own_weights), captioner.hash, "")}
    opened = {name: Image.open(gallery.dir / f"{name}.png") for name in TEXTS}
    alone = {name: " ".join(captioner.caption([picture])[0].split()) for name, picture in opened.items()}
    assert {one.id: one.text for one in by_model} == {name: text for name, text in alone.items() if text}
    manifest = read_json(gallery.dir / "captions.json")
    assert manifest["parents"]["captioner"] == captioner.hash


@pytest.mark.slow  # Ray takes seconds to start
def test_a_ray_cluster_writes_the_same_bytes(gallery, own_weights):
    caption = {
        "weights": str(own_weights),
        "describe": "all",
        "device": "cpu",
        "palette": True,
        "batch_size": 2,
    }
    main(gallery.config(caption=caption))
    before = (gallery.dir / "captions.jsonl").read_bytes()
    for name in ("captions.json", "captions.jsonl", "answers.sqlite"):
        (gallery.dir / name).unlink()
    main(gallery.config(caption=caption, work={"executor": "ray", "workers": 2}))
    assert (gallery.dir / "captions.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_where_it_was(gallery, monkeypatch, draw, as_records, tmp_path):
    monkeypatch.setenv("CREST_API_KEY", KEY)
    count = 24
    for number in range(count):
        draw(number).save(gallery.dir / f"p{number}.png")
    as_records(gallery.dir, [record(f"p{number}", None) for number in range(count)])
    is_slow = [True]

    def slow(asked: Asked, number: int) -> Said:
        if is_slow[0] and number >= 8:
            time.sleep(60)
        return good(asked, number)

    with ApiServer(slow) as server:
        config = gallery.config(caption=asking(server))
        path = tmp_path / "data.json"
        path.write_text(config.model_dump_json(exclude={"schema_"}))
        command = [sys.executable, "-m", "scraper.caption", "--config", str(path)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(server.requests) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (gallery.dir / "captions.json").exists()
        is_slow[0] = False
        main(config)
        assert len(server.requests) == count + 1, "more than the one in flight was asked again"
    captions = read_captions(gallery.dir / "captions.jsonl")
    assert [one.id for one in captions] == [f"p{number}" for number in range(count)]


def test_captions_of_before_stay_until_the_new_ones_are_whole(gallery, api, monkeypatch):
    main(gallery.config())
    before = (gallery.dir / "captions.jsonl").read_bytes()
    monkeypatch.setenv("CREST_API_KEY", KEY)
    with (
        ApiServer(lambda asked, number: (401, {}, {})) as closed,
        pytest.raises(Exception, match="answers 401"),
    ):
        main(gallery.config(caption=asking(closed)))
    assert (gallery.dir / "captions.jsonl").read_bytes() == before
    assert (gallery.dir / "captions.json").exists()


def test_the_hash_is_that_of_the_words(gallery):
    main(gallery.config())
    first = read_json(gallery.dir / "captions.json")["hash"]
    main(gallery.config(caption={"batch_size": 7}))
    assert read_json(gallery.dir / "captions.json")["hash"] == first
    main(gallery.config(caption={"palette": True}))
    assert read_json(gallery.dir / "captions.json")["hash"] != first


def test_an_interface_that_is_not_named_is_told_at_a_dry_run(gallery):
    with pytest.raises(ConfigError, match=r'caption\.api: is null, but the route is "api"'):
        check(gallery.config(caption={"route": "api"}))


def test_a_file_that_holds_no_answers_is_told(tmp_path):
    (tmp_path / "answers.sqlite").write_text("not a database, but long enough to be looked at " * 20)
    with pytest.raises(DataError, match="holds no captioner's answers"):
        Answers(tmp_path)


def test_answers_are_kept_by_recipe(tmp_path):
    answers = Answers(tmp_path)
    answers.put("one", [Answer("a", "A."), Answer("b", "", "api_refused")])
    answers.put("one", [Answer("a", "Another.")])
    answers.close()
    again = Answers(tmp_path)
    ids = [f"{number}" for number in range(2000)] + ["a", "b"]
    assert again.get("one", ids) == {"a": Answer("a", "Another."), "b": Answer("b", "", "api_refused")}
    assert again.get("two", ids) == {}
    again.close()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_records(shelf, as_records):
    peaks = []
    for count in (1_500, 6_000):
        numbers = range(count)
        as_records(
            shelf.dir, [record(hash_of(number), f"A red star, number {number}.") for number in numbers]
        )
        tracemalloc.start()
        main(shelf.config())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4_500 * 100, "more than 100 bytes a record stayed in memory"


def test_captions_are_read_back_as_they_were_written(gallery):
    main(gallery.config())
    assert read_captions(gallery.dir / "captions.jsonl")[0] == Caption("good", TEXTS["good"], "human")
    assert Path(gallery.dir / "captions.jsonl").read_text().count("\n") == 4
