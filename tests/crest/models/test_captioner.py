"""Captioners: Crest's own ViT-GPT2 learns and travels; published ones have a file of their own."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from crest.checkpoint import export_weights
from crest.errors import ConfigError, WeightsError
from crest.images import square, to_array
from crest.models.captioner import (
    END,
    Captioner,
    CaptionerModel,
    CaptionerSpec,
    learn_vocabulary,
    load_captioner,
)

WORDS = ("red", "navy", "gold", "green", "black", "purple")
CAPTIONS = [f"a {WORDS[index % 6]} crest with a {WORDS[(index + 1) % 6]} charge" for index in range(6)]


def model_of(texts: list[str] = CAPTIONS, vocabulary: int = 300) -> CaptionerModel:
    torch.manual_seed(0)
    spec = {"side_px": 16, "patch_px": 8, "width": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    return CaptionerModel(
        CaptionerSpec.model_validate({**spec, "max_tokens": 24, **learn_vocabulary(texts, vocabulary)})
    )


@pytest.fixture(scope="module")
def taught() -> CaptionerModel:
    """A captioner that has learned one caption per flat colour."""
    model = model_of()
    images, labels = torch.stack([flat(colour) for colour in COLOURS]), model.tokenize(CAPTIONS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        logits, _ = model(images, labels)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


COLOURS = [(200, 16, 46), (0, 56, 101), (255, 184, 28), (0, 102, 51), (20, 20, 20), (110, 64, 160)]


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def flat(colour: tuple[int, int, int]) -> torch.Tensor:
    return torch.from_numpy(to_array(square(picture(colour), 16))).float() / 255


def test_it_learns_to_write_a_caption_for_each_picture(taught: CaptionerModel) -> None:
    captions = Captioner(taught, "0" * 16).caption([picture(colour) for colour in COLOURS])
    assert captions == CAPTIONS


def test_batches_of_any_size_write_the_same(taught: CaptionerModel) -> None:
    pictures = [picture(colour) for colour in COLOURS]
    assert Captioner(taught, "0" * 16, batch_size=4).caption(pictures) == CAPTIONS
    assert Captioner(taught, "0" * 16, batch_size=1).caption(pictures) == CAPTIONS


def test_any_size_and_mode_of_picture_is_accepted(taught: CaptionerModel) -> None:
    clear = Image.new("RGBA", (30, 30), (200, 16, 46, 255))
    grey = Image.new("L", (9, 60), 20)
    captions = Captioner(taught, "0" * 16).caption([clear, grey, picture(COLOURS[0], (200, 200))])
    assert captions[0] == captions[2] == CAPTIONS[0]
    assert len(captions) == 3


def test_nothing_to_caption_writes_nothing(taught: CaptionerModel) -> None:
    assert Captioner(taught, "0" * 16).caption([]) == []


def test_weights_and_tokenizer_travel_together(taught: CaptionerModel, tmp_path: Path) -> None:
    card = {"kind": "captioner", "spec": taught.spec.model_dump(mode="json"), "parents": {}}
    export_weights(tmp_path, taught, json.loads(json.dumps(card)))
    back = load_captioner(tmp_path)
    assert back.caption([picture(colour) for colour in COLOURS]) == CAPTIONS
    assert len(back.hash) == 16


def test_a_vocabulary_spells_any_text_and_ends_with_its_mark() -> None:
    model = model_of()
    assert model.spec.tokens[-1] == END
    assert len(model.spec.tokens) <= 301
    for text in ("a red crest", 'déjà "vu" №7 ☃', ""):
        (row,) = model.tokenize([text])
        assert int(row[-1]) == model.end
        assert model.tokenizer.decode(row[:-1].tolist()) == text


def test_labels_learn_the_end_once_and_nothing_behind_it() -> None:
    model = model_of()
    labels = model.tokenize(["a red crest", "a red crest with a navy charge", "x" * 500])
    assert labels.shape[1] == 24
    for row in labels:
        ends = (row == model.end).nonzero().flatten().tolist()
        assert len(ends) == 1
        assert (row[ends[0] + 1 :] == -100).all()


def stemmed(patch_px: int = 8, channels: int = 8) -> CaptionerModel:
    torch.manual_seed(0)
    spec = {"side_px": 16, "patch_px": patch_px, "stem_channels": channels, "width": 32, "heads": 2}
    layers = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_tokens": 24,
        "things": ("crest", "charge", "star"),
    }
    return CaptionerModel(CaptionerSpec.model_validate({**spec, **layers, **learn_vocabulary(CAPTIONS, 300)}))


def test_a_stem_names_things_beside_what_is_written() -> None:
    model = stemmed()
    labels = model.tokenize(CAPTIONS[:2])
    logits, things = model(torch.stack([flat(colour) for colour in COLOURS[:2]]), labels)
    assert logits.shape == (*labels.shape, len(model.spec.tokens))
    assert things is not None
    assert things.shape == (2, 3)
    assert len(model.write(torch.rand(3, 3, 16, 16))) == 3


def test_what_a_stem_sees_does_not_depend_on_the_pictures_beside_it() -> None:
    model, images = stemmed().eval(), torch.stack([flat(colour) for colour in COLOURS])
    together, alone = model.look(images)[0], model.look(images[2:3])[0]
    assert together.shape == (6, 32 + 3 * 8 * 8, 2, 2)
    assert torch.allclose(together[2:3], alone, atol=1e-5)


def test_a_stem_travels_with_its_things(tmp_path: Path) -> None:
    model = stemmed().eval()
    card = {"kind": model.kind, "spec": model.described(), "parents": {}}
    export_weights(tmp_path, model, json.loads(json.dumps(card)))
    pictures = [picture(colour) for colour in COLOURS]
    assert load_captioner(tmp_path).caption(pictures) == Captioner(model, "0" * 16).caption(pictures)


@pytest.mark.parametrize(
    ("patch_px", "channels", "says"),
    [
        (6, 8, "patch_px: found 6, but a stem halves"),
        (8, 12, "stem_channels: found 12, expected a multiple of 8"),
    ],
)
def test_a_stem_that_cannot_be_built_is_refused(patch_px: int, channels: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        stemmed(patch_px, channels)


def test_a_word_does_not_see_those_after_it(taught: CaptionerModel) -> None:
    labels = taught.tokenize([CAPTIONS[0]])
    other = labels.clone()
    other[0, 5:] = taught.end
    with torch.no_grad():
        (left, _), (right, _) = (taught(flat(COLOURS[0])[None], rows) for rows in (labels, other))
    assert torch.allclose(left[:, :6], right[:, :6], atol=1e-5)


def test_a_folder_that_is_no_captioner_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}', encoding="utf-8")
    with pytest.raises(WeightsError, match="is no captioner that transformers can read"):
        load_captioner(tmp_path)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there are no captioner weights"):
        load_captioner(tmp_path / "nowhere")
