import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from crest.errors import DataError
from crest.records import SPLITS, Caption, Record, read_manifest
from crest.shards import read_samples
from scraper.caption import main as caption
from scraper.collect import collect
from scraper.config import PackConfig
from scraper.pack import Described, describe, divide, fitted_png, main, split_of


def logo(number, group=None, text=None):
    record = Record(
        id=f"{number:04x}", image=f"{number}.png", source="test", caption=None, group=group or f"g{number}"
    )
    return Described(record, Caption(record.id, text or f"caption {number}", "human"))


def test_split_is_a_pure_function_of_group_and_seed():
    settings = PackConfig()
    assert [split_of(f"g{number}", settings) for number in range(50)] == [
        split_of(f"g{number}", settings) for number in range(50)
    ]
    assert any(
        split_of(f"g{number}", settings) != split_of(f"g{number}", PackConfig(seed=1)) for number in range(50)
    )


def test_shares_are_about_what_was_asked_for():
    counts = Counter(
        split_of(f"g{number}", PackConfig(val_share=0.1, test_share=0.2)) for number in range(5000)
    )
    assert 450 < counts["val"] < 550
    assert 920 < counts["test"] < 1080


def test_no_group_crosses_a_split_and_no_logo_is_lost():
    logos = [logo(number, group=f"club{number // 5}") for number in range(200)]
    divided = divide(logos, PackConfig())
    where = {}
    for split in SPLITS:
        for one in divided[split]:
            assert where.setdefault(one.record.group, split) == split
    assert sum(map(len, divided.values())) == 200


def test_split_stays_put_when_data_is_added():
    few = divide([logo(number) for number in range(100)], PackConfig())
    many = divide([logo(number) for number in range(300)], PackConfig())
    for split in SPLITS:
        assert {one.record.id for one in few[split]} <= {one.record.id for one in many[split]}


@pytest.mark.parametrize("count", [3, 4, 5, 37])
def test_few_groups_still_fill_every_split(count):
    for seed in range(30):
        divided = divide([logo(number) for number in range(count)], PackConfig(seed=seed))
        assert all(divided[split] for split in SPLITS)


def test_too_few_groups_to_split_is_told():
    with pytest.raises(DataError, match="form 2 groups, expected more than 2"):
        divide([logo(0), logo(1)], PackConfig())


def test_order_within_a_split_is_drawn_by_the_seed():
    logos = [logo(number) for number in range(100)]
    one, same, other = (
        [each.record.id for each in divide(shown, PackConfig(seed=seed, val_share=0, test_share=0))["train"]]
        for shown, seed in ((logos, 0), (logos[::-1], 0), (logos, 1))
    )
    assert one == same
    assert one != other
    assert one != sorted(one)


def test_groups_that_share_a_caption_share_a_split():
    shown = [logo(0, text="A red shield."), logo(1, text="a red shield."), logo(2)]
    described, dropped = describe([one.record for one in shown], [one.caption for one in shown], PackConfig())
    assert [one.record.group for one in described] == ["g0", "g0", "g2"]
    assert dropped == {}


def test_caption_of_a_whole_class_makes_no_relatives():
    shown = [logo(number, text="a logo") for number in range(30)]
    described, _ = describe([one.record for one in shown], [one.caption for one in shown], PackConfig())
    assert len({one.record.group for one in described}) == 30


def test_what_cannot_be_packed_is_counted():
    shown = [logo(number) for number in range(3)]
    captions = [shown[0].caption, Caption(shown[1].record.id, "by a model", "model")]
    records = [one.record for one in shown]
    assert describe(records, captions, PackConfig())[1] == {"no_caption": 1}
    assert describe(records, captions, PackConfig(use_captions="human"))[1] == {
        "no_caption": 1,
        "model_caption": 1,
    }


def test_longest_side_is_fitted_and_alpha_kept(tmp_path, draw):
    wide = draw(1, 200, has_alpha=True).resize((200, 50))
    wide.save(tmp_path / "a.png")
    with Image.open(io.BytesIO(fitted_png(tmp_path / "a.png", 100))) as fitted:
        assert fitted.size == (100, 25)
        assert fitted.mode == "RGBA"
        assert fitted.getpixel((0, 0))[3] == 0


def test_no_dark_fringe_where_transparent_meets_colour(tmp_path):
    """Seed 002's way: alpha that is resized apart from its colour drags the hidden black into the edge."""
    picture = Image.new("RGBA", (201, 201), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (50, 50, 151, 151))
    picture.save(tmp_path / "a.png")
    with Image.open(io.BytesIO(fitted_png(tmp_path / "a.png", 40))) as fitted:
        pixels = np.asarray(fitted)
    seen = pixels[pixels[..., 3] > 32]
    assert len(seen) > 100
    assert seen[:, 0].min() >= 250


def test_png_that_fits_keeps_its_bytes_and_others_become_png(tmp_path, draw):
    draw(1).save(tmp_path / "a.png")
    assert fitted_png(tmp_path / "a.png", 96) == (tmp_path / "a.png").read_bytes()
    draw(1).save(tmp_path / "a.jpg")
    assert fitted_png(tmp_path / "a.jpg", 96).startswith(b"\x89PNG")


@pytest.fixture
def config(shelf, tmp_path, draw):
    (tmp_path / "mine").mkdir()
    for number in range(12):
        draw(number, has_alpha=number % 2 == 0).save(tmp_path / "mine" / f"{number}.png")
        (tmp_path / "mine" / f"{number}.txt").write_text(f"A badge; number {number}.")
    config = shelf.config(source={"site": "folder", "path": str(tmp_path / "mine")}, pack={"side_px": 48})
    collect(config)
    return config


def test_scrape_then_shards_needs_no_captioner_in_between(config, shelf, tmp_path, capsys):
    main(config)
    before = read_manifest(shelf.dir / "shards", "shards", "make shards")
    assert sum(before.counts.values()) == 12
    caption(config)
    main(config)
    assert "up to date" in capsys.readouterr().out, "the sources' own words are the same words"


def test_captions_of_records_that_changed_are_refused(config, shelf, tmp_path, draw):
    caption(config)
    draw(40).save(tmp_path / "mine" / "40.png")
    (tmp_path / "mine" / "40.txt").write_text("A badge; number 40.")
    collect(config)
    with pytest.raises(DataError, match=r"captions\.json: made of other records .* run python -m scraper"):
        main(config)


def test_shards_hold_picture_words_and_record(config, shelf):
    caption(config)
    main(config)
    samples = [sample for split in SPLITS for sample in read_samples(shelf.dir / "shards", split)]
    assert sorted(sample.caption for sample in samples) == sorted(
        f"A badge; number {number}." for number in range(12)
    )
    modes = set()
    for sample in samples:
        with Image.open(io.BytesIO(sample.image)) as picture:
            modes.add(picture.mode)
            assert max(picture.size) == 48
        assert sample.meta["id"] == sample.id
        assert sample.meta["caption_origin"] == {"origin": "human", "model": ""}
        assert sample.meta["group"]
    assert modes == {"RGB", "RGBA"}


def test_run_again_is_up_to_date_and_the_same_input_gives_the_same_bytes(config, shelf, capsys):
    caption(config)
    main(config)
    shards = shelf.dir / "shards"
    before = {path.name: path.read_bytes() for path in shards.glob("*.tar")}
    first = read_manifest(shards, "shards", "")
    assert set(first.parents) == {"records", "captions"}
    capsys.readouterr()
    main(config)
    assert "up to date" in capsys.readouterr().out
    (shards / "manifest.json").unlink()
    main(config)
    assert {path.name: path.read_bytes() for path in shards.glob("*.tar")} == before
