"""Captioners: a picture to a sentence, through transformers, of which it takes the parts of a ViT-GPT2.

Crest's own one is trainable and carries its tokenizer inside its card; published captioners are run in
hub_captioner.py and trained in published_captioner.py, which know that library too; so does
clip_tokenizers.py, and no other file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from crest.checkpoint import card_spec, load_weights, locate_weights, read_card, short_hash
from crest.config import Config
from crest.errors import ConfigError
from crest.images import square, to_array
from crest.models.conv_stem import ConvStem

if TYPE_CHECKING:
    from crest.models.hub_captioner import Asking, HubCaptioner

KIND = "captioner"
END = "<|end|>"


class CaptionerSpec(Config):
    """Everything needed to build a ViT-GPT2 and to feed it."""

    side_px: int = 64
    """Side of the pictures that it reads."""
    patch_px: int = 8
    """Side of one patch."""
    stem_channels: int | None = None
    """Channels of a convolutional stem's first stage, doubled at every halving; null: a ViT's own patches."""
    things: tuple[str, ...] = ()
    """With a stem: words of things that it learns to name by itself."""
    width: int = 128
    """Width of both transformers."""
    heads: int = 4
    """Attention heads of both."""
    encoder_layers: int = 4
    """Layers that look."""
    decoder_layers: int = 3
    """Layers that write."""
    max_tokens: int = 64
    """Longest caption."""
    tokens: tuple[str, ...]
    """The vocabulary, by id; the last one ends a text."""
    merges: tuple[str, ...]
    """The byte-pair merges, in order."""


def learn_vocabulary(texts: Iterable[str], size: int) -> dict[str, Any]:
    """A byte-pair vocabulary of at most `size` tokens for `CaptionerSpec`: {"tokens": …, "merges": …}."""
    import json

    from tokenizers import ByteLevelBPETokenizer

    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(
        texts, vocab_size=size, min_frequency=2, special_tokens=[], show_progress=False
    )
    model = json.loads(learner.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    return {"tokens": (*tokens, END), "merges": tuple(merges)}


class WritingModel(nn.Module, ABC):
    """A trainable encoder that looks with a decoder that writes: what every such captioner can do.

    Attributes:
        kind: of its weights.
        network: the library's VisionEncoderDecoderModel.
        tokenizer: text to token ids and back.
        side_px: side of the pictures that it reads.
        max_tokens: longest caption that it learns or writes.
        start: the token before a text.
        end: the token behind one.
        things: words that the eyes learn to name by themselves.
    """

    kind: str
    network: Any
    tokenizer: Any
    side_px: int
    max_tokens: int
    start: int
    end: int
    things: tuple[str, ...] = ()

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pictures (B, 3, side, side) in [0, 1] as the network wants them; logits (B, T) of things."""
        return images * 2 - 1, None

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Labels (B, L): token ids with the end mark, -100 (not learned) behind it."""
        rows = [[*self.tokenizer.encode(text)[: self.max_tokens - 1], self.end] for text in texts]
        labels = torch.full((len(rows), max(map(len, rows))), -100, dtype=torch.long)
        for number, row in enumerate(rows):
            labels[number, : len(row)] = torch.tensor(row)
        return labels

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is written, and which things are seen.

        Args:
            images: (B, 3, side, side) in [0, 1].
            labels: (B, L) token ids, -100 where nothing is learned.
        Returns:
            logits (B, L, V) of every next token; logits (B, T) of `things`, None from a model without.
        """
        inputs = labels.masked_fill(labels == -100, self.end)
        inputs = torch.cat((torch.full_like(inputs[:, :1], self.start), inputs[:, :-1]), dim=1)
        pixels, things = self.look(images)
        return self.network(pixel_values=pixels, decoder_input_ids=inputs).logits, things

    @torch.no_grad()
    def write(self, images: Tensor, beams: int = 1) -> list[str]:
        """Captions, greedy or by beam search; images (B, 3, side, side) in [0, 1]."""
        seen = self.network.encoder(pixel_values=self.look(images)[0])
        tokens = self.network.generate(
            encoder_outputs=seen,
            # every patch is looked at; without a mask the library would guess one, and warn
            attention_mask=torch.ones(seen[0].shape[:2], dtype=torch.long, device=images.device),
            max_new_tokens=self.max_tokens - 1,
            do_sample=False,
            num_beams=beams,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What the card of its weights says of its architecture."""

    def matrices(self) -> tuple[str, ...]:
        """Patterns of the weight matrices that low-rank adapters change: attention and the layers between."""
        return ("*attention.*.weight", "*attn.*.weight", "*mlp.*.weight")


class CaptionerModel(WritingModel):
    """A trainable ViT-GPT2 with its tokenizer."""

    kind = KIND

    def __init__(self, spec: CaptionerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.side_px, self.max_tokens = spec.side_px, spec.max_tokens
        vocabulary = {token: number for number, token in enumerate(spec.tokens)}
        merges = [tuple(merge.split(" ")) for merge in spec.merges]
        self.tokenizer = GPT2Tokenizer(
            vocab=vocabulary, merges=merges, unk_token=END, bos_token=END, eos_token=END, pad_token=END
        )
        self.start = self.end = vocabulary[END]
        self.stem = None if spec.stem_channels is None else ConvStem(spec.patch_px, spec.stem_channels)
        self.name = None if self.stem is None else nn.Linear(self.stem.found, len(spec.things))
        self.things = spec.things if self.name is not None else ()
        encoder = ViTConfig(
            image_size=spec.side_px if self.stem is None else spec.side_px // spec.patch_px,
            patch_size=spec.patch_px if self.stem is None else 1,
            num_channels=3 if self.stem is None else self.stem.channels,
            hidden_size=spec.width,
            num_hidden_layers=spec.encoder_layers,
            num_attention_heads=spec.heads,
            intermediate_size=4 * spec.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        decoder = GPT2Config(
            vocab_size=len(spec.tokens),
            n_positions=spec.max_tokens,
            n_embd=spec.width,
            n_layer=spec.decoder_layers,
            n_head=spec.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            add_cross_attention=True,
            is_decoder=True,
            bos_token_id=self.end,
            eos_token_id=self.end,
        )
        self.network = VisionEncoderDecoderModel(
            encoder=ViTModel(encoder, add_pooling_layer=False), decoder=GPT2LMHeadModel(decoder)
        )
        for settings in (self.network.config, self.network.generation_config):
            settings.decoder_start_token_id = settings.pad_token_id = settings.eos_token_id = self.end
        self.network.generation_config.bos_token_id = self.end

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The stem's patches (B, channels, side / patch, side / patch), or the pictures for a ViT's own."""
        if self.stem is None or self.name is None:
            return super().look(images)
        patches, anywhere = self.stem(images * 2 - 1)
        return patches, self.name(anywhere)

    def described(self) -> dict[str, Any]:
        """The spec."""
        return self.spec.model_dump(mode="json")

    def matrices(self) -> tuple[str, ...]:
        """Those of the transformers, and a stem's convolutions."""
        stem = ("stem.blocks.*.weight",) if self.stem is not None else ()
        return (*super().matrices(), *stem)


class Captioner:
    """A frozen captioner as the scraper uses it.

    Attributes:
        hash: names the weights, stored with every caption that they wrote.
        prompt: empty, for it is shown pictures only.
    """

    prompt = ""

    def __init__(self, model: CaptionerModel, digest: str, batch_size: int = 64, beams: int = 1) -> None:
        self.model, self.hash = model.eval().requires_grad_(False), digest
        self.batch_size, self.beams = batch_size, beams

    def caption(self, pictures: Sequence[Image]) -> list[str]:
        """One sentence per picture, of any size and mode."""
        device = next(self.model.parameters()).device
        side_px, texts = self.model.spec.side_px, []
        for first in range(0, len(pictures), self.batch_size):
            arrays = [
                torch.from_numpy(to_array(square(p, side_px)))
                for p in pictures[first : first + self.batch_size]
            ]
            texts += self.model.write(torch.stack(arrays).float().to(device) / 255, self.beams)
        return texts


def load_captioner_model(place: str | Path) -> tuple[CaptionerModel, str]:
    """A trainable captioner from a run folder, a file or "stock/captioner": model, hash."""
    path = locate_weights(place, KIND)
    model = CaptionerModel(card_spec(path, read_card(path, KIND), CaptionerSpec))
    load_weights(model, path)
    return model, short_hash(path)


def load_captioner(
    place: str | Path,
    device: str | torch.device = "cpu",
    asking: Asking | None = None,
    revision: str | None = None,
) -> Captioner | HubCaptioner:
    """A frozen captioner: Crest's own, or a published one.

    Args:
        place: a run folder, "stock/captioner", the local folder of a published captioner, or its hub name.
        asking: how a published one is asked; of it, Crest's own ones heed the beams.
        revision: commit, branch or tag of a hub name.
    Raises:
        WeightsError: nothing there, or a folder that transformers can't read.
        FetchError: a hub name that the hub does not know, or a hub that does not answer.
        ConfigError: a route that the captioner does not have.
    """
    from crest.models.hub_captioner import HubCaptioner, published

    found = published(place, revision)
    if found is not None:
        folder, digest = found
        return HubCaptioner(folder, digest, device, asking)
    if asking is not None and asking.route in ("prompt", "chat"):
        raise ConfigError(f'{place}: takes no words, but the route is "{asking.route}"; take "auto".')
    model, digest = load_captioner_model(place)
    return Captioner(model.to(device), digest, beams=asking.beams if asking else 1)
