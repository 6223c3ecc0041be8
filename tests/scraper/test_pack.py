"""Records, captions and pictures to shards: the same bytes whoever works, nothing lost or half-written."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from PIL import Image

from crest.config import guarded
from crest.errors import DataError
from crest.records import (
    SPLITS,
    Caption,
    Manifest,
    Record,
    content_id,
    file_hash,
    read_manifest,
    read_records,
    write_captions,
    write_json,
    write_manifest,
    write_records,
)
from crest.shards import check_shards, read_samples
from scraper.caption import main as caption
from scraper.chunks import WORK_DIR
from scraper.collect import collect
from scraper.pack import main
from scraper.splits import LEDGER


@pytest.fixture
def config(shelf, tmp_path, draw):
    (tmp_path / "mine").mkdir()
    for number in range(12):
        draw(number, has_alpha=number % 2 == 0).save(tmp_path / "mine" / f"{number}.png")
        (tmp_path / "mine" / f"{number}.txt").write_text(f"A badge; number {number}.")
    config = shelf.config(source={"site": "folder", "path": str(tmp_path / "mine")}, pack={"side_px": 48})
    collect(config)
    return config


@pytest.fixture
def stock(shelf, draw, tmp_path):
    """Call with a number of logos: a data folder of them as scraper and captioner leave it."""

    def make(count=60, start=0, **settings):
        folder = shelf.dir
        (folder / "images").mkdir(parents=True, exist_ok=True)
        records, captions = [], []
        for number in range(start, count):
            stream = io.BytesIO()
            draw(number, 32 + number % 3 * 16, has_alpha=number % 2 == 0).save(stream, "PNG")
            name = content_id(stream.getvalue())
            (folder / "images" / f"{name}.png").write_bytes(stream.getvalue())
            side_px = 32 + number % 3 * 16
            records.append(
                Record(
                    name,
                    f"images/{name}.png",
                    "test",
                    f"own {number}",
                    f"club {number // 2}",
                    width_px=side_px,
                    height_px=side_px,
                    licence="CC0",
                    page_url=f"https://a.example/{number}",
                )
            )
            captions.append(Caption(name, f"A badge; number {number}.", "human"))
            captions.append(Caption(name, f"colours {number}", "rule", weight=0.25))
        write_records(folder / "records.jsonl", records)
        write_captions(folder / "captions.jsonl", captions)
        write_manifest(folder, Manifest("records", f"r{start}-{count}"))
        parents = {"records": f"r{start}-{count}"}
        write_json(folder / "captions.json", dataclasses.asdict(Manifest("captions", "c", parents=parents)))
        pack = {"side_px": 48, "samples_per_shard": 8, **settings.pop("pack", {})}
        return shelf.config(
            source={"site": "folder", "path": str(tmp_path)}, pack=pack, work={"workers": 1, **settings}
        )

    return make


def tars(shelf):
    return {path.name: path.read_bytes() for path in (shelf.dir / "shards").glob("*.tar")}


def manifest_of(shelf):
    return read_manifest(shelf.dir / "shards", "shards", "make shards")


def split_by_id(shelf):
    shards = shelf.dir / "shards"
    return {sample.id: split for split in SPLITS for sample in read_samples(shards, split)}


def test_scrape_then_shards_needs_no_captioner_in_between(config, shelf, capsys):
    main(config)
    before = manifest_of(shelf)
    assert sum(before.counts.values()) == 12
    caption(config)
    main(config)
    assert "up to date" in capsys.readouterr().out, "the sources' own words are the same words"
    after = manifest_of(shelf)
    assert after.hash == before.hash
    captions = json.loads((shelf.dir / "captions.json").read_text())
    assert after.parents["captions"] == captions["hash"]


def test_captions_of_records_that_changed_are_refused(config, tmp_path, draw):
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
    records = {record.id: record for record in read_records(shelf.dir / "records.jsonl")}
    modes = set()
    for sample in samples:
        with Image.open(io.BytesIO(sample.image)) as picture:
            modes.add(picture.mode)
            assert max(picture.size) == 48
        assert sample.meta["caption_origin"] == {"origin": "human", "model": ""}
        # all of the record comes along: a picture can be traced to its page and its licence
        record = json.loads(json.dumps(dataclasses.asdict(records[sample.id])))
        assert (
            record.items() <= {**sample.meta, "caption": record["caption"], "group": record["group"]}.items()
        )
        assert sample.meta["source_caption"] == record["caption"]
    assert modes == {"RGB", "RGBA"}


def test_several_captions_come_along_with_who_wrote_them_and_their_weight(stock, shelf):
    main(stock(12))
    sample = next(read_samples(shelf.dir / "shards", "train"))
    assert sample.caption.startswith("A badge")
    first, second = sample.meta["captions"]
    assert (first["text"], first["origin"], first["weight"]) == (sample.caption, "human", 1.0)
    assert (second["origin"], second["weight"]) == ("rule", 0.25)
    assert (sample.meta["licence"], sample.meta["page_url"][:18]) == ("CC0", "https://a.example/")


def test_only_what_people_wrote_is_packed_on_request(stock, shelf):
    main(stock(12, pack={"use_captions": "human"}))
    samples = [sample for split in SPLITS for sample in read_samples(shelf.dir / "shards", split)]
    assert {len(sample.meta["captions"]) for sample in samples} == {1}


def test_run_again_is_up_to_date_and_the_same_input_gives_the_same_bytes(config, shelf, capsys):
    caption(config)
    main(config)
    before = tars(shelf)
    assert set(manifest_of(shelf).parents) == {"records", "captions"}
    capsys.readouterr()
    main(config)
    assert "up to date" in capsys.readouterr().out
    (shelf.dir / "shards" / "manifest.json").unlink()
    main(config)
    assert tars(shelf) == before


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_are_the_same_for_any_number_of_workers(stock, shelf, workers):
    """More than FEW logos, so that processes are really started."""
    config = stock(230, pack={"samples_per_shard": 40, "shard_size_mb": 0.05})
    main(config)
    first, manifest = tars(shelf), (shelf.dir / "shards" / "manifest.json").read_bytes()
    assert len(first) > 8
    for path in (shelf.dir / "shards").iterdir():
        path.unlink()
    main(config.model_copy(update={"work": config.work.model_copy(update={"workers": workers})}))
    assert tars(shelf) == first
    assert (shelf.dir / "shards" / "manifest.json").read_bytes() == manifest


def test_tars_are_cut_by_count_and_by_size_and_numbered_without_gaps(stock, shelf):
    main(stock(60, pack={"samples_per_shard": 20, "shard_size_mb": 0.03}))
    found = tars(shelf)
    for split in SPLITS:
        own = sorted(name for name in found if name.startswith(split))
        assert own == [f"{split}-{number:06d}.tar" for number in range(len(own))]
    assert all(len(content) <= 30_000 for content in found.values())
    assert len(found) > 6
    main(stock(60, pack={"samples_per_shard": 20, "shard_size_mb": 0.000001}))
    assert len(tars(shelf)) == 60, "a sample that is larger than the limit gets a tar of its own"


def test_manifest_names_size_hash_and_count_of_every_tar(stock, shelf):
    main(stock(40))
    shards, manifest = shelf.dir / "shards", manifest_of(shelf)
    for name, noted in manifest.details["tars"].items():
        assert noted["sha256"] == file_hash(shards / name)
        with tarfile.open(shards / name) as archive:
            assert 3 * noted["samples"] == len(archive.getnames())
    assert sum(noted["samples"] for noted in manifest.details["tars"].values()) == 40
    assert manifest.details["groups"] == 20
    assert check_shards(shards) == []
    assert sorted(path.name for path in shards.iterdir()) == sorted(
        [*manifest.files, "manifest.json", LEDGER]
    )


@pytest.mark.parametrize(("packed_as", "magic"), [("webp", b"RIFF"), ("jpg", b"\xff\xd8\xff")])
def test_other_formats_on_request(stock, shelf, packed_as, magic):
    main(stock(12, pack={"format": packed_as}))
    for split in SPLITS:
        for sample in read_samples(shelf.dir / "shards", split):
            assert (sample.kind, sample.image[: len(magic)]) == (packed_as, magic)
    assert check_shards(shelf.dir / "shards") == []


def test_no_logo_moves_when_the_folder_grows(stock, shelf):
    main(stock(20))
    before = split_by_id(shelf)
    for count in (30, 60):
        main(stock(count))
        after = split_by_id(shelf)
        assert before.items() <= after.items()
        before = after
    assert manifest_of(shelf).details["split_moved"] == 0


def test_logos_that_new_ones_link_are_moved_counted_and_named(stock, shelf, capsys):
    config = stock(20)
    main(config)
    before = split_by_id(shelf)
    records = read_records(shelf.dir / "records.jsonl")
    held = next(record for record in records if before[record.id] == "test")
    trained = next(record for record in records if before[record.id] == "train")
    linked = [
        dataclasses.replace(one, source_file="denver") if one in (held, trained) else one for one in records
    ]
    write_records(shelf.dir / "records.jsonl", linked)
    write_manifest(shelf.dir, Manifest("records", "linked"))
    write_json(
        shelf.dir / "captions.json",
        dataclasses.asdict(Manifest("captions", "c", parents={"records": "linked"})),
    )
    capsys.readouterr()
    main(config)
    after = split_by_id(shelf)
    assert after[trained.id] == after[held.id] == "test"
    details = manifest_of(shelf).details
    moved = {name for name in before if before[name] != after[name]}
    assert (details["split_moved"], details["split_moved_groups"]) == (len(moved), [trained.group])
    assert f"split_moved {len(moved)}" in capsys.readouterr().out


def test_another_seed_draws_all_splits_anew_and_says_so(stock, shelf, capsys):
    main(stock(40))
    before = split_by_id(shelf)
    main(stock(40, pack={"seed": 1}))
    assert split_by_id(shelf) != before
    assert "every split was drawn anew" in capsys.readouterr().out


def test_damaged_pictures_are_named_counted_and_left_out_up_to_a_share(stock, shelf):
    config = stock(40, pack={"max_damaged_share": 0.05})
    main(config)
    whole = split_by_id(shelf)
    broken = read_records(shelf.dir / "records.jsonl")[7]
    path = shelf.dir / broken.image
    content = path.read_bytes()
    path.write_bytes(content[:90] + b"\x00" + content[91:])
    (shelf.dir / "shards" / "manifest.json").unlink()
    main(config)
    manifest = manifest_of(shelf)
    assert manifest.dropped == {"damaged": 1}
    assert broken.id in manifest.details["damaged"]
    assert split_by_id(shelf) == {name: split for name, split in whole.items() if name != broken.id}
    path.write_bytes(content)
    (shelf.dir / "shards" / "manifest.json").unlink()
    main(config)
    assert split_by_id(shelf) == whole


def test_more_damage_than_allowed_stops_the_run_and_keeps_the_shards_of_before(stock, shelf):
    main(stock(40))
    before = tars(shelf)
    config = stock(50)
    (shelf.dir / read_records(shelf.dir / "records.jsonl")[7].image).unlink()
    with pytest.raises(DataError, match=r"1 of 50 pictures are damaged, .* 0\.01 \(pack\.max_damaged_share"):
        main(config)
    assert tars(shelf) == before
    assert sum(manifest_of(shelf).counts.values()) == 40


def test_a_full_disk_is_one_sentence_and_packing_goes_on_when_there_is_space(stock, shelf, capsys):
    """/dev/full refuses every byte as a full disk does."""
    config = stock(60)
    main(config)
    wanted = tars(shelf)
    for path in (shelf.dir / "shards").iterdir():
        path.unlink()
    work = shelf.dir / "shards" / WORK_DIR
    work.mkdir()
    (work / "train-000003.000.tar.part").symlink_to("/dev/full")
    assert guarded(lambda: main(config)) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith(
        "train-000003.000.tar: the disk is full; free some space and run the same command again."
    )
    assert "\n" not in said
    left = {path.name for path in work.iterdir()}
    assert left == {f"train-{n:06d}{end}" for n in range(3) for end in (".000.tar", ".json")}
    assert not list((shelf.dir / "shards").glob("*.tar"))
    os.utime(work / "train-000000.000.tar", ns=(1, 1))
    main(config)
    assert tars(shelf) == wanted
    kept = shelf.dir / "shards" / "train-000000.tar"
    assert kept.stat().st_mtime_ns == 1, "what was finished is not done again"


def test_a_killed_run_costs_its_chunk_and_ends_in_the_same_bytes(stock, shelf, tmp_path):
    config = stock(60)
    main(config)
    wanted = tars(shelf)
    shards = shelf.dir / "shards"
    for path in shards.iterdir():
        path.unlink()
    (tmp_path / "pack.json").write_text(config.model_dump_json())
    # a pipe where a tar should go holds the run at its third chunk until it is killed
    (shards / WORK_DIR).mkdir()
    os.mkfifo(shards / WORK_DIR / "train-000002.000.tar.part")
    running = subprocess.Popen(
        [sys.executable, "-m", "scraper.pack", "--config", str(tmp_path / "pack.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (shards / WORK_DIR / "train-000001.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    first = shards / WORK_DIR / "train-000000.000.tar"
    os.utime(first, ns=(1, 1))
    (shards / WORK_DIR / "train-000002.000.tar.part").unlink()
    main(config)
    assert tars(shelf) == wanted
    assert (shards / "train-000000.tar").stat().st_mtime_ns == 1, "what was finished is not done again"


def test_chunks_of_other_data_are_not_taken(stock, shelf):
    config = stock(60)
    work = shelf.dir / "shards" / WORK_DIR
    work.mkdir(parents=True)
    (work / "train-000003.000.tar.part").symlink_to("/dev/full")
    assert guarded(lambda: main(config)) == 1
    main(stock(80))
    after = tars(shelf)
    for path in (shelf.dir / "shards").iterdir():
        path.unlink()
    main(stock(80))
    assert tars(shelf) == after


def test_tars_of_a_larger_folder_are_swept(stock, shelf):
    main(stock(60))
    main(stock(20))
    assert sorted(tars(shelf)) == sorted(manifest_of(shelf).files)


def test_memory_stays_flat(stock, shelf):
    """Pictures of 40 chunks pass through; only columns and one sample are held."""
    import tracemalloc

    config = stock(40, pack={"samples_per_shard": 1})
    main(config)
    (shelf.dir / "shards" / "manifest.json").unlink()
    tracemalloc.start()
    main(config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
