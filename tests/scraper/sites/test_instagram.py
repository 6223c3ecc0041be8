import inspect
import json
import lzma
import sys

import instaloader
import pytest

from crest.errors import ConfigError, DataError, FetchError
from scraper.config import SourceConfig
from scraper.harvest import Drop
from scraper.sites import Item
from scraper.sites.instagram import LOADER_SETTINGS, Instagram, caption_of, fetch, fetch_profile

STEM = "2021-06-03_12-00-00_UTC"


@pytest.fixture
def folder(tmp_path, draw):
    root = tmp_path / "annalaura_art"
    root.mkdir()
    draw(1, 32).save(root / f"{STEM}.jpg")
    return root


def post(**fields):
    text = fields.pop("text", "A turtle teaches.\n.\n.\n#art #cute")
    return {
        "__typename": "GraphImage",
        "shortcode": "CPabc_1",
        "taken_at_timestamp": 1622721600,
        "owner": {"id": "1", "username": "annalaura_art"},
        "is_video": False,
        "edge_media_to_caption": {"edges": [{"node": {"text": text}}] if text else []},
        **fields,
    }


def note(path, node, kind="Post", is_zipped=True):
    content = json.dumps({"node": node, "instaloader": {"version": "4.14", "node_type": kind}}).encode()
    path = path.with_name(path.name + (".json.xz" if is_zipped else ".json"))
    path.write_bytes(lzma.compress(content, check=lzma.CHECK_NONE) if is_zipped else content)


def entries(folder, **settings):
    found = list(Instagram().open(SourceConfig(site="instagram", path=folder, **settings)).entries)
    return [one for one in found if isinstance(one, Item)], [one for one in found if isinstance(one, Drop)]


@pytest.mark.parametrize("is_zipped", [True, False])
def test_picture_and_words_of_a_post(folder, is_zipped):
    note(folder / STEM, post(), is_zipped=is_zipped)
    (item,), dropped = entries(folder)
    card = item.card
    assert (card.caption, card.further_captions, card.written_by) == ("A turtle teaches.", (), "")
    assert (card.page_url, card.group) == ("https://www.instagram.com/p/CPabc_1/", "CPabc_1")
    assert (card.title, card.years) == ("annalaura_art", "2021")
    assert item.read() == (folder / f"{STEM}.jpg").read_bytes()
    assert dropped == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello #cat friends\n#art #cute_2", "Hello #cat friends"),
        ("Hello • #art • #cute •", "Hello"),
        ("#art #cute", ""),
        ("We are #1", "We are"),
        ("No tags.", "No tags."),
        ("Grüße 🐢\n\n#été#日本", "Grüße 🐢"),
    ],
)
def test_hashtags_at_the_end_go_those_within_stay(text, expected):
    assert caption_of(text) == expected


def test_slides_of_a_post_share_a_group_and_videos_are_counted(folder, draw):
    (folder / f"{STEM}.jpg").unlink()
    for number in (1, 2, 3):
        draw(number, 32).save(folder / f"{STEM}_{number}.jpg")
    (folder / f"{STEM}_2.mp4").write_bytes(b"film")
    slides = [{"is_video": False}, {"is_video": True}, {"is_video": True}]
    children = {"edges": [{"node": slide} for slide in slides]}
    note(folder / STEM, post(__typename="GraphSidecar", edge_sidecar_to_children=children))
    items, dropped = entries(folder)
    assert [(item.where, item.card.group) for item in items] == [(f"{STEM}_1.jpg", "CPabc_1")]
    assert dropped == [
        Drop("video", f"{STEM}_2.mp4"),
        Drop("video_thumbnail", f"{STEM}_2.jpg"),
        Drop("video_thumbnail", f"{STEM}_3.jpg"),
    ]


def test_video_post_leaves_nothing_but_counts(folder):
    (folder / f"{STEM}.mp4").write_bytes(b"film")
    note(folder / STEM, post(__typename="GraphVideo", is_video=True))
    assert entries(folder) == ([], [Drop("video", f"{STEM}.mp4"), Drop("video_thumbnail", f"{STEM}.jpg")])


def test_videos_that_were_not_fetched_are_counted_too(folder):
    (folder / f"{STEM}.jpg").rename(folder / f"{STEM}_1.jpg")
    children = {"edges": [{"node": {"is_video": False}}, {"node": {"is_video": True}}]}
    note(folder / STEM, post(__typename="GraphSidecar", edge_sidecar_to_children=children))
    other = "2021-06-04_12-00-00_UTC"
    note(folder / other, post(__typename="GraphVideo", is_video=True))
    items, dropped = entries(folder)
    assert [item.where for item in items] == [f"{STEM}_1.jpg"]
    assert dropped == [Drop("video", f"{STEM}: slide 2"), Drop("video", other)]


def test_profile_picture_stories_and_the_files_of_instaloader_are_no_posts(folder, draw):
    note(folder / STEM, post())
    draw(2, 32).save(folder / "2020-01-01_00-00-00_UTC_profile_pic.jpg")
    draw(3, 32).save(folder / "2020-02-02_00-00-00_UTC.jpg")
    note(folder / "2020-02-02_00-00-00_UTC", {"id": "5"}, kind="StoryItem")
    note(folder / "annalaura_art_1", {"username": "annalaura_art"}, kind="Profile")
    note(folder / "iterator_abc", {}, kind="FrozenNodeIterator")
    (folder / "id").write_text("1")
    (folder / f"{STEM}_comments.json").write_text("[]")
    items, dropped = entries(folder)
    assert [item.where for item in items] == [f"{STEM}.jpg"]
    assert Drop("profile_picture", "2020-01-01_00-00-00_UTC_profile_pic.jpg") in dropped
    assert Drop("not_a_post", "2020-02-02_00-00-00_UTC.jpg") in dropped


def test_text_file_speaks_where_there_is_no_metadata(folder, draw):
    (folder / f"{STEM}.txt").write_text("A cat. #art", encoding="utf-8")
    draw(2, 32).save(folder / "2022-01-01_00-00-00_UTC_1.jpg")
    draw(3, 32).save(folder / "2022-01-01_00-00-00_UTC_2.jpg")
    first, second, third = entries(folder)[0]
    assert (first.card.caption, first.card.group, first.card.page_url) == ("A cat.", STEM, "")
    assert second.card.group == third.card.group
    assert second.card.source_file != third.card.source_file


def test_alt_text_stands_in_for_missing_words_under_its_own_name(folder):
    alt = "Photo by Anna Laura on June 03, 2021. May be an illustration of a turtle."
    note(folder / STEM, post(text="#art", accessibility_caption=alt))
    (item,), _ = entries(folder)
    assert (item.card.caption, item.card.written_by) == ("May be an illustration of a turtle.", "instagram")
    note(folder / STEM, post(text="", accessibility_caption="No photo description available."))
    assert entries(folder, prompt="an annalaura drawing")[0][0].card.caption == "an annalaura drawing"
    assert entries(folder)[0][0].card.caption is None


def test_broken_metadata_is_counted_and_the_picture_stays(folder):
    (folder / f"{STEM}.json.xz").write_bytes(b"not xz")
    items, dropped = entries(folder)
    assert [item.card.caption for item in items] == [None]
    assert [drop.reason for drop in dropped] == ["broken_metadata"]


@pytest.mark.parametrize(
    "damage",
    [
        {"taken_at_timestamp": "soon", "owner": "annalaura_art"},
        {"taken_at_timestamp": 1e30, "owner": [1]},
        {"taken_at_timestamp": "NaN", "owner": {"username": None}},
        {"taken_at_timestamp": {"s": 1}, "owner": 7},
    ],
)
def test_damaged_time_and_owner_are_left_empty(folder, damage):
    note(folder / STEM, post(**damage))
    (item,), dropped = entries(folder)
    assert (item.card.title, item.card.years, item.card.caption) == ("CPabc_1", "", "A turtle teaches.")
    assert dropped == []


@pytest.mark.parametrize("said", ["text", {"edges": 5}, {"edges": ["text"]}, {"edges": [{"node": "text"}]}])
def test_damaged_words_and_slides_are_left_out(folder, said):
    note(folder / STEM, post(edge_media_to_caption=said, edge_sidecar_to_children=said))
    (item,), dropped = entries(folder)
    assert (item.card.caption, item.card.years, dropped) == (None, "2021", [])


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"node": {"shortcode": "\\ud83d"}, "instaloader": "4.14"}']
)
def test_json_that_ends_a_reader_or_names_no_version_leaves_the_picture(folder, content):
    (folder / f"{STEM}.json").write_text(content)
    items, dropped = entries(folder)
    assert [item.card.caption for item in items] == [None]
    assert [drop.reason for drop in dropped] == (["broken_metadata"] if content[0] == "[" else [])


def test_missing_and_empty_folders_are_told(tmp_path):
    for path, says in ((tmp_path / "gone", "there is no such folder"), (tmp_path, "is empty")):
        with pytest.raises(DataError, match=f"{says}, expected a folder that instaloader filled"):
            entries(path)


class Loader:
    """The shape of instaloader.Instaloader that is used."""

    def __init__(self, error=None):
        self.context = object()
        self.error, self.calls = error, []

    def download_profiles(self, profiles, **settings):
        self.calls.append((profiles, settings))
        if self.error:
            raise self.error


def find(context, name):
    return f"<{name}>"


def test_loader_is_asked_for_posts_alone_and_stops_early_only_once_all_is_there(tmp_path):
    loader = Loader()
    for _ in range(2):
        fetch_profile(loader, find, "annalaura_art", tmp_path, 50)
    fetch_profile(loader, find, "annalaura_art", tmp_path, 60)
    assert [call[0] for call in loader.calls] == [{"<annalaura_art>"}] * 3
    assert [call[1]["fast_update"] for call in loader.calls] == [False, True, False]
    assert loader.calls[0][1] == {
        "profile_pic": False,
        "fast_update": False,
        "raise_errors": True,
        "max_count": 50,
    }


def test_interrupted_fetch_is_not_taken_for_a_whole_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fetch_profile(Loader(KeyboardInterrupt()), find, "a", tmp_path, 50)
    loader = Loader()
    fetch_profile(loader, find, "a", tmp_path, 50)
    assert loader.calls[0][1]["fast_update"] is False


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (instaloader.LoginRequiredException("Redirected to login page."), "wants a log-in"),
        (instaloader.PrivateProfileNotFollowedException("Private but not followed."), "is private"),
        (instaloader.ProfileNotExistsException("no"), "there is no such profile"),
        (instaloader.TooManyRequestsException("429"), "answered too many requests"),
        (instaloader.AbortDownloadException("too many requests"), "turned us away"),
        (instaloader.BadResponseException("no posts"), "could not be read"),
        (instaloader.ConnectionException("no network"), "could not be reached"),
        (ConnectionError("no network"), "could not be reached"),
    ],
)
def test_what_stands_in_the_way_is_one_sentence(tmp_path, error, says):
    with pytest.raises(FetchError) as caught:
        fetch_profile(Loader(error), find, "annalaura_art", tmp_path, 50)
    message = str(caught.value)
    assert message.startswith(f"instagram.com/annalaura_art: {says}")
    assert "\n" not in message


def test_what_nobody_foresaw_keeps_its_traceback(tmp_path):
    with pytest.raises(KeyError):
        fetch_profile(Loader(KeyError("x")), find, "a", tmp_path, 50)


def test_installed_instaloader_takes_what_we_pass(tmp_path):
    of_class = inspect.signature(instaloader.Instaloader)
    of_class.bind(dirname_pattern="x", rate_controller=instaloader.RateController, **LOADER_SETTINGS)
    loader = Loader()
    fetch_profile(loader, find, "a", tmp_path, 5)
    profiles, settings = loader.calls[0]
    inspect.signature(instaloader.Instaloader.download_profiles).bind(None, profiles, **settings)
    inspect.signature(instaloader.Profile.from_username).bind(object(), "a")
    inspect.signature(instaloader.RateController.handle_429).bind(None, "iphone")
    for name in ("LoginRequiredException", "TooManyRequestsException", "AbortDownloadException"):
        assert issubclass(getattr(instaloader, name), Exception)


def test_without_instaloader_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "instaloader", None)
    with pytest.raises(
        ConfigError, match=r"'annalaura_art', but instaloader is not installed.*\[instagram\]"
    ):
        fetch("annalaura_art", tmp_path, 5)
