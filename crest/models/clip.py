"""OpenCLIP: build, load, encode pictures and text. The clip*.py files of this folder alone know open_clip.

Tokenizer and preprocessing travel with the weights. Pictures come in as [0, 1] at any square size; embeddings
go out float32 and unit length; text_encodings are zero after the end-of-text token, as the prior and the
decoder expect. The library's own adapter in dalle2-pytorch is not used: it takes the text tower's width for
the latent width, which is wrong for RN50, and hard-codes token ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crest.checkpoint import WEIGHTS, card_spec, load_weights, locate_weights, read_card, short_hash
from crest.errors import WeightsError
from crest.models.clip_architecture import ClipSpec, build, model_config, settled
from crest.models.clip_files import HUB_PREFIX, fill, is_open_clip_folder, published
from crest.models.clip_tokenizers import (
    FOLDER,
    BytePairs,
    HubTokenizer,
    Tokenizer,
    build_tokenizer,
    shorten,
    vocabulary_size,
)
from crest.models.clip_towers import DONE, Cuts, image_tower, text_tower
from crest.records import file_hash

__all__ = ["ClipEncoder", "ClipModel", "ClipSpec", "TextFeatures", "load_clip", "vocabulary_size"]

KIND = "clip"
PIECES = 4
"""Groups of captions of like length that a batch is parted into."""
LEAST_PIECE = 16
"""Captions of a group at least."""


@dataclass(frozen=True)
class TextFeatures:
    """What a text becomes: text_embed (B, D) unit length; text_encodings (B, L, K), zero behind the text."""

    text_embed: Tensor
    text_encodings: Tensor


class ClipModel(nn.Module):
    """A trainable CLIP with its tokenizer and preprocessing.

    Args:
        spec: what to build.
        beside: a folder that may hold the tokenizer's files; None: they are looked for by name.
    Raises:
        WeightsError: the architecture is unknown to OpenCLIP, or can't hold the vocabulary.
        FetchError: files of a tokenizer or text tower that are not on this machine and can't be had.
    """

    file_prefix = "clip."
    """Names in an exported file are OpenCLIP's own, so that it loads them."""
    mean: Tensor
    std: Tensor

    def __init__(self, spec: ClipSpec, beside: Path | None = None) -> None:
        super().__init__()
        self.spec = spec = settled(spec)
        config = model_config(spec)
        self._image_embed_dim = int(config["embed_dim"])
        # before the towers, which take longer to build than a missing file to be told
        self.tokenizer: Tokenizer = build_tokenizer(config["text_cfg"], spec.bpe_merges, beside)
        self.clip = build(spec)
        if isinstance(self.tokenizer, BytePairs) and not config["text_cfg"].get("hf_model_name"):
            tower = self.clip.text if hasattr(self.clip, "text") else self.clip
            rows = int(tower.token_embedding.num_embeddings)
            if rows < self.tokenizer.vocab_size:
                raise WeightsError(
                    f"model.custom.text_cfg.vocab_size: found {rows}, expected at least "
                    f"{self.tokenizer.vocab_size}, which is what this byte-pair table needs; raise it."
                )
        self.register_buffer("mean", torch.tensor(spec.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.image_std).view(1, 3, 1, 1), persistent=False)
        self.keeps_statistics = False
        """Whether batch norms use the statistics that came with the weights, in training too: those of a part
        of the batch (a chunk, a process's share) would make its embeddings depend on how it was parted."""
        self.cuts = Cuts()
        """Where `forward` enters the towers."""

    @property
    def has_batch_norm(self) -> bool:
        """True for the ResNets."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.modules())

    def train(self, mode: bool = True) -> ClipModel:
        """Training mode, in which `keeps_statistics` spares the batch norms."""
        super().train(mode)
        if self.keeps_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    @property
    def side_px(self) -> int:
        """The picture size that the image tower reads."""
        size = self.clip.visual.image_size
        return int(size[0] if isinstance(size, (tuple, list)) else size)

    @property
    def image_embed_dim(self) -> int:
        """D, the true latent width (not the text tower's)."""
        return self._image_embed_dim

    @property
    def text_width(self) -> int:
        """K, the width of one text encoding."""
        if self._is_published_text:
            return int(self.clip.text.config.hidden_size)
        tower = self.clip.text if hasattr(self.clip, "text") else self.clip
        return int(tower.ln_final.normalized_shape[0])

    @property
    def context_length(self) -> int:
        """L at most, tokens."""
        return int(self.tokenizer.context_length)

    @property
    def _is_published_text(self) -> bool:
        return hasattr(self.clip, "text") and hasattr(self.clip.text, "pooler")

    def companions(self) -> dict[str, bytes]:
        """Relative name -> content of the files that exported weights need beside them."""
        if not isinstance(self.tokenizer, HubTokenizer):
            return {}
        return {f"{FOLDER}/{name}": content for name, content in self.tokenizer.files().items()}

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, L) on the model's device, cut to the longest text of the batch."""
        return self.crop(self.tokenizer(list(texts))).to(self.mean.device)

    def crop(self, tokens: Tensor) -> Tensor:
        """Drop columns that are padding in every row: exact, and up to twice as fast for short captions."""
        if hasattr(self.clip, "text"):  # a custom text tower may want its full length
            return tokens
        if self.clip.attn_mask is None or self.clip.text_pool_type not in ("argmax", "first"):
            return tokens  # padding takes part in the embedding (CLIPA)
        return tokens[:, : int(self.tokenizer.inside(tokens).sum(dim=1).max())]

    def fit_texts(self, texts: Sequence[str]) -> tuple[list[str], int]:
        """Texts that the context holds, longer ones cut behind a whole word; and how many were cut."""
        short = [shorten(self.tokenizer, text) for text in texts]
        return short, sum(before != after for before, after in zip(texts, short, strict=True))

    def embed_images(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1], H = W -> image_embed (B, D), unit length."""
        if images.shape[-1] != self.side_px:
            images = F.interpolate(
                images, size=(self.side_px, self.side_px), mode=self.spec.interpolation, antialias=True
            ).clamp(0, 1)
        features = self.clip.encode_image((images - self.mean) / self.std)
        return F.normalize(features.float(), dim=-1)

    def embed_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, L) -> text_embed (B, D) unit length, text_encodings (B, L, K) before masking."""
        if hasattr(self.clip, "text"):
            return self._embed_by_custom_tower(tokens)
        clip, length = self.clip, tokens.shape[1]
        hidden = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        mask = None if clip.attn_mask is None else clip.attn_mask[:length, :length]
        encodings = clip.ln_final(clip.transformer(hidden, attn_mask=mask))
        pooled = encodings[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=-1)]
        if clip.text_pool_type != "argmax":
            from open_clip.transformer import text_global_pool

            pooled = text_global_pool(encodings, tokens, clip.text_pool_type)
        projection = clip.text_projection
        features = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return F.normalize(features.float(), dim=-1), encodings.float()

    def _embed_by_custom_tower(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tower = self.clip.text
        kept: list[Any] = []
        has_class_token = getattr(tower, "cls_emb", None) is not None  # CoCa: behind the words, normed alone
        inner = tower.transformer if self._is_published_text or has_class_token else tower.ln_final
        with _hooked(inner, kept):
            features = self.clip.encode_text(tokens)
        encodings = kept[0].last_hidden_state if self._is_published_text else kept[0]
        return F.normalize(features.float(), dim=-1), encodings[:, : tokens.shape[1]].float()

    def forward(
        self, images: Tensor, tokens: Tensor, chunk: int, states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Both embeddings, the logit scale and the logit bias, with the memory of one chunk.

        Each chunk's activations are recomputed in the backward pass, so the gradient is exactly that of the
        whole batch at once while its negatives never shrink. Source: Gao et al. 2021 (arXiv 2101.06983),
        section 3, by recomputation.

        Args:
            images: (B, ...) what the image tower is entered with at `cuts.image`: pictures in [0, 1],
                activations or embeddings.
            tokens: (B, L).
            chunk: samples whose activations are held at once.
            states: (B, ...) activations that the text tower is entered with where `cuts.text` cuts it.
        """
        starts = range(0, len(images), chunk)
        is_recomputed = len(starts) > 1 and torch.is_grad_enabled()
        image_parts = [
            _held(is_recomputed, self.enter_image, images[first : first + chunk]) for first in starts
        ]
        order, pieces = self._by_length(tokens, chunk)
        text_parts = []
        for rows in pieces:
            cropped = self.crop(tokens[rows])
            entered = None if states is None else states[rows]
            if entered is not None and entered.ndim == 3:
                entered = entered[:, : cropped.shape[1]]
            text_parts.append(_held(is_recomputed, self.enter_text, cropped, entered))
        text = torch.cat(text_parts)
        if order is not None:
            text = text[order.argsort()]
        bias = getattr(self.clip, "logit_bias", None)
        return torch.cat(image_parts), text, self.clip.logit_scale.exp(), bias

    def _by_length(self, tokens: Tensor, chunk: int) -> tuple[Tensor | None, list[Tensor]]:
        """Rows of the pieces that captions go through the tower in: of like length, with little padding."""
        count = len(tokens)
        if hasattr(self.clip, "text"):  # it may want its full length
            return None, list(torch.split(torch.arange(count, device=tokens.device), chunk))
        order = self.tokenizer.inside(tokens).sum(dim=1).argsort(stable=True)
        return order, list(torch.split(order, min(chunk, max(LEAST_PIECE, -(-count // PIECES)))))

    def enter_image(self, entered: Tensor) -> Tensor:
        """Unit embeddings (B, D) of pictures, or of activations where `cuts.image` cuts the tower."""
        if self.cuts.image is None:
            return self.embed_images(entered)
        if self.cuts.image == DONE:
            return entered
        features = image_tower(self.clip).upper(entered, self.cuts.image)
        return F.normalize(features.float(), dim=-1)

    def enter_text(self, tokens: Tensor, entered: Tensor | None) -> Tensor:
        """Unit embeddings (B, D) of tokens, or of activations where `cuts.text` cuts the tower."""
        if self.cuts.text is None:
            return self.embed_tokens(tokens)[0]
        assert entered is not None
        features = text_tower(self.clip).upper(entered, self.cuts.text, tokens)
        return F.normalize(features.float(), dim=-1)


def _held(is_recomputed: bool, function: Callable[..., Tensor], *entered: Any) -> Tensor:
    """What a function gives, its activations held or computed again in the backward pass."""
    if not is_recomputed:
        return function(*entered)
    given: Tensor = checkpoint(function, *entered, use_reentrant=False)
    return given


@contextlib.contextmanager
def _hooked(module: nn.Module, kept: list[Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        yield
    finally:
        handle.remove()


class ClipEncoder:
    """A frozen CLIP as the later stages and the evaluation use it.

    Args:
        model: a built and filled CLIP.
        hash: names the weights; what a prior or decoder made with them carries as its parent.
        parents: hashes of the weights that these were trained from.
    """

    def __init__(self, model: ClipModel, hash: str, parents: dict[str, str]) -> None:  # noqa: A002
        self.model = model.eval().requires_grad_(False)
        self.hash, self.parents = hash, parents

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.mean.device

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1], square, any size -> image_embed (B, D) float32, unit length."""
        return self.model.embed_images(images.to(self.device))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str] | Tensor, length: int | None = None) -> TextFeatures:
        """Encode texts.

        Args:
            texts: B strings, longer ones than the context are cut behind a whole word, as in training; or
                tokens (B, L).
            length: pad or cut text_encodings to so many tokens; by default to the longest text.
        Returns:
            text_embed (B, D); text_encodings (B, L, K), zero after the end-of-text token.
        """
        if isinstance(texts, Tensor):
            tokens = texts.to(self.device)
        else:
            tokens = self.model.tokenize(self.model.fit_texts(texts)[0])
        text_embed, encodings = self.model.embed_tokens(tokens)
        inside = self.model.tokenizer.inside(tokens)
        encodings = encodings * inside[..., None]
        if length is not None:
            encodings = encodings[:, :length]
            encodings = F.pad(encodings, (0, 0, 0, length - encodings.shape[1]))
        return TextFeatures(text_embed, encodings)


def load_clip_model(place: str | Path) -> tuple[ClipModel, str, dict[str, str]]:
    """A trainable CLIP, its hash and its parents.

    Args:
        place: a run folder, a .safetensors file of one, "stock/<name>", a folder in OpenCLIP's form, or
            "hf-hub:owner/name".
    Raises:
        WeightsError, FetchError: nothing there, or weights of another architecture.
    """
    is_own = (Path(place) / WEIGHTS).exists()
    if str(place).startswith(HUB_PREFIX) or (is_open_clip_folder(place) and not is_own):
        spec, weights, beside = published(str(place), None)
        model = ClipModel(spec, beside)
        fill(model.clip, weights)
        return model, file_hash(weights)[:16], {}
    path = locate_weights(place, KIND)
    card = read_card(path, KIND)
    model = ClipModel(card_spec(path, card, ClipSpec), path.parent / FOLDER)
    load_weights(model, path)
    return model, short_hash(path), dict(card.get("parents", {}))


def load_clip(place: str | Path, device: str | torch.device = "cpu") -> ClipEncoder:
    """A frozen CLIP from any place that `load_clip_model` reads.

    Raises:
        WeightsError, FetchError: nothing there, or weights of another architecture.
    """
    model, digest, parents = load_clip_model(place)
    return ClipEncoder(model.to(device), digest, parents)


def load_pretrained(architecture: str, pretrained: str | None = None) -> ClipModel:
    """A trainable CLIP with published weights.

    Args:
        architecture: an OpenCLIP name, a JSON file in the form of its model_configs, a folder in OpenCLIP's
            form, or "hf-hub:owner/name".
        pretrained: a tag that OpenCLIP knows for the name, or a local file: safetensors, a pickled state dict
            or a training checkpoint; None: the folder's own weights.
    Raises:
        WeightsError, FetchError: no such architecture, or weights that can't be had.
    """
    spec, weights, beside = published(architecture, pretrained)
    model = ClipModel(spec, beside)
    fill(model.clip, weights)
    return model
