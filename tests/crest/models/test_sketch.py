"""The sketch: what it may see of its conditions, and where it puts what it laid out."""

import math

import torch

from crest.models.sketch import Sketch, _placed

B, D, K, L, SIDE = 2, 6, 5, 4, 16


def sketch_of() -> Sketch:
    torch.manual_seed(0)
    return Sketch(D, K, L, 3, SIDE, moves=False).eval()


def test_padding_behind_the_text_is_not_read() -> None:
    sketch, yes = sketch_of(), torch.ones(B, dtype=torch.bool)
    image_embed, text = torch.randn(B, D), torch.randn(B, L - 1, K)
    padded = torch.cat((text, torch.zeros(B, 1, K)), dim=1)
    with torch.no_grad():
        assert torch.allclose(
            sketch(image_embed, padded, yes, yes), sketch(image_embed, text, yes, yes), atol=1e-5
        )


def test_positive_numbers_stretch_and_shift_to_the_right_and_down() -> None:
    masks = torch.zeros(1, 1, SIDE, SIDE)
    masks[..., 6:10, 6:10] = 1.0

    def box(*place: float) -> tuple[int, int, int, int]:
        rows, columns = (_placed(masks, torch.tensor([place]))[0, 0] > 0.5).nonzero(as_tuple=True)
        return int(columns.min()), int(columns.max()) + 1, int(rows.min()), int(rows.max()) + 1

    assert box(0, 0, 0, 0) == (6, 10, 6, 10)
    assert box(0, 0, 0.5, 0.25) == (10, 14, 8, 12)  # half sides: 4 of 16 pixels right, 2 down
    assert box(math.log(2), 0, 0, 0) == (4, 12, 6, 10)
    assert box(math.log(2), 0, 0.25, 0) == (6, 14, 6, 10)
