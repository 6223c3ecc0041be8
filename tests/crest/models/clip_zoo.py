"""Tiny random CLIPs of every kind that OpenCLIP can build, and the tokenizers that belong to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast, RobertaConfig

from crest.models.clip import ClipEncoder, ClipModel, ClipSpec

WORDS = ("a", "red", "navy", "gold", "shield", "disc", "with", "star", "above", "it", "crown")
TEXTS = ["a red shield", "a navy disc with a gold star above it", "", "crown " * 30]
MARKS = {
    "siglip": (["<pad>", "</s>", "<unk>"], "$A </s>", "</s>", "</s>"),
    "siglip2": (["<pad>", "</s>", "<unk>"], "$A </s>", "<pad>", "</s>"),
    "roberta": (["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", "<pad>", "</s>"),
    "bert": (["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]", "[PAD]", "[SEP]"),
}
"""Special tokens in the order of their ids, how a text is marked, what pads and what ends it."""
LENGTH = 16
VISION = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
TEXT = {"context_length": LENGTH, "vocab_size": 714, "width": 24, "heads": 2, "layers": 2}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TIMM = {"timm_model_name": "test_vit3", "image_size": 160, "timm_pool": "map", "timm_proj": "none"}
SIGLIP = {
    "context_length": LENGTH,
    "vocab_size": 20,
    "width": 24,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "tokenizer_kwargs": {"clean": "canonicalize"},
}
KINDS = ("vit", "resnet", "custom", "quick", "siglip", "siglip2", "clipa", "roberta", "bert", "coca", "timm")


def tokenizer_folder(folder: Path, kind: str) -> Path:
    """A word-level tokenizer with the marks of a published kind, as the transformers library saves one."""
    special, template, pad, end = MARKS[kind]
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS))}
    unknown = next(word for word in special if "unk" in word.lower())
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(word, vocabulary[word]) for word in special if word in template]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=pad, eos_token=end, sep_token=end, unk_token=unknown
    ).save_pretrained(folder)
    return folder


def text_tower_folder(folder: Path, kind: str) -> Path:
    """The configuration of a tiny text tower of the transformers library, its tokenizer beside it."""
    sizes = {
        "vocab_size": 20,
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LENGTH + 4,
    }
    config_class = RobertaConfig if kind == "roberta" else BertConfig
    config = config_class(**sizes, pad_token_id=int(kind == "roberta"))
    tokenizer_folder(folder, kind)
    config.save_pretrained(folder)
    return folder


def config_of(kind: str, folder: Path) -> dict[str, Any]:
    """OpenCLIP's model config of a kind; what it refers to is written into the folder."""
    if kind in ("siglip", "siglip2"):
        text = {**SIGLIP, "hf_tokenizer_name": str(tokenizer_folder(folder, kind))}
        return {
            "embed_dim": 96,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": TIMM,
            "text_cfg": text,
        }
    if kind == "clipa":
        text = {
            **{name: SIGLIP[name] for name in ("context_length", "vocab_size", "width", "heads", "layers")},
            "no_causal_mask": True,
            "pool_type": "last",
            "hf_tokenizer_name": str(tokenizer_folder(folder, "bert")),
            "tokenizer_kwargs": {"strip_sep_token": True},
        }
        return {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": text}
    if kind in ("roberta", "bert"):
        tower = str(text_tower_folder(folder, kind))
        pooler = "mean_pooler" if kind == "roberta" else "cls_pooler"
        text = {
            "hf_model_name": tower,
            "hf_tokenizer_name": tower,
            "hf_proj_type": "linear",
            "hf_pooler_type": pooler,
            "context_length": LENGTH,
        }
        return {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": text}
    if kind == "coca":
        vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        inner = {**TEXT, "embed_cls": True, "output_tokens": True}
        return {
            "embed_dim": 16,
            "vision_cfg": vision,
            "text_cfg": inner,
            "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
            "custom_text": True,
        }
    if kind == "timm":
        vision = {"timm_model_name": "test_resnet", "image_size": 160, "timm_proj": "linear"}
        return {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
    config: dict[str, Any] = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
    if kind == "resnet":
        config["vision_cfg"] = RESNET
    return config | {"custom": {"custom_text": True}, "quick": {"quick_gelu": True}}.get(kind, {})


def tiny(kind: str, folder: Path, **further: Any) -> ClipModel:
    """A tiny CLIP of a kind, the same every time."""
    config = config_of(kind, folder)
    is_byte_pairs = "hf_tokenizer_name" not in config["text_cfg"]
    spec = ClipSpec(custom=config, bpe_merges=200 if is_byte_pairs else None, **further)
    torch.manual_seed(0)
    model = ClipModel(spec)
    with torch.no_grad():  # random towers tell texts and pictures apart by less than tests allow
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.add_(0.1 * torch.randn_like(module.running_mean))  # type: ignore[union-attr]
    return model.eval()


def plain_tokens(model: ClipModel, folder: Path, texts: list[str]) -> Tensor:
    """What the library behind the tokenizer makes of texts, without Crest."""
    text = model.spec.custom["text_cfg"]  # type: ignore[index]
    if "hf_tokenizer_name" not in text:
        return model.tokenizer(texts)
    words = AutoTokenizer.from_pretrained(folder)
    given = words(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    tokens: Tensor = given.input_ids
    if text.get("tokenizer_kwargs", {}).get("strip_sep_token"):
        tokens = torch.where(tokens == words.sep_token_id, 0, tokens)
    return tokens


def embeddings(model: ClipModel) -> tuple[Tensor, Tensor]:
    """Of two random pictures and of TEXTS, by Crest."""
    side = model.side_px
    pictures = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    encoder = ClipEncoder(model, "0" * 16, {})
    return encoder.encode_image(pictures), encoder.encode_text(TEXTS).text_embed


def same(one: ClipModel, other: ClipModel) -> bool:
    """Whether two models embed alike."""
    pairs = zip(embeddings(one), embeddings(other), strict=True)
    return all(torch.allclose(left, right, atol=1e-6) for left, right in pairs)


def card(model: ClipModel) -> dict[str, Any]:
    """The least that exported weights say of themselves."""
    return {"kind": "clip", "spec": model.spec.model_dump(mode="json")}
