"""CLIP's answers: what learns, from what, by which measure, how it is judged and shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_train.config import ClipTrainConfig
from clip_train.data import ClipBatch, ClipData
from clip_train.losses import MAX_LOGIT_SCALE, contrastive_logits, gather, sigmoid_loss, softmax_loss
from clip_train.modes import choose_mode, prepare, resolved
from clip_train.probe import Probe, ProbeEmbeddings, drift
from clip_train.retrieval import Ranks, rank_metrics, retrieval_ranks
from crest.config import read_spec
from crest.errors import ConfigError
from crest.models.clip import KIND, ClipModel, ClipSpec, load_clip_model, load_pretrained
from crest.pixels import Pictures
from crest.records import Split, hash_of
from crest.world import World, open_world

VALIDATED = 128
"""Held-out pairs that are embedded at once."""
PREVIEW_ROWS = 8
"""Captions whose finds are shown: the first of the validation split."""
PREPROCESSING = "flatten alpha on white, pad square on its own flat ground, resize antialiased, centre, scale"


class ClipStage:
    """Contrastive fine-tuning of a CLIP on captioned logos, in one of the modes of clip_train/modes.py.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 2.3, with everything alike a positive.

    Args:
        config: of the run.
        world: computes the activations that a mode keeps; None: the one that the config asks for.
        pictures: train and val pictures, where they are not the shards' own splits (folds).
        activations: folder for those that a mode keeps; None: the one beside the shards.
    """

    def __init__(
        self,
        config: ClipTrainConfig,
        world: World | None = None,
        pictures: tuple[Pictures, Pictures] | None = None,
        activations: Path | None = None,
    ) -> None:
        world = world or open_world(config.run.device, config.run.precision)
        self.config = config
        self.best_by: str = config.judge.best_by
        self.patience = config.judge.patience
        self._model, self._parents = starting_model(config)
        self.data = ClipData(config.data, self._model, pictures)
        self._right = self.data.held_out_answers()
        self._known: ProbeEmbeddings | None = None
        self.mode, self.why = choose_mode(config.model, len(self.data.train))
        self.optim = resolved(config.optim, self.mode, len(self.data.train))
        # a softmax loss far over that of guessing (the logarithm of the batch) does not come back
        is_softmax = config.model.loss == "softmax"
        self.loss_limit = 5 * math.log(self.optim.batch_size) + 5 if is_softmax else math.inf
        self.is_bias_lent = config.model.loss == "siglip" and _give_bias(self._model)
        torch.manual_seed(config.run.seed)  # what adapters begin with
        self._model.cuts = prepare(self._model, config.model, self.mode)
        self.data.keep_activations(config.run.seed, world, activations)

    def told(self) -> str:
        """What is trained and why, in one line."""
        learning = sum(weight.numel() for weight in self._model.parameters() if weight.requires_grad)
        whole = sum(weight.numel() for weight in self._model.parameters())
        cut = self.data.cut_captions
        return (
            f"mode {self.mode} ({self.why}), {learning:,} of {whole:,} weights learn, "
            f"{len(self.data.train):,} pairs in batches of {self.optim.batch_size:,}, "
            f"peak rate {self.optim.lr:g}"
            + (f"; {cut:,} captions were longer than the context and cut at a word" if cut else "")
        )

    def model(self) -> ClipModel:
        """The CLIP, filled with its starting weights."""
        return self._model

    def start(self) -> ClipModel:
        """Another one as it was before training, cut at the same places."""
        clip, _ = starting_model(self.config)
        if self.is_bias_lent:
            _give_bias(clip)
        clip.keeps_statistics, clip.cuts = self._model.keeps_statistics, self._model.cuts
        return clip

    def batches(self, split: Split, world: World, start: int) -> Iterator[ClipBatch]:
        """One contrastive batch a step, shared out over the processes."""
        optim = self.optim
        _, micro = world.share(optim.batch_size, optim.device_batch_size)
        if self._model.has_batch_norm and not self._model.keeps_statistics and micro < optim.batch_size:
            raise ConfigError(
                f"model.scratch: has batch norm, with statistics of {micro} of a batch's {optim.batch_size} "
                "pictures here, expected the whole batch in one process and at once; leave out torchrun and "
                "optim.device_batch_size, or take an architecture without batch norm (a ViT)."
            )
        return self.data.batches(self.config.run.seed, optim.batch_size, micro, world, start)

    def loss(self, model: nn.Module, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss over the whole batch of all processes."""
        image_embed, text_embed, scale, bias = model(batch.images, batch.tokens, batch.chunk, batch.states)
        image_embed, text_embed, numbers = gather(image_embed), gather(text_embed), gather(batch.numbers)
        right = self.data.positives.matrix(numbers.cpu(), numbers.cpu()).to(image_embed.device)
        is_softmax = self.config.model.loss == "softmax"
        logits = contrastive_logits(
            image_embed,
            text_embed,
            scale,
            None if is_softmax else bias,
            cap=MAX_LOGIT_SCALE if is_softmax else None,
        )
        loss = softmax_loss(logits, right) if is_softmax else sigmoid_loss(logits, right)
        found = right.gather(1, logits.argmax(dim=1, keepdim=True)).float().mean()
        return loss, {"batch_r_at_1": found, "logit_scale": scale.detach()}

    def resting(self, step: int) -> tuple[nn.Parameter, ...]:
        """Nothing: all weights that learn do so at every step."""
        return ()

    @torch.no_grad()
    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Retrieval on the held-out split, both ways, and how far general answers have drifted."""
        assert isinstance(model, ClipModel)
        found, loss = self.judged(model)
        figures = {"loss": loss, "samples": float(len(found)), **rank_metrics(found)}
        if self.mode == "scratch":
            return figures
        return {**figures, **self.drifted(model)}

    @torch.no_grad()
    def judged(self, model: ClipModel) -> tuple[Ranks, float]:
        """Where the right answers of the held-out pairs stand, and the loss over them."""
        image_embed, text_embed = self._embed_val(model)
        logits = contrastive_logits(image_embed, text_embed, model.clip.logit_scale.exp())
        loss = softmax_loss(logits, self._right.to(logits.device))
        return retrieval_ranks(image_embed, text_embed, self._right), float(loss)

    @property
    def groups(self) -> list[str]:
        """Of the held-out pairs that are compared: what is drawn together for an interval."""
        return self.data.val.groups[: len(self._right)]

    def drifted(self, model: ClipModel) -> dict[str, float]:
        """How far a model's general answers are from those of the start, as clip_train/probe.py measures."""
        if self._known is None:
            self._probe = Probe(model.side_px)
            self._known = self._probe.embed(self.start().to(model.mean.device))
        return drift(self._known, self._probe.embed(model))

    def _embed_val(self, model: ClipModel) -> tuple[Tensor, Tensor]:
        device = model.mean.device
        images, texts = [], []
        for first in range(0, len(self._right), VALIDATED):
            last = min(first + VALIDATED, len(self._right))
            pictures, tokens, states = self.data.held_out(first, last, device)
            images.append(model.enter_image(pictures))
            texts.append(model.enter_text(tokens, states))
        return torch.cat(images), torch.cat(texts)

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """A row per caption: its own logo first, then the five that the model finds nearest."""
        assert isinstance(model, ClipModel)
        image_embed, text_embed = self._embed_val(model)
        rows = min(PREVIEW_ROWS, len(image_embed))
        nearest = (text_embed[:rows] @ image_embed.T).topk(min(5, len(image_embed)), dim=1).indices.cpu()
        order = [number for row in range(rows) for number in (row, *nearest[row].tolist())]
        pixels = torch.from_numpy(self.data.val.pixels[order].astype("float32") / 255)
        across, side = len(order) // rows, pixels.shape[-1]
        # as one picture: TensorBoard puts 8 in a row
        tiles = pixels.view(rows, across, 3, side, side).permute(2, 0, 3, 1, 4)
        return {"retrieval": tiles.reshape(1, 3, rows * side, across * side)}

    def card(self, model: nn.Module) -> dict[str, Any]:
        """What the weights are."""
        assert isinstance(model, ClipModel)
        return {
            "kind": KIND,
            "spec": model.spec.model_dump(mode="json"),
            "preprocessing": PREPROCESSING,
            "mode": self.mode,
            "parents": {**self._parents, "shards": self.data.train.shards_hash},
        }


def starting_model(config: ClipTrainConfig) -> tuple[ClipModel, dict[str, str]]:
    """The CLIP that a config starts from, and the hashes of what it was made from.

    Raises:
        ConfigError: not exactly one start.
        WeightsError: it can't be had.
    """
    model = config.model
    given = [name for name in ("start", "pretrained", "scratch") if getattr(model, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ConfigError(
            f"model: found {found}, expected exactly one of start, pretrained and scratch; keep one."
        )
    if model.start is not None:
        clip, digest, parents = load_clip_model(model.start)
        # every ancestor is named, so that a reference CLIP can be told from all of them
        ancestors = {
            f"ancestor {value}": value for name, value in parents.items() if name.startswith(("start", "anc"))
        }
        return clip, {"start": digest, **ancestors}
    if model.pretrained is not None:
        if model.architecture is None:
            raise ConfigError(
                "model.architecture is missing; pretrained weights need the architecture's name."
            )
        return load_pretrained(model.architecture, model.pretrained), {
            "start": hash_of(model.architecture, model.pretrained)
        }
    torch.manual_seed(config.run.seed)
    return ClipModel(read_spec(ClipSpec, model.scratch or {}, "model.scratch")), {}


def _give_bias(clip: ClipModel) -> bool:
    """Give a model the bias that makes few pairs positive, which SigLIP's loss needs, if it has none.

    Source: Zhai et al. 2023 (arXiv 2303.15343), section 3.2: begin at -10.
    """
    if getattr(clip.clip, "logit_bias", None) is not None:
        return False
    clip.clip.logit_bias = nn.Parameter(torch.tensor(-10.0))
    return True


def take_bias(clip: ClipModel) -> None:
    """Take back what `_give_bias` gave: embeddings do not need it, and the architecture does not know it."""
    del clip.clip.logit_bias
    clip.clip.logit_bias = None
