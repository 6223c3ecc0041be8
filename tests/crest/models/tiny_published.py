"""Published captioners in small, of random weights, saved in folders as the hub would give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartTokenizer,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

WORDS = ["a", "the", "logo", "of", "shield", "star", "with", "and", "red", "navy", "gold", "word", "describe"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
LOOKING: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 4, "initializer_range": 0.5}
MESSAGE = (
    "{% for m in messages %}<start>{{ m.role }}:"
    "{% for c in m.content %}{% if c.type == 'image' %}PICTURE{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<end>{% endfor %}{% if add_generation_prompt %}<start>assistant:{% endif %}"
)


def words_of(specials: list[str]) -> Tokenizer:
    """A tokenizer of words and letters behind the special tokens."""
    vocabulary = dict.fromkeys([*specials, *(f" {word}" for word in WORDS), *LETTERS, *" .,:;\"'?"])
    tokens = {token: number for number, token in enumerate(vocabulary)}
    letters = Tokenizer(models.WordLevel(tokens, unk_token=specials[0]))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    letters.add_special_tokens(specials)
    return letters


def fast(specials: list[str], **roles: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=words_of(specials),
        unk_token=specials[0],
        additional_special_tokens=specials,
        **roles,
    )


def bert() -> BertTokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS, *LETTERS[1:]]
    return BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}, bos_token="[DEC]")


def vit_gpt2(folder: Path) -> None:
    """With settings for generation that contend with ours, as the published one has."""
    tokenizer = fast(["<end>"], eos_token="<end>", bos_token="<end>")  # and no pad token
    vit = ViTModel(ViTConfig(**LOOKING), add_pooling_layer=False)
    gpt2 = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2, initializer_range=0.5,
        add_cross_attention=True, is_decoder=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    network = VisionEncoderDecoderModel(encoder=vit, decoder=GPT2LMHeadModel(gpt2))
    settings = network.generation_config
    settings.decoder_start_token_id = settings.eos_token_id = 0
    settings.max_length, settings.num_beams, settings.early_stopping = 4, 4, True
    network.config.decoder_start_token_id = network.config.pad_token_id = 0
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def blip(folder: Path) -> None:
    tokenizer = bert()
    text = {
        **SIZES, "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "projection_dim": 16,
        "initializer_range": 0.5, "bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3,
    }  # fmt: skip
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=LOOKING)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)


def git(folder: Path) -> None:
    """Its processor crops the middle out, which would cut a wordmark's ends off."""
    tokenizer = bert()
    config = GitConfig(
        vision_config=LOOKING, **SIZES, vocab_size=len(tokenizer), initializer_range=0.5,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    GitForCausalLM(config).save_pretrained(folder)
    looking = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    GitProcessor(looking, tokenizer).save_pretrained(folder)


def qwen(folder: Path) -> None:
    """As many tokens a picture as it has pixels, so that questions differ in length; samples by default."""
    specials = ["<none>", "<start>", "<end>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    specials.append("<|video_pad|>")
    tokenizer = fast(specials, eos_token="<end>", pad_token="<none>")
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    looking = Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=16 * 16, max_pixels=32 * 32)
    Qwen2VLProcessor(
        image_processor=looking,
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=4, merge_size=2),
        chat_template=MESSAGE.replace("PICTURE", mark),
    ).save_pretrained(folder)
    text = {
        **SIZES, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "initializer_range": 0.5,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
        "initializer_range": 0.5,
    }  # fmt: skip
    network = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=text, vision_config=vision, image_token_id=5, video_token_id=6,
            vision_start_token_id=3, vision_end_token_id=4,
        )
    )  # fmt: skip
    network.generation_config.eos_token_id, network.generation_config.pad_token_id = [2, 0], 0
    network.generation_config.do_sample, network.generation_config.temperature = True, 2.0
    network.save_pretrained(folder)


def smol(folder: Path) -> None:
    """Cuts large pictures into tiles, so that their number differs from picture to picture."""
    specials = ["<none>", "<start>", "<end>", "<fake_token_around_image>", "<image>", "<global-img>"]
    specials += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = fast(specials, eos_token="<end>", pad_token="<none>", bos_token="<start>")
    looking = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    Idefics3Processor(
        image_processor=looking,
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=MESSAGE.replace("PICTURE", "<image>"),
    ).save_pretrained(folder)
    text = {
        **SIZES, "model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2,
        "initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = Idefics3Config(
        text_config=text, vision_config=LOOKING, scale_factor=2, image_token_id=4, pad_token_id=0
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)


def florence(folder: Path) -> None:
    """An encoder reads the question and a decoder answers, so nothing is repeated; knows set tasks only."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = BartTokenizer(
        vocab={token: number for number, token in enumerate([*specials, *letters])},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    square = {"height": 32, "width": 32}
    looking = CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False)
    looking.image_seq_length = 2
    Florence2Processor(image_processor=looking, tokenizer=tokenizer).save_pretrained(folder)
    four = {name: [size] * 4 for name, size in (("depths", 1), ("embed_dim", 16), ("num_heads", 2))}
    vision = {
        **four, "num_groups": [2] * 4, "window_size": 2, "patch_size": [7, 3, 3, 3], "projection_dim": 32,
        "max_temporal_embeddings": 4, "max_position_embeddings": 8, "initializer_range": 0.5,
    }  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128, "init_std": 0.5,
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    }  # fmt: skip
    config = Florence2Config(
        text_config=text, vision_config=vision, image_token_id=5, is_encoder_decoder=True, bos_token_id=0,
        eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    Florence2ForConditionalGeneration(config).save_pretrained(folder)


KINDS = {"vit_gpt2": vit_gpt2, "blip": blip, "git": git, "florence": florence, "qwen": qwen, "smol": smol}


def build(kind: str, folder: Path) -> Path:
    """A folder of one kind; the same weights every time."""
    torch.manual_seed(7)
    KINDS[kind](folder)
    return folder
