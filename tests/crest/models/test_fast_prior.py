"""The faster prior equals the library's own, in values and in gradients, in training and in drawing."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from dalle2_pytorch.dalle2_pytorch import DiffusionPriorNetwork, FeedForward
from torch import Tensor, nn

from crest.models.fast_feed_forward import feed_forward
from crest.models.fast_prior import prior_forward, prior_prefix, prior_step
from crest.models.fast_prior_attention import mix
from tests.crest.models.same_as_library import assert_like, assert_same_gradients, stirred

B, D, L = 3, 12, 5
PRIORS: dict[str, dict[str, Any]] = {
    "one layer": {"depth": 1},
    "three layers": {"depth": 3},
    "norms": {"depth": 2, "norm_in": True, "normformer": True},
    "no rotation": {"depth": 2, "rotary_emb": False},
    "table of timesteps": {"depth": 2, "num_timesteps": 50},
    "wide heads": {"depth": 2, "dim_head": 40},
    "bare output": {"depth": 2, "norm_out": False, "final_proj": False},
    "text as long as it reads": {"depth": 2, "max_text_len": L},
    "text longer than it reads": {"depth": 2, "max_text_len": 3},
    "several embeds": {"depth": 2, "num_time_embeds": 2, "num_image_embeds": 3, "num_text_embeds": 2},
    "self-conditioning": {"depth": 2, "self_cond": True},
}


def network(**settings: Any) -> Any:
    torch.manual_seed(0)  # some networks stretch rounding a hundred times more than others
    sizes = {"dim": D, "max_text_len": 8, "heads": 2, "dim_head": 6}
    return stirred(DiffusionPriorNetwork(**{**sizes, **settings}))


def inputs_of(net: Any, words: bool = True, rows: int = B) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    inputs = {name: torch.randn(rows, D, generator=draw) for name in ("image_embed", "text_embed")}
    if net.self_cond:
        inputs["self_cond"] = torch.randn(rows, D, generator=draw)
    if words:
        inputs["text_encodings"] = torch.randn(rows, L, D, generator=draw)
        inputs["text_encodings"][-1, 1:] = 0
    return {key: value.requires_grad_() for key, value in inputs.items()}


def timesteps(rows: int = B) -> Tensor:
    return torch.arange(rows) * 7 % 50


def theirs_of(net: Any, inputs: Mapping[str, Tensor], dropped: bool = False, **more: float) -> Tensor:
    chances = {"text_cond_drop_prob": float(dropped), "image_cond_drop_prob": float(dropped), **more}
    given = {name: value for name, value in inputs.items() if name != "image_embed"}
    out: Tensor = net(inputs["image_embed"], timesteps(len(inputs["image_embed"])), **given, **chances)
    return out


def ours_of(
    net: Any, inputs: Mapping[str, Tensor], text_keep: Tensor, image_keep: Tensor, **more: Any
) -> Tensor:
    return prior_forward(
        net,
        inputs["image_embed"],
        timesteps(len(text_keep)),
        inputs["text_embed"],
        inputs.get("text_encodings"),
        text_keep,
        image_keep,
        self_cond=inputs.get("self_cond"),
        **more,
    )


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("words", [True, False], ids=["words", "no words"])
@pytest.mark.parametrize("dropped", [False, True], ids=["kept", "dropped"])
@pytest.mark.parametrize("name", PRIORS)
def test_prior_is_the_librarys(name: str, dropped: bool, words: bool, checkpointing: bool) -> None:
    net = network(**PRIORS[name])
    inputs = inputs_of(net, words)
    keep = torch.full((B,), not dropped)
    theirs = theirs_of(net, inputs, dropped)
    ours = ours_of(net, inputs, keep, keep, checkpointing=checkpointing)
    assert_like(ours, theirs, name)
    assert_same_gradients(net, ours, theirs, inputs)


@pytest.mark.parametrize("words", [True, False], ids=["words", "no words"])
def test_each_row_is_dropped_for_itself_and_rows_keep_their_order(words: bool) -> None:
    """Rows without their text share its learned stand-in, run once; none may land in another's place."""
    net, rows = network(depth=3), 7
    inputs = inputs_of(net, words, rows)
    text_keep = torch.tensor([True, False, True, False, False, True, False])
    image_keep = torch.tensor([True, True, False, True, False, True, True])
    theirs = torch.stack(
        [
            theirs_of(
                net, inputs, text_cond_drop_prob=1.0 - float(text), image_cond_drop_prob=1.0 - float(image)
            )[row]
            for row, (text, image) in enumerate(zip(text_keep.tolist(), image_keep.tolist(), strict=True))
        ]
    )
    ours = ours_of(net, inputs, text_keep, image_keep)
    assert_like(ours, theirs, "mixed")
    assert_same_gradients(net, ours, theirs, inputs)


def test_what_is_shared_is_run_once() -> None:
    """Counted at the query projection: tokens that went through the first layer."""
    net, rows = network(depth=2), 7
    seen: list[int] = []
    projection = net.causal_transformer.layers[0][0].to_q
    projection.register_forward_hook(lambda _, args, out: seen.append(args[0].flatten(0, -2).shape[0]))
    keep = torch.ones(rows, dtype=torch.bool)
    ours_of(net, inputs_of(net, False, rows), keep, keep)
    ours_of(net, inputs_of(net, True, rows), keep, keep)
    ours_of(net, inputs_of(net, True, rows), torch.arange(rows) < 3, keep)
    net.causal_transformer.layers[1][1][4].p = 0.1  # rows with dropout of their own share nothing
    ours_of(net, inputs_of(net, False, rows), keep, keep)
    ours_of(net, inputs_of(net, True, rows), torch.arange(rows) < 3, keep)
    whole = (8 + 4) * rows
    assert seen == [8 + 4 * rows, whole, (8 + 4) * 3 + (8 + 1) + 3 * 4, whole, whole]


def test_dropout_inside_the_network_is_drawn_for_each_row() -> None:
    net = network(depth=2, attn_dropout=0.5, ff_dropout=0.5)
    inputs = {name: value[:1].expand(6, -1).detach() for name, value in inputs_of(net, False).items()}
    keep, t = torch.ones(6, dtype=torch.bool), torch.full((6,), 5)

    def predicted() -> Tensor:
        return prior_forward(net, inputs["image_embed"], t, inputs["text_embed"], None, keep, keep)

    net.eval()
    assert_like(predicted(), predicted()[:1].expand(6, -1), "no dropout")
    net.train()
    assert predicted().std(dim=0).min() > 1e-4


def test_dropout_of_attention_keeps_its_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, rows, 4, generator=draw) for rows in (6, 5, 5))
    bias = torch.zeros(3, 2, 5)
    torch.manual_seed(0)
    many = mix(*(part.expand(4000, -1, -1) for part in (query, key, value)), bias, 0.4)
    assert float((many.mean(dim=0) - mix(query, key, value, bias)[0]).abs().max()) < 0.05
    assert float(many.std(dim=0).min()) > 0.1


def test_a_layer_inside_an_adapter_is_called_and_not_read() -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner, self.weight = inner, inner.weight

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    net, keep = network(depth=2), torch.ones(B, dtype=torch.bool)
    inputs = inputs_of(net)
    bare = ours_of(net, inputs, keep, keep)
    for attention, feed in net.causal_transformer.layers:
        attention.to_q, attention.to_kv = Doubled(attention.to_q), Doubled(attention.to_kv)
        feed[1], feed[5] = Doubled(feed[1]), Doubled(feed[5])
    ours = ours_of(net, inputs, keep, keep)
    assert_like(ours, theirs_of(net, inputs), "wrapped")
    assert float((ours - bare).detach().abs().max()) > 0.01


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm after the gate"])
def test_feed_forward_in_slabs_is_the_librarys(norm: bool, frozen: bool) -> None:
    module = stirred(FeedForward(D, mult=4, post_activation_norm=norm))
    for linear in (module[1], module[5]):
        linear.weight.requires_grad_(not frozen)
    x = torch.randn(11, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, theirs = feed_forward(module, x, slab_values=2 * 48 * 4), x + module(x)  # four tokens a slab
    assert_like(ours, theirs, "slabs")
    assert_same_gradients(module, ours, theirs, {"x": x})


def test_slabs_in_bfloat16_add_up() -> None:
    module = stirred(FeedForward(D, mult=4))
    x = torch.randn(11, D, generator=torch.Generator().manual_seed(0))
    gradients = []
    for slab in (2 * 48 * 4, 1 << 20):
        with torch.autocast("cpu", torch.bfloat16):
            out = feed_forward(module, x, slab_values=slab)
        gradients.append(torch.autograd.grad(out.square().sum(), list(module.parameters())))
    for name, found, wanted in zip(("norm", "first", "second"), *gradients, strict=True):
        assert float((found - wanted).norm()) < 0.01 * float(wanted.norm()), name


def test_checkpointing_keeps_less_for_the_way_back() -> None:
    net, keep = network(depth=4), torch.ones(B, dtype=torch.bool)
    inputs, kept = inputs_of(net), []
    for checkpointing in (False, True):
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        )
        with hooks:
            ours_of(net, inputs, keep, keep, checkpointing=checkpointing)
        kept.append(sum(sizes))
    assert kept[1] < 0.3 * kept[0]


def test_bfloat16_stays_near() -> None:
    net, keep = network(depth=2), torch.ones(B, dtype=torch.bool)
    for words in (True, False):
        inputs = inputs_of(net, words)
        exact = ours_of(net, inputs, keep, keep)
        with torch.autocast("cpu", torch.bfloat16):
            rough = ours_of(net, inputs, keep, keep)
        rough.float().square().sum().backward()  # type: ignore[no-untyped-call]
        assert all(weight.grad is None or weight.grad.dtype == weight.dtype for weight in net.parameters())
        apart = float((rough.float() - exact).detach().norm() / exact.detach().norm())
        assert 1e-6 < apart < 0.05


@pytest.mark.parametrize("arithmetic", ["1.15", "1.1"])
@pytest.mark.parametrize("words", [True, False], ids=["words", "no words"])
@pytest.mark.parametrize("name", PRIORS)
def test_a_step_after_its_text_is_the_whole_forward(name: str, words: bool, arithmetic: Any) -> None:
    net = network(**PRIORS[name]).eval()
    if arithmetic == "1.1":
        for attention, _ in net.causal_transformer.layers:
            attention.cosine_sim, attention.scale = False, attention.null_kv.shape[1] ** -0.5
    inputs = inputs_of(net, words)
    keep, blind = torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool)
    text = inputs["text_embed"], inputs.get("text_encodings")
    told = prior_prefix(net, *text, keep, arithmetic=arithmetic)
    nothing = prior_prefix(net, text[0][:1], None, blind[:1], arithmetic=arithmetic)
    noised = inputs["image_embed"], timesteps()
    extra = {"self_cond": inputs.get("self_cond")}
    for image_keep in (keep, blind):
        wanted = ours_of(net, inputs, keep, image_keep, arithmetic=arithmetic)
        without = ours_of(net, inputs, blind, image_keep, arithmetic=arithmetic)
        assert_like(prior_step(net, told, *noised, image_keep, **extra), wanted.detach(), "told")
        assert_like(prior_step(net, nothing, *noised, image_keep, **extra), without.detach(), "nothing")
        index = torch.tensor([2, 0, 0])
        both = told.rows(index).and_also(nothing.rows(torch.zeros_like(index)))
        twice = [
            None if value is None else torch.cat((value[index], value))
            for value in (inputs["image_embed"], timesteps(), image_keep, extra["self_cond"])
        ]
        found = prior_step(net, both, twice[0], twice[1], twice[2], self_cond=twice[3])  # type: ignore[arg-type]
        assert_like(found, torch.cat((wanted[index], without)).detach(), "both")


def test_release_1_1_multiplies_the_bias_and_takes_no_cosine() -> None:
    """Against softmax(q k / sqrt(d_head) + 128 bias) v, written out for one layer without rotation."""
    net = network(depth=1, rotary_emb=False).eval()
    attention, feed = net.causal_transformer.layers[0]
    attention.cosine_sim, attention.scale = False, 6**-0.5
    inputs, keep = inputs_of(net), torch.ones(B, dtype=torch.bool)
    seen: list[Tensor] = []
    handle = net.causal_transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    theirs_of(net, inputs)
    handle.remove()
    x = attention.norm(seen[0])
    n = x.shape[1]
    query = attention.to_q(x).view(B, n, 2, 6)
    key, value = (
        torch.cat((null.expand(B, 1, 6), part), dim=1)
        for null, part in zip(attention.null_kv, attention.to_kv(x).chunk(2, dim=-1), strict=True)
    )
    logits = torch.einsum("bihd,bjd->bhij", query, key) / 6**0.5
    logits = logits + 128 * net.causal_transformer.rel_pos_bias(n, n + 1, device=x.device)
    logits = logits.masked_fill(torch.ones(n, n + 1, dtype=torch.bool).triu(2), -math.inf)
    mixed = torch.einsum("bhij,bjd->bihd", logits.softmax(dim=-1), value).reshape(B, n, 12)
    out = attention.to_out(mixed) + seen[0]
    out = feed(out) + out
    wanted = net.causal_transformer.project_out(net.causal_transformer.norm(out))[:, -1]
    assert_like(ours_of(net, inputs, keep, keep, arithmetic="1.1"), wanted, "1.1")


@pytest.mark.gpu
@pytest.mark.parametrize("words", [True, False], ids=["words", "no words"])
def test_prior_is_the_librarys_on_a_gpu(words: bool) -> None:
    torch.set_float32_matmul_precision("highest")
    net = network(depth=2).cuda()
    inputs = {name: value.detach().cuda().requires_grad_() for name, value in inputs_of(net, words).items()}
    keep, t = torch.ones(B, dtype=torch.bool, device="cuda"), timesteps().cuda()
    theirs = net(inputs["image_embed"], t, **{k: v for k, v in inputs.items() if k != "image_embed"})
    told = inputs["text_embed"], inputs.get("text_encodings")
    ours = prior_forward(net, inputs["image_embed"], t, *told, keep, keep)
    assert_like(ours, theirs, "cuda")
    left, right = (
        torch.autograd.grad(out.square().sum(), inputs["image_embed"])[0] for out in (ours, theirs)
    )
    assert_like(left, right, "gradient")
