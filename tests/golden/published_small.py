"""Configs as LAION published them, made small: every feature of theirs, a hundredth of the width."""

from __future__ import annotations

from typing import Any

CLIP = {"make": "openai", "model": "ViT-L/14"}

PRIOR: dict[str, Any] = {
    "prior": {
        "clip": CLIP,
        "net": {
            "dim": 32,
            "depth": 2,
            "num_timesteps": 1000,
            "max_text_len": 9,
            "num_time_embeds": 1,
            "num_image_embeds": 1,
            "num_text_embeds": 1,
            "dim_head": 16,
            "heads": 2,
            "ff_mult": 4,
            "norm_out": True,
            "attn_dropout": 0.05,
            "ff_dropout": 0.05,
            "final_proj": True,
            "normformer": True,
            "rotary_emb": True,
        },
        "image_embed_dim": 32,
        "image_size": 224,
        "image_channels": 3,
        "timesteps": 1000,
        "sample_timesteps": 20,
        "cond_drop_prob": 0.1,
        "loss_type": "l2",
        "predict_x_start": True,
        "beta_schedule": "cosine",
        "condition_on_text_encodings": True,
    },
    "data": {"batch_size": 225, "num_data_points": 500000000, "eval_every_seconds": 1600,
             "image_url": "s3://embeddings/img_emb/", "meta_url": "s3://embeddings/metadata/",
             "splits": {"train": 0.7, "val": 0.2, "test": 0.1}},
    "train": {"epochs": 5, "lr": 0.5e-5, "wd": 6.02e-2, "max_grad_norm": 0.5, "use_ema": True,
              "ema_beta": 0.9999, "ema_update_after_step": 50, "warmup_steps": 50, "amp": False,
              "save_every_seconds": 3600, "eval_timesteps": [64, 1000], "random_seed": 84513},
}  # fmt: skip

_BASE: dict[str, Any] = {
    "dim": 16,
    "cond_dim": 24,
    "image_embed_dim": 32,
    "text_embed_dim": 20,
    "cond_on_text_encodings": True,
    "channels": 3,
    "dim_mults": [1, 2, 3, 4],
    "num_resnet_blocks": 2,
    "attn_heads": 2,
    "attn_dim_head": 16,
    "sparse_attn": True,
    "memory_efficient": True,
    "self_attn": [False, True, True, True],
}


def _decoder(*unets: dict[str, Any], sizes: list[int], learned_variance: bool) -> dict[str, Any]:
    return {
        "seed": 1,
        "decoder": {
            "unets": list(unets),
            "clip": CLIP,
            "image_sizes": sizes,
            "channels": 3,
            "timesteps": 1000,
            "sample_timesteps": 20,
            "loss_type": "l2",
            "beta_schedule": ["cosine"] * len(unets),
            "learned_variance": learned_variance,
        },
        "data": {
            "webdataset_base_url": "pipe:aws s3 cp --quiet s3://data/{}.tar -",
            "num_workers": 12,
            "batch_size": 26,
            "start_shard": 0,
            "end_shard": 231349,
            "shard_width": 6,
            "index_width": 4,
            "splits": {"train": 0.7, "val": 0.2, "test": 0.1},
            "shuffle_train": False,
            "resample_train": True,
            "preprocessing": {
                "RandomResizedCrop": {"size": [224, 224], "scale": [0.75, 1.0], "ratio": [1.0, 1.0]},
                "ToTensor": True,
            },
        },
        "train": {
            "epochs": 1000,
            "lr": 1e-4,
            "wd": 0.01,
            "max_grad_norm": 0.5,
            "save_every_n_samples": 5000000,
            "n_sample_images": 10,
            "device": "cuda:0",
            "epoch_samples": 10000000,
            "validation_samples": 100000,
            "use_ema": True,
            "ema_beta": 0.99,
        },
    }


def _without_text(**changes: Any) -> dict[str, Any]:
    return {**_BASE, "cond_on_text_encodings": False, **changes}


_UPSAMPLER: dict[str, Any] = {
    **_without_text(cond_dim=16, text_embed_dim=None, attn_heads=None, attn_dim_head=None),
    "num_resnet_blocks": 1,
    "dim_mults": [1, 2],
    "sparse_attn": False,
    "memory_efficient": False,
    "self_attn": [False, False],
}

DECODERS: dict[str, tuple[dict[str, Any], int]] = {
    # as decoder v1.0.2, 2B, 3B and the candidate for the 64 to 256 upsampler: config and number of the U-Net
    "decoder_v1_0_2": (_decoder(_BASE, sizes=[16], learned_variance=True), 1),
    "decoder_2b": (_decoder(_without_text(), sizes=[16], learned_variance=False), 1),
    "decoder_3b": (
        _decoder(
            {key: value for key, value in _without_text(sparse_attn=False).items() if key != "cond_dim"},
            sizes=[16],
            learned_variance=False,
        ),
        1,
    ),
    "upsampler": (_decoder(_without_text(), _UPSAMPLER, sizes=[16, 32], learned_variance=False), 2),
}
