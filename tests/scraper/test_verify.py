import json
import tarfile

import pytest
from PIL import Image, ImageOps

from crest.errors import DataError
from crest.records import Manifest, content_id, write_json, write_manifest
from crest.shards import Sample, write_shards
from scraper.collect import collect
from scraper.config import ScraperConfig
from scraper.pack import main as pack
from scraper.verify import SHOWN, Report, main, verify


@pytest.fixture
def config(tmp_path):
    values = {"data": {"dir": str(tmp_path)}, "source": {"site": "folder", "path": str(tmp_path / "mine")}}
    return ScraperConfig.model_validate(values)


@pytest.fixture
def packed(config, tmp_path, as_png, draw):
    """Shards of drawn logos, six for each split; returns how to add more and write them anew."""
    write_manifest(tmp_path, Manifest("records", "r"))

    def sample(picture, name, **meta):
        content = as_png(picture)
        facts = {"group": name, "source_group": name, "source_file": "", "sha256": "", **meta}
        caption = facts.pop("caption", f"A badge of {name}.")
        return Sample(content_id(content), content, caption, facts)

    def write(*more):
        samples = {
            split: [sample(draw(10 * number + seed), f"{split}{seed}") for seed in range(6)]
            for number, split in enumerate(("train", "val", "test"))
        }
        for split, *rest in more:
            picture, name, meta = rest
            samples[split].append(sample(picture, name, **meta))
        write_shards(tmp_path / "shards", samples, samples_per_shard=4, parents={"records": "r"})
        return verify(config).counts

    return write


def test_healthy_shards_pass_and_say_so_in_one_line(config, packed, tmp_path, capsys):
    packed()
    main(config)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "nothing crosses a split; train 6 of 6 groups (33.3%)" in said
    report = json.loads((tmp_path / "verify.json").read_text())
    assert report["is_whole"]
    assert report["faults"] == {}
    assert report["splits"]["test"] == {"samples": 6, "groups": 6, "share": 0.3333}


def test_what_the_scraper_makes_passes(config, tmp_path, draw, capsys):
    (tmp_path / "mine").mkdir()
    for seed in range(20):
        draw(seed).save(tmp_path / "mine" / f"{seed}.png")
        draw(seed).resize((80, 80)).save(tmp_path / "mine" / f"{seed}-small.png")
        (tmp_path / "mine" / f"{seed}.txt").write_text(f"Badge number {seed}.")
    collect(config)
    pack(config)
    main(config)
    assert "whole, and nothing crosses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(flipped(path, in_picture=True)), "broken_picture"),
        (lambda path: path.write_bytes(flipped(path, in_picture=False)), "broken_tar"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "wrong_size"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_damage_is_found_by_name_and_in_its_tar(config, packed, tmp_path, damage, reason):
    packed()
    damage(tmp_path / "shards" / "train-000000.tar")
    with pytest.raises(DataError, match=reason) as told:
        main(config)
    assert "train-000000.tar" in str(told.value)
    assert "\n" not in str(told.value)
    assert not json.loads((tmp_path / "verify.json").read_text())["is_whole"]


def flipped(path, *, in_picture):
    """The tar's bytes with one bit changed."""
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = next(one for one in tar if one.name.endswith(".png"))
    content[member.offset_data + member.size // 2 if in_picture else member.offset + 150] ^= 1
    return bytes(content)


def test_bit_that_no_decoder_minds_is_found_by_the_hash(config, packed, tmp_path):
    packed()
    path = tmp_path / "shards" / "val-000000.tar"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # padding after the end of the archive
    path.write_bytes(bytes(content))
    assert verify(config).counts == {"wrong_hash": 1}


@pytest.mark.parametrize(
    ("change", "meta", "reason"),
    [
        (lambda one: one, {}, {"leak_bytes": 1, "leak_pixels": 1, "leak_near_duplicate": 1}),
        (lambda one: one.resize((150, 150), Image.Resampling.LANCZOS), {}, {"leak_near_duplicate": 1}),
        (ImageOps.mirror, {}, {"leak_mirrored": 1}),
    ],
)
def test_twin_in_the_other_split_is_found(packed, draw, change, meta, reason):
    assert packed(("test", change(draw(3)), "twin", meta)) == reason


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        ({"group": "club"}, {"group": "club"}, {"leak_group": 1}),
        ({"source_group": "club"}, {"source_group": "club"}, {"leak_source_group": 1}),
        ({"source_file": "a/b"}, {"source_file": "a/b"}, {"leak_source_file": 1}),
        ({"sha256": "00ff"}, {"sha256": "00ff"}, {"leak_bytes": 1}),
        ({"caption": "A red  lion."}, {"caption": "a RED lion."}, {"leak_caption": 1}),
        ({"caption": 'Blue "KINGS".'}, {"caption": 'A crown over "Kings".'}, {"leak_wordmark": 1}),
        ({"caption": 'Blue "KINGS".'}, {"caption": 'A crown over "Queens".'}, {}),
    ],
)
def test_what_both_splits_have_in_common_is_found_by_its_own_name(packed, draw, mine, theirs, reason):
    assert packed(("train", draw(91), "one", mine), ("test", draw(92), "other", theirs)) == reason


def test_words_of_very_many_groups_name_a_class_and_may_cross(packed, draw):
    more = [
        (split, draw(100 + 40 * number + seed), f"c{number}-{seed}", {"caption": "A logo."})
        for number, split in enumerate(("train", "test"))
        for seed in range(11)
    ]
    assert packed(*more) == {}


def test_shards_of_other_records_are_told(config, packed, tmp_path):
    packed()
    write_manifest(tmp_path, Manifest("records", "new"))
    write_json(tmp_path / "captions.json", {"hash": "c"})
    report = verify(config)
    assert report.counts == {"lineage": 2}
    assert "made of records r, but those of now are new" in report.faults[0].said


def test_leak_names_both_pictures_and_their_splits(config, packed, draw, tmp_path):
    packed(("test", ImageOps.mirror(draw(3)), "twin", {}))
    with pytest.raises(DataError, match=r"[0-9a-f]{16} \(train\) and [0-9a-f]{16} \(test\) look the same"):
        main(config)


def test_many_faults_are_counted_and_few_of_a_kind_are_named():
    report = Report()
    for number in range(60):
        report.note("leak_group", str(number))
        report.note("missing", str(number))
    assert report.counts == {"leak_group": 60, "missing": 60}
    assert len(report.faults) == 2 * SHOWN
