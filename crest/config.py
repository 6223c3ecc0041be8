"""Strict JSON to frozen Config, and the three flags that every command answers to.

A config describes; it never builds and never remembers progress. Unknown keys are errors with a suggestion.
This file imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crest.errors import ConfigError, CrestError
from crest.interruption import ENDED, Ended, listen

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Export = Literal["auto", "adapter", "merged"]
SamplerName = Literal["ddim", "dpmpp_2m", "ddpm", "ddpm_large"]
ScheduleName = Literal["cosine", "linear", "quadratic", "sigmoid", "jsd"]
Prediction = Literal["epsilon", "x_start", "v"]
Arithmetic = Literal["1.15", "1.1"]
"""Which dalle2-pytorch a network's numbers belong to (its attention and downsampling changed in between)."""


class Config(BaseModel):
    """Base of every config section: frozen, strict, each field documented by the line under it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        populate_by_name=True,
        protected_namespaces=(),
    )


class FileConfig(Config):
    """Base of a whole config file; carries the editor's `$schema` key."""

    schema_: str | None = Field(default=None, alias="$schema")
    """Where an editor finds the JSON schema; not used by Crest."""


class RunConfig(Config):
    """Where a training run lives and how often it does what."""

    dir: Path
    """Run folder: resolved config, state, weights, metrics.jsonl, TensorBoard events."""
    seed: int = 0
    """Seed of everything random in the run."""
    steps: int = Field(ge=0)
    """Optimizer steps in the whole run."""
    device: str = "auto"
    """"auto" (CUDA if there is one, else CPU), "cpu", "cuda" or "cuda:N"."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; "auto" takes bf16 where the processor is fast at it, fp32 elsewhere."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines in metrics.jsonl and TensorBoard."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between two validations; step 0 and the last step are always validated."""
    preview_every: int = Field(default=500, ge=1)
    """Steps between two preview grids; the last step always has one."""
    save_every: int = Field(default=200, ge=1)
    """Steps between two saved states."""
    export: Export = "auto"
    """What is exported of adapters: "adapter" themselves alone, "merged" whole weights with them in; "auto"
    takes the first for a prior or decoder, whose base can be named, and the second for other models."""
    device_memory_gb: float | None = Field(default=None, gt=0)
    """Memory of the device that `--dry-run` plans for (10^9 bytes); null asks the one that is here."""


class MovingConfig(Config):
    """How the weights are moved, but for what may depend on what is moved."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    final_lr_ratio: float = Field(default=0.02, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak (ignored by "constant")."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's two averaging factors."""
    clip_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Averaging factor of the exported weights; 0 exports the last step's weights."""
    device_batch_size: int | None = Field(default=None, ge=1)
    """Samples per forward pass on one device (the machine); must divide its share of batch_size."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """"adamw", or "adamw_8bit", whose two averages take a quarter of the memory (needs an extra package)."""
    ema_device: Literal["same", "cpu"] = "same"
    """Where the averaged weights are kept: beside the model, or in the host's memory (the same numbers)."""


class OptimConfig(MovingConfig):
    """How the weights are moved."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    batch_size: int = Field(ge=1)
    """Samples per optimizer step over all devices and accumulation (the recipe)."""


class LoraConfig(Config):
    """Low-rank adapters, which learn alone beside weights that stay as they are (Hu et al. 2021)."""

    rank: int = Field(default=8, ge=1)
    """Rank of what each weight matrix can learn."""
    alpha: float | None = Field(default=None, gt=0)
    """What is learned is scaled by alpha / rank; null takes the rank, and so 1."""
    targets: list[str] | None = Field(default=None, min_length=1)
    """Shell patterns of the matrices' dotted names; null takes those that the model's family names."""


C = TypeVar("C", bound=FileConfig)
S = TypeVar("S", bound=Config)


def load_config(config_class: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a JSON config and apply `section.field=value` overrides.

    Args:
        config_class: what the file must hold.
        path: JSON file.
        overrides: values are read as JSON where they parse as such, else as strings.
    Raises:
        ConfigError: missing file, broken JSON, unknown setting (with a suggestion), wrong type.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{path}: there is no such config file; `ls configs` shows those that ship."
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, expected a JSON config file; name the file in it.") from None
    except ValueError as error:  # broken JSON, text that is no UTF-8, a setting given twice
        raise ConfigError(f"{path}: is not JSON ({error}); mend that line.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, expected an object with sections.")
    for override in overrides:
        _apply(values, override)
    try:
        # Through JSON, because only there strict means: "8" and true are no numbers, a string is a path.
        return config_class.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(_one_sentence(path, config_class, error)) from None


def read_spec(spec_class: type[S], values: Mapping[str, Any], name: str) -> S:
    """What a network is built from, out of the free-form section `name`, as strictly as the config itself.

    Raises:
        ConfigError: unknown setting (with a suggestion), wrong type, or one that is missing.
    """
    try:
        return spec_class.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(_one_sentence(name, spec_class, error, f"{name}.")) from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    parts = name.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: expected section.field=value.")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    for index, section in enumerate(parts[:-1], start=1):
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parts[:index])} is a value, not a section.")
    values[parts[-1]] = value


def _one_sentence(
    path: Path | str, config_class: type[BaseModel], error: ValidationError, section: str = ""
) -> str:
    errors = error.errors()
    # a setting misspelt is also one missing: the spelling is what helps
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    name = ".".join(str(part) for part in first["loc"])
    more = f" ({error.error_count() - 1} more after this one)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        plain = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        near = _nearest(plain, setting_names(config_class))
        hint = f"; did you mean {near}?" if near else "; the schema in configs/schema lists what is."
        return f"{path}: {name} is not a setting{hint}{more}"
    if first["type"] == "missing":
        return f"{path}: {name} is missing; add it or --set {section}{name}=…{more}"
    found = json.dumps(first.get("input"), default=str, ensure_ascii=False)[:80]
    mend = f"correct it or --set {section}{name}=…"
    return f"{path}: {name}: found {found}, expected {_expected(first)}; {mend}{more}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The setting that was probably meant: a like one of the same section, or its namesake in another."""
    section, _, field = name.rpartition(".")
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    for near in difflib.get_close_matches(field, siblings, n=1, cutoff=0.6):
        return f"{section}.{near}" if section else near
    return next((other for other in known if other.rpartition(".")[2] == field), None)


def _expected(first: Any) -> str:
    message = str(first["msg"])
    if first["type"] in ("path_type", "string_type"):
        return "a string (in double quotes where it reads as a number)"
    for start in ("Input should be ", "Value error, "):
        message = message.removeprefix(start)
    return message


def setting_names(config_class: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting of a config as dotted names, those of optional and listed sections too."""
    names: list[str] = []
    for name, field in config_class.model_fields.items():
        full = f"{prefix}{field.alias or name}"
        names.append(full)
        for section in _sections(field.annotation):
            names += setting_names(section, f"{full}.")
    return names


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def resolved_json(config: BaseModel) -> str:
    """The config with every default written out, as JSON text with stable order."""
    return json.dumps(config.model_dump(mode="json", exclude={"schema_"}), indent=2, ensure_ascii=False)


def run_command(
    room: str,
    config_class: type[C],
    main: Callable[[C], None],
    *,
    check: Callable[[C], None] | None = None,
    plan: Callable[[C], None] | None = None,
    default_config: str | None = None,
    argv: Sequence[str] | None = None,
    switches: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Parse `--config`, `--set` and `--dry-run`, then call `main` with the frozen config.

    Args:
        room: the module's name, as typed after `python -m`.
        config_class: what the config file must hold.
        main: does the work; imports what is heavy inside.
        check: looks whether the inputs exist, for `--dry-run`; called before `main` too.
        plan: prints what the work would take, for `--dry-run`.
        default_config: used when `--config` is absent.
        argv: the words after the command; None takes those it was started with.
        switches: further flags without a value -> the setting that each is short for.
    Returns:
        the exit status: 0 done, 1 a CrestError (printed bare), 130 interrupted, 143 ended by SIGTERM.
    """
    doc = (sys.modules[main.__module__].__doc__ or "").strip().splitlines()
    parser = argparse.ArgumentParser(prog=f"python -m {room}", description=doc[0] if doc else None)
    add = parser.add_argument
    add("--config", type=Path, required=default_config is None, default=default_config, metavar="FILE")
    add(
        "--set",
        action="append",
        default=[],
        metavar="section.field=value",
        help="change a setting; repeatable",
    )
    add("--dry-run", action="store_true", help="print the resolved config, check the inputs, exit")
    for flag, setting in switches.items():
        add(flag, dest="set", action="append_const", const=setting, help=f"short for --set {setting}")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(config_class, arguments, main, check, plan))


def _run(
    config_class: type[C],
    arguments: argparse.Namespace,
    main: Callable[[C], None],
    check: Callable[[C], None] | None,
    plan: Callable[[C], None] | None,
) -> None:
    config = load_config(config_class, Path(arguments.config), arguments.set)
    if arguments.dry_run:
        print(resolved_json(config))
    if check is not None:
        check(config)
    if not arguments.dry_run:
        main(config)
    elif plan is not None:
        plan(config)


def guarded(work: Callable[[], None]) -> int:
    """Run `work`; turn the errors that a user can cause into one printed sentence and an exit status."""
    listen()
    try:
        work()
        sys.stdout.flush()
    except CrestError as error:
        print(error, file=sys.stderr)
        return 1
    except Ended:
        print("ended by SIGTERM; run the same command again to go on", file=sys.stderr)
        return ENDED
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = error.filename or "the working folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            print(
                f"{place}: the disk is full; free some space and run the same command again.", file=sys.stderr
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            print(
                f"{place}: {error.strerror}; change its permissions or name another place.", file=sys.stderr
            )
        else:
            raise
        return 1
    return 0
