"""Class pictures: drawn once by the unmodified models, kept by what they depend on, of one CLIP only."""

from pathlib import Path
from typing import Any

import pytest
import torch

from crest.embeddings import read_embeddings
from crest.errors import ConfigError, WeightsError
from crest.pixels import open_pictures
from crest.preservation import class_embeddings, class_pictures, class_prompts
from crest.preservation_config import PreservationConfig
from crest.records import read_json, read_manifest


def settings(tiny_world: Any, **changes: Any) -> PreservationConfig:
    runs = tiny_world.folder / "runs"
    values = {
        "prompts": ("a red crest", "a navy crest"),
        "pictures": 5,
        "clip": str(runs / "clip_train"),
        "prior": str(runs / "prior_train"),
        "steps": 2,
        "prior_steps": 2,
    }
    return PreservationConfig.model_validate({**values, **changes})


def start(tiny_world: Any) -> str:
    return str(tiny_world.folder / "runs" / "decoder_train")


@pytest.fixture
def embeddings(tiny_world: Any, tmp_path: Path) -> Path:
    """The world's embeddings under a folder of this test, so that what is made beside them is new."""
    place = tmp_path / "data" / "embeddings"
    place.parent.mkdir()
    place.symlink_to(tiny_world.embeddings)
    return place


def test_prompts_are_taken_in_turn_from_a_list_or_a_file(tmp_path: Path) -> None:
    config = PreservationConfig(prompts=("a", "b"), pictures=5)
    assert class_prompts(config) == ["a", "b", "a", "b", "a"]
    path = tmp_path / "class.txt"
    path.write_text("one\n\ntwo\n", encoding="utf-8")
    assert class_prompts(PreservationConfig(prompts=path, pictures=3)) == ["one", "two", "one"]
    with pytest.raises(ConfigError, match=r"preservation\.prompts"):
        class_prompts(PreservationConfig(prompts=("a", " ")))


def test_pictures_are_drawn_once_counted_and_joined_to_their_embeddings(
    tiny_world: Any, embeddings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = class_pictures(settings(tiny_world), embeddings, start(tiny_world), "cpu")
    assert "5 class pictures drawn" in capsys.readouterr().err
    assert (made.shards.parent / "samples" / "grid.png").exists()
    pictures = open_pictures(made.shards, "train", 16)
    shard = read_embeddings(made.embeddings, "train")
    assert pictures.captions == ["a red crest", "a navy crest"] * 2 + ["a red crest"]
    assert shard.ids == pictures.ids
    parents = read_manifest(made.embeddings, "embeddings", "").parents
    assert parents == {
        "clip": read_manifest(embeddings, "embeddings", "").parents["clip"],
        "shards": pictures.shards_hash,
    }
    assert len({bytes(picture.tobytes()) for picture in pictures.pixels}) == 5  # a seed each
    again = class_pictures(settings(tiny_world), embeddings, start(tiny_world), "cpu")
    assert again == made
    assert "5 class pictures kept" in capsys.readouterr().err


def test_a_stop_in_between_gives_the_same_pictures(tiny_world: Any, embeddings: Path) -> None:
    made = class_pictures(settings(tiny_world), embeddings, start(tiny_world), "cpu")
    folder, before = made.shards.parent, read_manifest(made.shards, "shards", "").hash
    numbers = read_embeddings(made.embeddings, "train").image_embed
    for path in (
        made.embeddings / "manifest.json",
        made.shards / "manifest.json",
        folder / "samples/manifest.json",
    ):
        path.unlink()
    next(made.embeddings.glob("*.safetensors")).unlink()
    (folder / "samples" / "0001-00.png").unlink()
    class_pictures(settings(tiny_world), embeddings, start(tiny_world), "cpu")
    assert read_manifest(made.shards, "shards", "").hash == before
    assert torch.equal(read_embeddings(made.embeddings, "train").image_embed, numbers)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"prompts": ("a red crest",)}, {"steps": 3}, {"pictures": 4}]
)
def test_other_settings_are_other_pictures(tiny_world: Any, embeddings: Path, change: dict[str, Any]) -> None:
    first = class_pictures(settings(tiny_world), embeddings, start(tiny_world), "cpu")
    assert class_pictures(settings(tiny_world, **change), embeddings, start(tiny_world), "cpu") != first


def test_a_prior_keeps_what_its_class_prompts_led_to(tiny_world: Any, embeddings: Path) -> None:
    from crest.models.clip import load_clip
    from crest.models.families import load_prior_family
    from crest.world import mix_seed

    config = settings(tiny_world, seed=3)
    prior = str(tiny_world.folder / "runs" / "prior_train")
    folder = class_embeddings(config, embeddings, prior, "cpu")
    shard = read_embeddings(folder, "train")
    assert len(shard.ids) == 5
    unmodified, _, _ = load_prior_family(prior)
    text = load_clip(config.clip).encode_text(class_prompts(config), length=unmodified.spec.max_text_len)
    drawn = unmodified.eval().sample(  # type: ignore[attr-defined]
        text, seeds=[mix_seed(3, row) for row in range(5)], cond_scale=1.0, steps=2, candidates=2
    )
    torch.testing.assert_close(shard.image_embed, drawn, atol=2e-3, rtol=0)  # kept as half floats
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert class_embeddings(config, embeddings, prior, "cpu") == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp


def test_embeddings_of_another_clip_are_refused(tiny_world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "other" / "embeddings"
    folder.mkdir(parents=True)
    manifest = read_json(tiny_world.embeddings / "manifest.json")
    for name in manifest["files"]:
        (folder / name).symlink_to(tiny_world.embeddings / name)
    manifest["parents"]["clip"] = "0" * 16
    import json

    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"preservation\.embed_clip"):
        class_pictures(settings(tiny_world), folder, start(tiny_world), "cpu")
