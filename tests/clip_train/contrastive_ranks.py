"""One contrastive step in several processes, each of which leaves its gradients."""

import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_train.losses import contrastive_logits, gather, sigmoid_loss, softmax_loss
from crest.models.clip import ClipModel, ClipSpec

SAMPLES = 16
TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 714, "width": 24, "heads": 2, "layers": 1},
}
LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def build(custom_text: bool = False) -> ClipModel:
    """A tiny CLIP with a logit bias, the same every time; its scale is that of a model that has learnt."""
    torch.manual_seed(3)
    custom = {**TOWERS, "init_logit_bias": -10.0, "custom_text": custom_text}
    model = ClipModel(ClipSpec(custom=custom, bpe_merges=200))
    with torch.no_grad():
        model.clip.logit_scale.fill_(np.log(20.0))
    return model


def batch(model: ClipModel) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, tokens of captions of different lengths, and positives: 0, 5 and 9 are alike, and 3 and 4."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(SAMPLES, 3, 16, 16, generator=generator)
    captions = [f"a crest {'and a star ' * (number % 4)}{number}" for number in range(SAMPLES)]
    right = torch.eye(SAMPLES, dtype=torch.bool)
    for alike in ((0, 5, 9), (3, 4)):
        for one in alike:
            right[one, list(alike)] = True
    return images, model.tokenizer(captions), right


def loss_of(model: nn.Module, name: str, rank: int, size: int, chunk: int) -> Tensor:
    """The loss of the whole batch as one of several processes sees it, through the model's forward."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(inner, ClipModel)
    images, tokens, right = batch(inner)
    own = slice(rank * SAMPLES // size, (rank + 1) * SAMPLES // size)
    image_embed, text_embed, scale, bias = model(images[own], tokens[own], chunk)
    logits = contrastive_logits(gather(image_embed), gather(text_embed), scale, bias)
    return LOSSES[name](logits, right)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter's gradient."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    found = {}
    for name, weight in inner.named_parameters():
        assert weight.grad is not None, name
        found[name] = weight.grad.clone()
    return found


def run_ranks(folder: Path, size: int) -> list[Path]:
    """A folder for each of so many processes, of the gradients that it ended with.

    Importing what they need takes far longer than their steps, so they are forked where that is safe: without
    a CUDA device autograd starts no threads, and the tests compute with one.
    """
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    processes = [context.Process(target=_rank, args=(folder, rank, size)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert ended == [0] * size
    return [folder / f"rank-{rank}-of-{size}" for rank in range(size)]


def _rank(folder: Path, rank: int, size: int) -> None:
    warnings.simplefilter("error")  # DistributedDataParallel warns of what costs it speed
    torch.set_num_threads(1)
    own = folder / f"rank-{rank}-of-{size}"
    own.mkdir()
    store = distributed.FileStore(str(folder / f"store-{size}"), size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    for name in LOSSES:
        for chunk in (SAMPLES, 2):
            model = nn.parallel.DistributedDataParallel(build())
            loss = loss_of(model, name, rank, size, chunk)
            loss.backward()
            save_file({**gradients(model), "loss": loss.detach()[None]}, own / f"{name}-{chunk}.safetensors")
    numbers = gather(torch.arange(rank * 2, rank * 2 + 2))
    assert numbers.tolist() == list(range(2 * size))
    distributed.destroy_process_group()
