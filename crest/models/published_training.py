"""The training half of a published config: steps, optimizer and split, in our words."""

from __future__ import annotations

import math
from typing import Any

from crest.models.published_fields import NEWER, Fields


def training(
    whole: Fields, kind: str, index: int
) -> tuple[dict[str, Any], dict[str, Any], tuple[float, float, float] | None]:
    """run, optim and the split of a config, out of its sections train and data."""
    run: dict[str, Any] = {"dir": f"out/laion/runs/{kind}" + (f"_{index + 1}" if index else "")}
    optim: dict[str, Any] = {"lr": 1e-4 if kind == "decoder" else 1.1e-4, "batch_size": 64}
    splits, samples, share = None, None, 1.0
    counted = "run.steps, samples over optim.batch_size"
    if "seed" in whole.values:
        run["seed"] = whole.number("seed", "run.seed", 0)
    if "data" in whole.values:
        data = whole.section("data")
        optim["batch_size"] = int(data.number("batch_size", "optim.batch_size", 64))
        if "splits" in data.values:
            splits = _splits(data.section("splits"))
            share = splits[0]
        if kind == "prior":
            samples = data.number("num_data_points", counted, 250_000_000, as_is=False)
        _data_without_meaning(data)
        data.close(NEWER)
    if "train" in whole.values:
        train = whole.section("train")
        _optim(train, optim, kind, index)
        if "random_seed" in train.values:
            run["seed"] = train.number("random_seed", "run.seed", 0)
        if train.take("amp", "run.precision, fp16 where true", False, as_is=False):
            run["precision"] = "fp16"
        epochs = train.number("epochs", counted, 1 if kind == "prior" else 20, as_is=False)
        if kind == "decoder":
            samples, share = train.number("epoch_samples", counted, as_is=False), 1.0
            every = train.number("save_every_n_samples", "run.save_every, in steps", 100_000, as_is=False)
            run["save_every"] = max(1, int(every) // optim["batch_size"])
        if samples:
            run["steps"] = max(1, int(epochs * samples * share) // optim["batch_size"])
        _train_without_meaning(train)
        train.close(NEWER)
    run.setdefault("steps", 100_000)
    whole.without_meaning("run.dir has the log, the states and the weights, and runs go on there", "tracker")
    whole.without_meaning("python -m eval measures", "evaluate")
    whole.close(NEWER)
    return run, optim, splits


def _optim(train: Fields, optim: dict[str, Any], kind: str, index: int) -> None:
    for name, to in (("lr", "lr"), ("wd", "weight_decay"), ("max_grad_norm", "clip_grad_norm")):
        default = {
            "lr": optim["lr"],
            "wd": 6.02e-2 if kind == "prior" else 0.01,
            "max_grad_norm": 0.5,
        }
        optim[to] = nth(train.take(name, f"optim.{to}", default[name]), index)
    optim["warmup_steps"] = int(nth(train.take("warmup_steps", "optim.warmup_steps", 0), index))
    optim["schedule"] = "constant"
    averaged = train.take("use_ema", "optim.ema_decay, 0 where false", True, as_is=False)
    decay = train.number("ema_beta", "optim.ema_decay", 0.99)
    optim["ema_decay"] = decay if averaged else 0.0


def _data_without_meaning(data: Fields) -> None:
    data.without_meaning(
        "shards and embeddings are made here, by python -m scraper.pack and clip_train.embed",
        "webdataset_base_url",
        "img_embeddings_url",
        "text_embeddings_url",
        "image_url",
        "meta_url",
        "start_shard",
        "end_shard",
        "shard_width",
        "index_width",
    )
    data.without_meaning(
        "the loader keeps one order, which depends on the seed alone",
        "shuffle_train",
        "resample_train",
        "num_workers",
    )
    data.without_meaning("validation goes by steps: run.validate_every", "eval_every_seconds")
    data.without_meaning(
        "pictures are shown whole, padded square and resized with antialiasing", "preprocessing"
    )


def _train_without_meaning(train: Fields) -> None:
    train.without_meaning("the average starts with the first step", "ema_update_after_step")
    train.without_meaning(
        "states are saved by steps: run.save_every", "save_every_seconds", "save_immediately"
    )
    train.without_meaning("run.device is found by itself", "device")
    train.without_meaning("a preview shows eight pictures", "n_sample_images")
    train.without_meaning(
        "data.validate_samples rows are enough, because noise and rows are fixed", "validation_samples"
    )
    train.without_meaning("validation draws with steps of its own", "eval_timesteps")
    train.without_meaning("previews have a setting of their own: model.preview_cond_scale", "cond_scale")
    train.without_meaning("one run trains one U-Net", "unet_training_mask")
    train.without_meaning("unused weights are frozen", "find_unused_parameters")
    train.without_meaning(
        "progress is kept in run.dir", "best_validation_loss", "current_epoch", "num_samples_seen"
    )


def _splits(section: Fields) -> tuple[float, float, float]:
    shares = tuple(
        float(section.number(name, f"{to} of the scraper's config", default, as_is=False))
        for name, to, default in (
            ("train", "what is left by pack.val_share and pack.test_share", 0.75),
            ("val", "pack.val_share", 0.15),
            ("test", "pack.test_share", 0.1),
        )
    )
    section.close(NEWER)
    # in floats .7 + .2 + .1 is 0.9999999999999999, which upstream refuses
    if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise section.refused("train", f"shares {shares}", "shares that sum to 1")
    return shares[0], shares[1], shares[2]


def nth(value: Any, index: int, beyond: Any = None) -> Any:
    """One U-Net's value, where the library takes one for all or a list."""
    if not isinstance(value, list):
        return value
    return value[index] if index < len(value) else beyond
