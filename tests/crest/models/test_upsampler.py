"""An upsampler: shown the picture of the U-Net before, told of its noise, and free of attention."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crest.diffusion.lowres import NOISE_LEVELS
from crest.diffusion.noise_schedule import add_noise
from crest.models.decoder import Decoder, DecoderSpec, sample_images

B, D, SIDE, SMALL = 2, 12, 32, 8
SPEC: dict[str, Any] = {
    "unet_number": 2, "side_px": SIDE, "lowres_side_px": SMALL, "image_embed_dim": D, "text_width": None,
    "image_cond": False, "dim": 8, "dim_mults": [1, 2], "cond_dim": 20, "self_attn": [False, False],
    "attend_at_middle": False, "timesteps": 50, "attn_heads": 2, "attn_dim_head": 8,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "told of noise": {"lowres_noise_cond": True},
    "in patches, self-conditioned": {"patch_px": 2, "self_cond": True, "learned_variance": True},
    "of release 1.1": {"arithmetic": "1.1", "memory_efficient": False, "attend_at_middle": True},
}
KEEP = torch.ones(B, dtype=torch.bool)


def upsampler_of(**settings: Any) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(DecoderSpec.model_validate({**SPEC, **settings})).eval()
    torch.nn.init.normal_(decoder.unet.to_out.weight, std=0.2)
    return decoder


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


EMBED, X, T, LOWRES = (
    drawn(0, B, D),
    drawn(1, B, 3, SIDE, SIDE),
    torch.tensor([3, 40]),
    drawn(2, B, 3, SMALL, SMALL),
)


def predicted(decoder: Decoder, lowres: Tensor = LOWRES, level: int = 200, **more: Any) -> Tensor:
    told = torch.full((B,), level) if decoder.spec.lowres_noise_cond else None
    output: Tensor = decoder(X, T, EMBED, None, KEEP, KEEP, lowres=lowres, lowres_noise_level=told, **more)
    return output


@pytest.mark.parametrize("shape", SHAPES)
def test_it_sees_the_small_picture_and_every_weight_learns(shape: str) -> None:
    decoder = upsampler_of(**SHAPES[shape])
    output = predicted(decoder)
    assert output.shape == (B, 6 if decoder.spec.learned_variance else 3, SIDE, SIDE)
    assert not torch.allclose(output, predicted(decoder, -LOWRES), atol=1e-3)
    output.square().mean().backward()
    weights = dict(decoder.named_parameters())
    assert [name for name, weight in weights.items() if weight.requires_grad and weight.grad is None] == []


def test_it_is_told_how_noisy_its_small_picture_is() -> None:
    decoder = upsampler_of(lowres_noise_cond=True)
    assert not torch.allclose(predicted(decoder, level=0), predicted(decoder, level=900), atol=1e-4)


def test_without_attention_there_is_none() -> None:
    decoder = upsampler_of()
    assert decoder.unet.mid_attn is None
    assert not [name for name, _ in decoder.named_modules() if name.endswith("fn.fn")]
    assert upsampler_of(attend_at_middle=True).unet.mid_attn is not None


def test_without_the_image_embedding_it_is_not_seen() -> None:
    decoder = upsampler_of()
    other = decoder(X, T, -EMBED, None, KEEP, KEEP, lowres=LOWRES)
    assert torch.equal(other, predicted(decoder))
    seen = upsampler_of(image_cond=True)
    assert not torch.allclose(seen(X, T, -EMBED, None, KEEP, KEEP, lowres=LOWRES), predicted(seen), atol=1e-4)


def test_it_is_the_librarys_unet_beside_an_enlarged_picture() -> None:
    decoder = upsampler_of(lowres_noise_cond=True, self_cond=True)
    large = F.interpolate(LOWRES, (SIDE, SIDE), mode="bilinear", align_corners=False)
    guess = drawn(3, B, 3, SIDE, SIDE)
    expected = decoder.unet(
        X,
        T,
        image_embed=EMBED,
        lowres_cond_img=large,
        lowres_noise_level=torch.full((B,), 200),
        self_cond=guess,
    )
    assert torch.allclose(predicted(decoder, self_cond=guess), expected, atol=1e-5)


def test_a_crop_is_enlarged_as_the_whole_picture_is() -> None:
    """Up to the border pixel, behind which the whole picture goes on."""
    decoder = upsampler_of()
    whole = decoder.conditions(EMBED, None, KEEP, KEEP, LOWRES).lowres
    crop = decoder.conditions(EMBED, None, KEEP, KEEP, LOWRES[:, :, 2:6, 4:8]).lowres
    assert whole is not None
    assert crop is not None
    assert crop.shape == (B, 3, 16, 16)
    assert torch.allclose(crop[:, :, 2:-2, 2:-2], whole[:, :, 10:22, 18:30], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cond_scale", [1.0, 2.0])
def test_pictures_follow_from_their_own_seed_and_small_picture(shape: str, cond_scale: float) -> None:
    decoder = upsampler_of(**SHAPES[shape])
    small = torch.rand(B, 3, SMALL, SMALL, generator=torch.Generator().manual_seed(4))
    kept = small.clone()

    def pictures(rows: slice, seeds: list[int], lowres: Tensor = small) -> Tensor:
        return sample_images(
            decoder, EMBED[rows], None, seeds=seeds, steps=3, cond_scale=cond_scale, lowres=lowres[rows]
        )

    both = pictures(slice(None), [1, 2])
    assert torch.equal(small, kept)
    assert torch.allclose(pictures(slice(1, 2), [2]), both[1:], atol=2e-3)
    assert not torch.allclose(pictures(slice(None), [1, 3])[1], both[1], atol=1e-3)
    assert not torch.allclose(pictures(slice(None), [1, 2], 1 - small), both, atol=1e-2)


def test_at_sampling_the_small_picture_has_the_noise_that_is_told() -> None:
    """And none where the upsampler is told of none."""
    seen: list[tuple[Tensor, Tensor | None]] = []

    class Watching(Decoder):
        def conditions(self, *told: Any) -> Any:
            seen.append((told[4], told[5]))
            return super().conditions(*told)

    small = torch.rand(1, 3, SMALL, SMALL, generator=torch.Generator().manual_seed(4))
    for told in (True, False):
        watching = Watching(DecoderSpec.model_validate({**SPEC, "lowres_noise_cond": told}))
        sample_images(
            watching,
            EMBED[:1],
            None,
            seeds=[1],
            steps=1,
            cond_scale=1.0,
            lowres=small,
            lowres_noise_level=300,
        )
    (noised, level), (clean, none) = seen
    assert (none, level) == (None, torch.tensor([300]))
    assert torch.equal(clean, small * 2 - 1)
    t = torch.tensor([300])
    grain = (noised - add_noise(NOISE_LEVELS, clean, torch.zeros_like(clean), t)) / NOISE_LEVELS.sigma(t, 4)
    assert float(grain.std()) == pytest.approx(1.0, abs=0.15)
    assert float(grain.mean()) == pytest.approx(0.0, abs=0.2)
