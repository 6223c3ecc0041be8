"""The lane of tables: parts that survive anything, one screening, the same bytes whoever did the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crest.errors import DataError, FetchError
from crest.images import decode
from crest.records import picture_bytes, read_json, read_jsonl
from scraper.collect import check_source, collect
from scraper.config import ScraperConfig
from scraper.part import COLUMNS, part_path

sys.path.append(str(Path(__file__).parent))
from shop import AsPng, Draw, Shop, part_bytes


@pytest.fixture
def shop(tmp_path: Path, server: Any, draw: Draw, as_png: AsPng) -> Shop:
    return Shop(tmp_path, server, draw, as_png)


def test_a_table_becomes_parts_and_records_in_its_order(shop: Shop) -> None:
    shop.stock(25)
    collect(shop.config())
    records = shop.records()
    assert [record.caption for record in records] == [f"logo {number}" for number in range(25)]
    names = sorted(path.name for path in (shop.data / "parts").iterdir())
    ends = ("json", "jsonl", "looks.npy", "tar")
    assert names == [f"{number:06d}.{end}" for number in range(3) for end in ends]
    for number, record in enumerate(records):
        stored = decode(picture_bytes(shop.data, record.image), record.image)
        assert max(stored.size) == 64
        assert (record.width_px, record.height_px) == (96, 96)
        assert record.image_url == f"{shop.server.url}/{number}.png"
        assert record.sha256.startswith(record.id)
        assert record.fetched_at
        assert record.headers["content-type"] == "image/png"
    report = read_json(shop.data / "crawl.json")
    assert report["counts"]["cards"] == report["counts"]["kept"] == 25
    assert read_json(shop.data / "manifest.json")["counts"]["groups"] == 25


def test_a_picture_that_fits_in_the_wanted_format_keeps_its_bytes(shop: Shop) -> None:
    shop.server.say("/small.png", small := shop.as_png(shop.draw(1, 64)))
    shop.server.say("/large.png", shop.as_png(shop.draw(2, 128, has_alpha=True)))
    shop.write([(f"{shop.server.url}/{name}.png", name) for name in ("small", "large")])
    collect(shop.config())
    kept, fitted = (picture_bytes(shop.data, record.image) for record in shop.records())
    assert kept == small
    picture = decode(fitted, "large")
    assert (picture.size, picture.mode) == ((64, 64), "RGBA")


def test_parts_are_tars_that_other_tools_read(shop: Shop) -> None:
    import tarfile

    shop.stock(3)
    collect(shop.config())
    with tarfile.open(shop.data / "parts" / "000000.tar") as tar:
        assert tar.getnames() == [f"{record.id}.png" for record in shop.records()]


def test_the_same_bytes_for_any_number_of_workers(shop: Shop, tmp_path: Path) -> None:
    shop.stock(24)
    collect(shop.config())
    other = tmp_path / "other"
    collect(shop.config(data={"dir": str(other)}, work={"workers": 2}))
    assert part_bytes(other) == part_bytes(shop.data)
    assert read_json(other / "manifest.json")["hash"] == read_json(shop.data / "manifest.json")["hash"]


def test_what_led_to_no_picture_is_counted_by_reason(shop: Shop) -> None:
    url = shop.server.url
    shop.server.say("/robots.txt", "User-agent: *\nDisallow: /private/\n")
    shop.server.say("/fine.png", shop.as_png(shop.draw(1)))
    shop.server.say("/page.png", "<html>no picture</html>")
    shop.server.say("/broken.png", shop.as_png(shop.draw(2))[:200])
    noai = {"X-Robots-Tag": "noai"}
    shop.server.say("/noai.png", shop.as_png(shop.draw(3)), headers={"Content-Type": "image/png", **noai})
    addresses = ["/fine.png", "/page.png", "/broken.png", "/noai.png", "/private/x.png", "/gone.png"]
    rows = [(f"{url}{address}", "x") for address in addresses]
    shop.write([*rows, ("http://localhost:9/x.png", "x"), ("ftp://a.example/x.png", "x"), ("", "x")])
    collect(shop.config())
    dropped = read_json(shop.data / "crawl.json")["dropped"]
    assert dropped == {
        "html_not_image": 1,
        "broken": 1,
        "opt_out_header": 1,
        "robots": 1,
        "http_404": 1,
        "private_address": 1,
        "bad_scheme": 1,
        "no_address": 1,
    }
    what = {row["reason"]: row["what"] for row in read_jsonl(shop.data / "dropped.jsonl")}
    assert what["no_address"] == "table.csv:10"
    assert what["http_404"] == f"{url}/gone.png"


def test_repeated_addresses_are_fetched_once_a_part_and_equal_pictures_kept_once(shop: Shop) -> None:
    shop.server.say("/a.png", shop.as_png(shop.draw(1)))
    shop.server.say("/b.png", shop.as_png(shop.draw(1)))
    url = shop.server.url
    shop.write([(f"{url}/a.png", ""), (f"{url}/a.png", "words"), (f"{url}/b.png", "")])
    collect(shop.config())
    assert shop.server.requests["/a.png"] == 1
    (record,) = shop.records()
    assert record.caption == "words"
    report = read_json(shop.data / "crawl.json")
    assert report["counts"]["repeated_addresses"] == 1
    assert report["dropped"] == {"duplicate": 2}
    likes = {row["like"] for row in read_jsonl(shop.data / "dropped.jsonl")}
    assert likes == {record.id}


def test_licence_is_the_rows_or_the_answers_or_the_configs(shop: Shop) -> None:
    url, link = shop.server.url, {"Link": '<https://x.example/l>; rel="license"'}
    for number in range(3):
        said = shop.as_png(shop.draw(number))
        shop.server.say(f"/{number}.png", said, headers=link if number else {})
    shop.write([(f"{url}/{number}.png", "CC0" * (number == 2)) for number in range(3)], "url,licence")
    collect(shop.config(source={"caption_column": None, "licence": "house rules"}))
    assert [record.licence for record in shop.records()] == ["house rules", "https://x.example/l", "CC0"]


def test_groups_of_the_table_are_merged_where_pictures_are_alike(shop: Shop) -> None:
    near = shop.draw(1)
    near.putpixel((0, 0), (250, 250, 250))
    pictures = [shop.draw(1), shop.draw(2), shop.draw(3), near, shop.draw(4)]
    for number, picture in enumerate(pictures):
        shop.server.say(f"/{number}.png", shop.as_png(picture))
    clubs = ("lions", "lions", "rovers", "rovers", "kings")
    rows = [(f"{shop.server.url}/{number}.png", club) for number, club in enumerate(clubs)]
    shop.write(rows, "url,club")
    collect(shop.config(source={"caption_column": None, "group_column": "club"}, work={"rows_per_part": 2}))
    groups = {record.image_url[-5]: record.group for record in shop.records()}
    assert groups.pop("4") == "kings"
    assert len(groups) == 3  # one of 0 and 3 stands for both
    assert len(set(groups.values())) == 1
    assert groups["1"] in ("lions", "rovers")


def test_a_finished_table_is_left_as_it_is_and_a_grown_one_fetches_what_is_new(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.stock(20)
    collect(shop.config())
    collect(shop.config())
    assert "up to date, 20 logos" in capsys.readouterr().out
    assert shop.pictures_asked() == 20
    shop.stock(5, first=20)
    collect(shop.config())
    assert shop.pictures_asked() == 25
    assert len(shop.records()) == 25
    shop.write([(f"{shop.server.url}/{number}.png", f"logo {number}") for number in range(10)])
    collect(shop.config())
    assert (shop.pictures_asked(), len(shop.records())) == (25, 10)
    assert not (shop.data / "parts" / "000001.tar").exists()


def test_another_size_or_format_is_fetched_anew(shop: Shop) -> None:
    shop.stock(3)
    collect(shop.config())
    collect(shop.config(pack={"side_px": 48, "format": "jpg"}))
    pictures = [picture_bytes(shop.data, record.image) for record in shop.records()]
    assert all(content.startswith(b"\xff\xd8\xff") for content in pictures)
    assert decode(pictures[0], "0").size == (48, 48)


def test_retry_failed_asks_only_for_what_failed(shop: Shop) -> None:
    shop.stock(12)
    shop.server.script["/3.png"].insert(0, shop.server.script["/3.png"][0].__class__(b"", 503))
    collect(shop.config())
    assert len(shop.records()) == 11
    before = (shop.data / "parts" / "000001.tar").stat().st_mtime_ns
    collect(shop.config())
    assert shop.pictures_asked() == 12
    collect(shop.config(fetch={"retry_failed": True}))
    assert shop.pictures_asked() == 13
    assert [record.caption for record in shop.records()] == [f"logo {number}" for number in range(12)]
    assert (shop.data / "parts" / "000001.tar").stat().st_mtime_ns == before
    other = Shop(shop.folder, shop.server, shop.draw, shop.as_png)
    healed = part_bytes(shop.data)
    (shop.data / "parts" / "000000.json").unlink()
    (shop.data / "manifest.json").unlink()
    collect(other.config())
    assert part_bytes(shop.data) == healed


def test_refresh_asks_for_everything_again(shop: Shop) -> None:
    shop.stock(4)
    collect(shop.config())
    collect(shop.config(fetch={"refresh": True}))
    assert shop.pictures_asked() == 8


SCRIPT = """
import sys
from pathlib import Path
from scraper.collect import collect
from scraper.config import ScraperConfig

if __name__ == "__main__":
    collect(ScraperConfig.model_validate_json(Path(sys.argv[1]).read_text()))
"""


def run_until(shop: Shop, config: ScraperConfig, requests: int) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own and wait until so many pictures were asked for."""
    script, path = shop.folder / "script.py", shop.folder / "config.json"
    script.write_text(SCRIPT)
    path.write_text(config.model_dump_json())
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = subprocess.Popen([sys.executable, str(script), str(path)], env=env, start_new_session=True)
    deadline = time.monotonic() + 30
    while shop.pictures_asked() < requests:
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.005)
    return running


def test_a_run_that_was_killed_goes_on_with_the_parts_that_are_missing(shop: Shop) -> None:
    shop.stock(30)
    for said in shop.server.script.values():
        said[0].wait_s = 0.02
    config = shop.config(work={"rows_per_part": 5}, fetch={"connections": 1})
    running = run_until(shop, config, 18)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    asked = shop.pictures_asked()
    finished = list((shop.data / "parts").glob("*.json"))
    assert 2 <= len(finished) <= 4
    collect(config)
    assert shop.pictures_asked() - asked == 30 - 5 * len(finished)
    assert len(shop.records()) == 30


def test_a_worker_that_is_killed_costs_only_its_part(shop: Shop) -> None:
    shop.stock(40)
    for said in shop.server.script.values():
        said[0].wait_s = 0.02
    config = shop.config(work={"workers": 2, "rows_per_part": 10}, fetch={"connections": 1})
    running = run_until(shop, config, 12)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    workers = [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert running.wait(60) == 0
    assert len(shop.records()) == 40
    assert 40 < shop.pictures_asked() <= 50


def test_a_network_that_is_gone_stops_the_run_and_nothing_counts_as_done(shop: Shop) -> None:
    shop.write([(f"http://127.0.0.1:{port}/x.png", "x") for port in range(2, 9)])
    with pytest.raises(FetchError, match=r"table\.csv:2: none of the hosts from here on answered"):
        collect(shop.config())
    assert not list((shop.data / "parts").glob("*.json"))


def test_a_table_without_a_single_picture_is_told_with_reasons(shop: Shop) -> None:
    shop.write([(f"{shop.server.url}/{number}.png", "x") for number in range(3)])
    with pytest.raises(DataError, match=r"none of 3 rows led to a picture \(http_404 3\)"):
        collect(shop.config())


def test_a_data_folder_of_another_table_is_refused(shop: Shop) -> None:
    shop.stock(2)
    collect(shop.config())
    with pytest.raises(DataError, match=r"was made with source\.path"):
        collect(shop.config(source={"path": str(shop.table.rename(shop.folder / "other.csv"))}))


def test_looks_on_disk_are_those_of_the_records(shop: Shop) -> None:
    shop.stock(3)
    collect(shop.config())
    rows = np.load(part_path(shop.data, 0, "looks.npy"))
    assert rows.dtype == COLUMNS
    assert [f"{content:016x}" for content in rows["content"]] == [record.id for record in shop.records()]
    assert rows["row"].tolist() == [0, 1, 2]
    assert rows["look"]["thumb"].any()


def test_packing_copies_the_pictures_of_parts(shop: Shop) -> None:
    from crest.shards import read_samples
    from scraper.pack import main as pack

    shop.stock(8)
    config = shop.config(pack={"val_share": 0, "test_share": 0})
    collect(config)
    pack(config)
    packed = {sample.id: sample.image for sample in read_samples(shop.data / "shards", "train")}
    assert packed == {record.id: picture_bytes(shop.data, record.image) for record in shop.records()}


def test_a_table_known_to_be_clean_is_compared_by_bytes_alone(shop: Shop) -> None:
    near = shop.draw(1)
    near.putpixel((0, 0), (250, 250, 250))
    for number, picture in enumerate((shop.draw(1), near, shop.draw(1))):
        shop.server.say(f"/{number}.png", shop.as_png(picture))
    shop.write([(f"{shop.server.url}/{number}.png", "x") for number in range(3)])
    collect(shop.config(screen={"pixels": False}))
    assert [record.image_url[-5] for record in shop.records()] == ["0", "1"]
    assert read_json(shop.data / "crawl.json")["dropped"] == {"duplicate": 1}
    collect(shop.config())
    assert len(shop.records()) == 1


def test_a_dry_run_tells_what_is_wrong_with_the_table(shop: Shop) -> None:
    shop.stock(1)
    check_source(shop.config())
    with pytest.raises(DataError, match=r"has the columns url, caption, expected words"):
        check_source(shop.config(source={"caption_column": "words"}))
    assert not shop.data.exists()
