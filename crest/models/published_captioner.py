"""Published captioners that can be fine-tuned: local folders that transformers reads as ViT-GPT2s are read.

Any encoder and decoder that its VisionEncoderDecoderModel puts together will do, for instance
nlpconnect/vit-gpt2-image-captioning. Nothing is downloaded here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from crest.checkpoint import WEIGHTS, load_weights
from crest.errors import WeightsError
from crest.models.captioner import WritingModel
from crest.records import file_hash, read_json

KIND = "published_captioner"
FOLDER = "published"
"""Of a run folder: the tuned captioner as the library writes one, so that it can be loaded without Crest."""
MAX_TOKENS = 64
WHOLE = ("model.safetensors", "pytorch_model.bin")


def published_folder(place: str | Path) -> Path | None:
    """The published encoder-decoder behind a place: that folder, or what a run of ours left in it."""
    for folder in (Path(place) / FOLDER, Path(place)):
        path = folder / "config.json"
        if path.exists() and read_json(path).get("model_type") == "vision-encoder-decoder":
            return folder
    return None


class PublishedModel(WritingModel):
    """A published captioner under training: its weights, its tokenizer and its way to scale pictures.

    Raises:
        WeightsError: a folder that lacks one of these.
    """

    kind = KIND
    mean: Tensor
    deviation: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        try:
            self.network = VisionEncoderDecoderModel.from_pretrained(folder, local_files_only=True).float()
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(
                f"{folder}: is no captioner that transformers can read ({reason}); download all its files."
            ) from None
        encoder, decoder = self.network.config.encoder, self.network.config.decoder
        self.side_px = int(encoder.image_size)
        self.max_tokens = min(MAX_TOKENS, int(getattr(decoder, "n_positions", MAX_TOKENS)))
        known = self.network.generation_config
        start, end = known.decoder_start_token_id, known.eos_token_id or self.tokenizer.eos_token_id
        if start is None:
            start = self.network.config.decoder_start_token_id
        if start is None or end is None:
            raise WeightsError(f"{folder}: names no token that starts or ends a text; see its config.json.")
        self.start, self.end = int(start), int(end)
        mean, deviation = (
            torch.tensor(getattr(self.processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std")
        )
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pictures (B, 3, side, side) in [0, 1], normed as the folder's image processor does."""
        return (images - self.mean) / self.deviation, None

    def described(self) -> dict[str, Any]:
        """The library's config."""
        config: dict[str, Any] = self.network.config.to_dict()
        return config


def load_published_model(folder: Path) -> tuple[PublishedModel, str]:
    """A trainable captioner from a published folder: model, hash.

    Raises:
        WeightsError: a folder that transformers cannot read, or one without whole weights.
    """
    weights = next((folder / name for name in WHOLE if (folder / name).exists()), None)
    if weights is None:
        raise WeightsError(f"{folder}: holds none of {', '.join(WHOLE)}; download all its files.")
    return PublishedModel(folder), file_hash(weights)[:16]


def publish(run_dir: Path, start: Path) -> Path:
    """Write a finished run's weights as the library writes them, beside its own, unless they are there.

    Args:
        run_dir: with weights.safetensors.
        start: the published folder that the run started from.
    Returns:
        the folder, which transformers and `load_captioner` read.
    """
    folder = run_dir / FOLDER
    part = folder.with_name(f"{FOLDER}.part")
    if not folder.exists():
        shutil.rmtree(part, ignore_errors=True)
        model = PublishedModel(start)
        load_weights(model, run_dir / WEIGHTS)
        for writer in (model.network, model.tokenizer, model.processor):
            writer.save_pretrained(part)
        part.rename(folder)
    return folder
