"""Whether both sides of the decoder's benchmark have the same gradient; without, nothing is called exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from benchmarks.decoder import Setup, upstream_decoder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crest.models.decoder import Decoder
    from decoder_train.data import DecoderBatch

LIMIT: Final = 1e-5
"""Of the distance between both gradients, over their length."""


def proof(setup: Setup) -> float:
    """Distance between both sides' gradients of one batch in fp32, over the length of upstream's.

    Raises:
        AssertionError: it is more than LIMIT.
    """
    import torch

    from crest.world import keep_freed_memory

    keep_freed_memory()
    upstream = upstream_decoder(setup)
    stage, _ = setup.stage_and_world("fp32")
    ours: Any = stage.model()
    unet = upstream.unets[0]
    # the last convolution starts at zero, and would hide every gradient behind it
    torch.nn.init.normal_(unet.to_out.weight, std=0.02)
    ours.unet.load_state_dict(unet.state_dict())
    batch = setup.ready_batches(1)[0]
    t, noise = torch.arange(len(batch.images)) * 120 + 7, torch.randn_like(batch.images)
    theirs = _gradient(unet, _upstream_loss(upstream, batch, t, noise))
    difference = (_gradient(ours.unet, _our_loss(ours, batch, t, noise)) - theirs).norm() / theirs.norm()
    assert float(difference) <= LIMIT, f"gradients differ by {float(difference):.1e} of their length"
    return float(difference)


def _upstream_loss(decoder: Any, batch: DecoderBatch, t: Tensor, noise: Tensor) -> Tensor:
    import torch

    torch.set_float32_matmul_precision("highest")
    x_t = decoder.noise_schedulers[0].q_sample(batch.images * 2 - 1, t=t, noise=noise)
    error: Tensor = (decoder.unets[0](x_t, t, image_embed=batch.image_embed) - noise).square().mean()
    return error


def _our_loss(decoder: Decoder, batch: DecoderBatch, t: Tensor, noise: Tensor) -> Tensor:
    import torch

    from crest.diffusion.noise_schedule import add_noise

    torch.set_float32_matmul_precision("medium")
    x_t = add_noise(decoder.noise_schedule, batch.images * 2 - 1, noise, t)
    keep = torch.ones(len(t), dtype=torch.bool)
    error: Tensor = (decoder(x_t, t, batch.image_embed, None, keep, keep) - noise).square().mean()
    return error


def _gradient(network: nn.Module, loss: Tensor) -> Tensor:
    import torch

    weights = [weight for name, weight in network.named_parameters() if not name.startswith("null_")]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])
