"""Train a recipe fold by fold and judge every fold on logos that neither taught nor chose its weights.

`<run.dir>/folds/fold-<n>/` is a whole run with `held_out.json` beside it; `<run.dir>/folds/folds.json` and
`index.html` sum up. What a fold learns from is copied to its folder while it trains, a logo at a time, so
that it is read from disk like any split. The copies, and what locked layers made of them, are removed once
the fold is judged; a fold that was stopped finds them again.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_train.config import ClipDataConfig, ClipTrainConfig
from clip_train.data import ACTIVATIONS, ClipData
from clip_train.finish import REPORT, RefusedError
from clip_train.folds import FoldsConfig, parts_of
from clip_train.folds_page import write_folds_page
from clip_train.modes import WHOLE_SET
from clip_train.positives import positives
from clip_train.retrieval import Ranks, gain, rank_metrics, retrieval_ranks
from clip_train.stage import VALIDATED, starting_model
from clip_train.train import train
from crest.errors import RunError
from crest.loop import WATCHED
from crest.models.clip import ClipModel, load_clip_model
from crest.pixels import Pictures, open_pictures
from crest.records import SPLITS, Split, hash_of, read_json, write_json
from crest.world import World

HELD_OUT: Final = "held_out.json"
FOLDS: Final = "folds.json"
PICTURES: Final = "pictures"
"""The folder of a fold's copies."""
LEARNED: Final[tuple[Split, ...]] = tuple(split for split in SPLITS if split != "test")


@dataclass(frozen=True)
class Fold:
    """The pictures of one fold."""

    train: Pictures
    """at the size that training wants, which crops may be cut out of; `damaged` is of all three"""
    val: Pictures
    """choose the best step; at the model's size, as are those below"""
    held_out: Pictures
    """judge"""


def open_fold(
    data: ClipDataConfig, k: int, seed: int, fold: int, *, side_px: int, train_px: int, folder: Path
) -> Fold:
    """The pictures of one fold, out of the train and val splits of the shards.

    Args:
        data: which shards.
        k, seed, fold: as those of `parts_of`.
        side_px: of pictures to choose and judge by.
        train_px: of pictures to learn from.
        folder: for the copies, which are made once.
    Raises:
        DataError: shards unfinished or damaged, or too few logos.
    """
    sizes = {
        px: [open_pictures(data.shards, split, px, data.max_damaged_share) for split in LEARNED]
        for px in {side_px, train_px}
    }
    parts = parts_of([name for pictures in sizes[side_px] for name in pictures.groups], k, seed, fold)
    chosen = {
        name: select(sizes[px], numbers, folder / f"{name}-{px}.u8")
        for name, px, numbers in (
            ("train", train_px, parts.train),
            ("val", side_px, parts.val),
            ("held_out", side_px, parts.held_out),
        )
    }
    damaged = sum((Counter(source.damaged) for source in sizes[side_px]), Counter[str]())
    return Fold(**{**chosen, "train": replace(chosen["train"], damaged=damaged)})


def select(sources: Sequence[Pictures], numbers: NDArray[np.int64], path: Path) -> Pictures:
    """Some pictures out of several sets, counted through, as a set of their own.

    Args:
        sources: of one size and one folder of shards.
        numbers: which, in which order.
        path: the pixels are copied to it, one picture at a time, and memory-mapped.
    """
    offsets = np.cumsum([0, *(len(source) for source in sources)])
    which = np.searchsorted(offsets, numbers, side="right") - 1
    places = [
        (sources[source], int(number - offsets[source]))
        for source, number in zip(which, numbers, strict=True)
    ]
    shape = (len(places), *sources[0].pixels.shape[1:])
    if not path.exists() or path.stat().st_size != np.prod(shape):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")  # every process of a run may come here
        with part.open("wb") as stream:
            for source, place in places:
                stream.write(source.pixels[place].tobytes())
        part.replace(path)
    return Pictures(
        [source.ids[place] for source, place in places],
        [source.captions[place] for source, place in places],
        [source.groups[place] for source, place in places],
        np.memmap(path, dtype=np.uint8, mode="r", shape=shape),
        sources[0].shards_hash,
        {
            number: source.several[place]
            for number, (source, place) in enumerate(places)
            if place in source.several
        },
    )


def cross_validate(config: FoldsConfig, world: World) -> tuple[str, Path]:
    """Train all folds that are not finished and write folds.json and the page.

    Returns:
        the result in a sentence, and the page.
    Raises:
        RunError: the folder holds folds of another recipe.
    """
    folder = config.run.dir / "folds"
    results = [_finished(config, number, world) for number in range(config.folds.k)]
    report = summed_up(results, config)
    if world.is_main:
        write_json(folder / FOLDS, report)
        write_folds_page(folder, report)
    by, before, after = config.judge.best_by, report["before"], report["after"]
    return (
        f"{len(results)} folds: held-out {by} {before[by]:.3f} -> {after[by]:.3f} "
        f"({after[f'{by}_low']:.3f} to {after[f'{by}_high']:.3f}), chance {after[f'chance_{by}']:.3f}"
    ), folder / "index.html"


def _finished(config: FoldsConfig, number: int, world: World) -> dict[str, Any]:
    """What one fold came to; it is trained first where it is not finished."""
    folder = config.run.dir / "folds" / f"fold-{number}"
    made_from = _made_from(config)
    path = folder / HELD_OUT
    if not path.exists():
        _train_and_judge(config, number, folder, made_from, world)
    world.barrier()
    result: dict[str, Any] = read_json(path)
    if result["made_from"] != made_from:
        raise RunError(
            f"{folder}: belongs to another config or to other shards; name another run.dir or remove "
            f"{folder.parent}."
        )
    return result


def _made_from(config: FoldsConfig) -> str:
    settings = config.model_dump(mode="json", exclude={"schema_"})
    for name in WATCHED:
        section, _, field = name.partition(".")
        settings[section].pop(field, None)  # not every room has every setting
    return hash_of(settings, read_json(config.data.shards / "manifest.json")["hash"])


def _train_and_judge(config: FoldsConfig, number: int, folder: Path, made_from: str, world: World) -> None:
    start = starting_model(config)[0]
    fold = open_fold(
        config.data,
        config.folds.k,
        config.folds.seed,
        number,
        side_px=start.side_px,
        train_px=ClipData.kept_px(config.data, start),
        folder=folder / PICTURES,
    )
    own = fold_config(config, folder, len(fold.train), world)
    if world.is_main:
        print(f"{folder}: {len(fold.train)} logos teach, {len(fold.val)} choose, {len(fold.held_out)} judge")
    refused = None
    try:
        train(
            own,
            world,
            pictures=(fold.train, fold.val),
            activations=folder / ACTIVATIONS,
            folds={**config.folds.model_dump(mode="json"), "fold": number},
        )
    except RefusedError as error:
        refused = error.why
    if world.is_main:
        before = held_out_ranks(start, fold.held_out, own.data, world)
        after = before
        if refused is None:
            after = held_out_ranks(load_clip_model(folder)[0], fold.held_out, own.data, world)
        result = {
            "fold": number,
            "made_from": made_from,
            "mode": read_json(folder / REPORT)["mode"],
            "train": len(fold.train),
            "val": len(fold.val),
            "held_out": len(fold.held_out),
            "refused": refused,
            "groups": fold.held_out.groups,
            "ids": fold.held_out.ids,
            "ranks": {"before": _plain(before), "after": _plain(after)},
        }
        for own_folder in (folder / PICTURES, folder / ACTIVATIONS):
            if own_folder.exists():
                shutil.rmtree(own_folder)
        write_json(folder / HELD_OUT, result)


def fold_config(config: FoldsConfig, folder: Path, pairs: int, world: World) -> ClipTrainConfig:
    """The training's config for one fold: in its own folder, with a batch that its fewer logos can fill."""
    optim = config.optim
    unit = world.size * (optim.device_batch_size or 1)
    batch_size = min(optim.batch_size or WHOLE_SET, pairs)
    batch_size -= batch_size % unit if batch_size > unit else 0
    return ClipTrainConfig(
        run=config.run.model_copy(update={"dir": folder}),
        data=config.data,
        model=config.model,
        optim=optim.model_copy(update={"batch_size": batch_size}),
        judge=config.judge,
    )


@torch.no_grad()
def held_out_ranks(model: ClipModel, pictures: Pictures, data: ClipDataConfig, world: World) -> Ranks:
    """Where a model ranks what is right, by the config's idea of alike, through its whole towers."""
    model = model.eval().to(world.device)
    images, texts = [], []
    with world.autocast():
        for first in range(0, len(pictures), VALIDATED):
            numbers = np.arange(first, min(first + VALIDATED, len(pictures)))
            images.append(model.embed_images(torch.from_numpy(pictures.floats(numbers)).to(world.device)))
            captions, _ = model.fit_texts([pictures.captions[row] for row in numbers])
            texts.append(model.embed_tokens(model.tokenize(captions))[0])
    alike = positives(pictures, captions_alike=data.captions_alike, pictures_alike=data.pictures_alike)
    everything = np.arange(len(pictures))

    def right(rows: Tensor) -> Tensor:
        return alike.matrix(rows.cpu().numpy(), everything)

    return retrieval_ranks(torch.cat(images), torch.cat(texts), right)


def _plain(ranks: Ranks) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in asdict(ranks).items()}


def _ranks(result: Mapping[str, Any], when: str) -> Ranks:
    stored = result["ranks"][when]
    return Ranks(
        np.array(stored["text_to_image"], np.float64),
        np.array(stored["image_to_text"], np.float64),
        np.array(stored["pictures_right"], np.int64),
        np.array(stored["captions_right"], np.int64),
        np.array(stored["among"], np.int64),
    )


def summed_up(results: Sequence[Mapping[str, Any]], config: FoldsConfig) -> dict[str, Any]:
    """Every fold's figures, and those of all held-out logos together with intervals over them.

    Ranks are joined, not averaged by fold: each logo is held out once and ranked among its own fold, so that
    all of them are one sample of as many logos as there are.
    """
    draws, seed = config.judge.bootstrap or 1000, config.folds.seed

    def figures(chosen: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        before, after = (Ranks.joined([_ranks(one, when) for one in chosen]) for when in ("before", "after"))
        groups = [group for one in chosen for group in one["groups"]]
        return {
            "before": rank_metrics(before, bootstrap=draws, seed=seed, groups=groups),
            "after": rank_metrics(after, bootstrap=draws, seed=seed, groups=groups),
            "gain": gain(before, after, bootstrap=draws, seed=seed, groups=groups),
        }

    rows = [
        {name: one[name] for name in ("fold", "mode", "train", "val", "held_out", "refused")} | figures([one])
        for one in results
    ]
    names = [name for name in rows[0]["after"] if f"{name}_low" in rows[0]["after"]]
    return {
        "k": config.folds.k,
        "seed": seed,
        "best_by": config.judge.best_by,
        "held_out": sum(int(one["held_out"]) for one in results),
        **figures(results),
        "deviation": {name: float(np.std([row["after"][name] for row in rows], ddof=1)) for name in names},
        "folds": rows,
    }
