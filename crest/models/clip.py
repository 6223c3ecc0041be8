"""OpenCLIP: build, load, encode pictures and text. The only file that knows open_clip.

Tokenizer and preprocessing travel with the weights. Pictures come in as [0, 1] at any square size; embeddings
go out float32 and unit length; text_encodings are zero after the end-of-text token, as the prior and the
decoder expect. The library's own adapter in dalle2-pytorch is not used: it takes the text tower's width for
the latent width, which is wrong for RN50, and hard-codes token ids.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crest.checkpoint import card_spec, load_weights, locate_weights, read_card, short_hash
from crest.config import Config
from crest.errors import WeightsError

KIND = "clip"


class ClipSpec(Config):
    """Everything needed to build a CLIP and to feed it."""

    architecture: str | None = None
    """Name of an OpenCLIP architecture, for instance "ViT-B-32"; or none, with `custom`."""
    custom: dict[str, Any] | None = None
    """OpenCLIP's model config (embed_dim, vision_cfg, text_cfg) for an architecture of one's own."""
    bpe_merges: int | None = None
    """Keep only the first so many merges of CLIP's byte-pair table (a small vocabulary for a small model)."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per-channel mean that pictures are centred by."""
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Per-channel deviation that pictures are divided by."""


@dataclass(frozen=True)
class TextFeatures:
    """What a text becomes: text_embed (B, D) unit length; text_encodings (B, L, K), zero behind the text."""

    text_embed: Tensor
    text_encodings: Tensor


class ClipModel(nn.Module):
    """A trainable CLIP with its tokenizer and preprocessing.

    Args:
        spec: what to build.
    Raises:
        WeightsError: the architecture is unknown to OpenCLIP, or can't hold the vocabulary.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.spec = spec
        self.clip = _build(spec)
        self.tokenizer = build_tokenizer(spec)
        if spec.custom is not None:
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
        projection = getattr(self.clip, "text_projection", None)
        if isinstance(projection, Tensor):
            return int(projection.shape[-1])
        return int(getattr(self.clip.visual, "output_dim", 0)) or int(self.clip.text.output_dim)

    @property
    def text_width(self) -> int:
        """K, the width of one text encoding."""
        return int(self._final_norm().normalized_shape[0])

    @property
    def context_length(self) -> int:
        """L at most, tokens."""
        return int(self.tokenizer.context_length)

    def _final_norm(self) -> nn.LayerNorm:
        tower = self.clip.text if hasattr(self.clip, "text") else self.clip
        norm: nn.LayerNorm = tower.ln_final
        return norm

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, L) on the model's device, cut to the longest text of the batch."""
        tokens: Tensor = self.tokenizer(list(texts))
        return self.crop(tokens).to(self.mean.device)

    def crop(self, tokens: Tensor) -> Tensor:
        """Drop columns that are padding in every row: exact, and up to twice as fast for short captions."""
        if hasattr(self.clip, "text"):  # a custom text tower may want its full length
            return tokens
        used = int((tokens != 0).any(dim=0).sum())
        return tokens[:, :used]

    def embed_images(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1], H = W -> image_embed (B, D), unit length."""
        if images.shape[-1] != self.side_px:
            images = F.interpolate(
                images, size=(self.side_px, self.side_px), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        features = self.clip.encode_image((images - self.mean) / self.std)
        return F.normalize(features.float(), dim=-1)

    def embed_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, L) -> text_embed (B, D) unit length, text_encodings (B, L, K) before masking."""
        if hasattr(self.clip, "text"):
            kept: list[Tensor] = []
            with _hooked(self._final_norm(), kept):
                features = self.clip.encode_text(tokens)
            return F.normalize(features.float(), dim=-1), kept[0].float()
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

    def forward(self, images: Tensor, tokens: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """Both embeddings and the logit scale, with the memory of one chunk.

        Each chunk's activations are recomputed in the backward pass, so the gradient is exactly that of the
        whole batch at once while its negatives never shrink. Source: Gao et al. 2021 (arXiv 2101.06983),
        section 3, by recomputation.
        """
        image_parts, text_parts = [], []
        for first in range(0, len(images), chunk):
            pair = images[first : first + chunk], tokens[first : first + chunk]
            if chunk < len(images) and torch.is_grad_enabled():
                image, text = checkpoint(self._pair, *pair, use_reentrant=False)
            else:
                image, text = self._pair(*pair)
            image_parts.append(image)
            text_parts.append(text)
        return torch.cat(image_parts), torch.cat(text_parts), self.clip.logit_scale.exp()

    def _pair(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed_images(images), self.embed_tokens(tokens)[0]


def _build(spec: ClipSpec) -> Any:
    if spec.custom is not None:
        config = dict(spec.custom)
        custom_text = config.pop("custom_text", False)
        kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
        try:
            return kind(**config)
        except (TypeError, KeyError, AssertionError) as error:
            raise WeightsError(
                f"model.custom: is no OpenCLIP architecture ({error}); see open_clip's model_configs."
            ) from None
    if spec.architecture is None or spec.architecture not in open_clip.list_models():
        near = [
            name for name in open_clip.list_models() if str(spec.architecture).lower()[:5] in name.lower()
        ][:3]
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise WeightsError(f'model.architecture: OpenCLIP has no "{spec.architecture}"{hint}.')
    return open_clip.create_model(spec.architecture, pretrained=None)


@functools.lru_cache(maxsize=8)
def _short_table(merges: int) -> str:
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe()) as stream:
        lines = stream.read().decode().split("\n")[: merges + 1]
    path = Path(tempfile.mkdtemp(prefix="crest-bpe-")) / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return str(path)


def build_tokenizer(spec: ClipSpec) -> Any:
    """The tokenizer that belongs to a spec; works offline for all but text towers of the hub."""
    if spec.custom is None and spec.architecture is not None:
        return open_clip.get_tokenizer(spec.architecture)
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    context_length = (spec.custom or {}).get("text_cfg", {}).get("context_length", 77)
    table = default_bpe() if spec.bpe_merges is None else _short_table(spec.bpe_merges)
    return SimpleTokenizer(bpe_path=table, context_length=context_length)


def vocabulary_size(bpe_merges: int) -> int:
    """Rows of a shortened byte-pair table's token table: bytes, bytes ending a word, merges, two marks."""
    return 512 + bpe_merges + 2


@contextlib.contextmanager
def _hooked(module: nn.Module, kept: list[Tensor]) -> Any:
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
    def encode_text(self, texts: Sequence[str], length: int | None = None) -> TextFeatures:
        """Encode texts.

        Args:
            texts: B strings; longer ones than the context are cut at its end.
            length: pad or cut text_encodings to so many tokens; by default to the longest text.
        Returns:
            text_embed (B, D); text_encodings (B, L, K), zero after the end-of-text token.
        """
        tokens = self.model.tokenize(texts)
        text_embed, encodings = self.model.embed_tokens(tokens)
        ends = (
            tokens.argmax(dim=-1) if not hasattr(self.model.clip, "text") else (tokens != 0).sum(dim=-1) - 1
        )
        inside = torch.arange(tokens.shape[1], device=tokens.device)[None] <= ends[:, None]
        encodings = encodings * inside[..., None]
        if length is not None:
            encodings = encodings[:, :length]
            encodings = F.pad(encodings, (0, 0, 0, length - encodings.shape[1]))
        return TextFeatures(text_embed, encodings)


def load_clip_model(place: str | Path) -> tuple[ClipModel, str, dict[str, str]]:
    """A trainable CLIP from a run folder, a .safetensors file or "stock/<name>": model, hash, parents."""
    path = locate_weights(place, KIND)
    card = read_card(path, KIND)
    model = ClipModel(card_spec(path, card, ClipSpec))
    load_weights(model, path)
    return model, short_hash(path), dict(card.get("parents", {}))


def load_clip(place: str | Path, device: str | torch.device = "cpu") -> ClipEncoder:
    """A frozen CLIP from a run folder, a .safetensors file or a name of the shipped stock ("stock/clip").

    Raises:
        WeightsError: nothing there, or weights of another architecture.
    """
    model, digest, parents = load_clip_model(place)
    return ClipEncoder(model.to(device), digest, parents)


def load_pretrained(architecture: str, pretrained: str) -> ClipModel:
    """An OpenCLIP architecture with published weights: a tag that it knows, or a local .pt/.safetensors file.

    Raises:
        WeightsError: unknown architecture, or the weights can't be had.
    """
    spec = ClipSpec(architecture=architecture)
    model = ClipModel(spec)
    try:
        clip = open_clip.create_model(architecture, pretrained=pretrained)
    except Exception as error:  # the library raises whatever its many sources do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{architecture}/{pretrained}: the weights can't be had ({reason}); name a local file."
        ) from error
    mean, std = clip.visual.image_mean, clip.visual.image_std
    model = ClipModel(spec.model_copy(update={"image_mean": tuple(mean), "image_std": tuple(std)}))
    model.clip.load_state_dict(clip.state_dict())
    return model
