"""Strict JSON to frozen Config, and the three flags that every command answers to.

A config describes; it never builds and never remembers progress. Unknown keys are errors with a suggestion. This
file imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crest.errors import ConfigError, CrestError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Config(BaseModel):
    """Base of every config section: frozen, strict, each field documented by the line under it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True, protected_namespaces=()
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


class OptimConfig(Config):
    """How the weights are moved."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
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
    batch_size: int = Field(ge=1)
    """Samples per optimizer step over all devices and accumulation (the recipe)."""
    device_batch_size: int | None = Field(default=None, ge=1)
    """Samples per forward pass on one device (the machine); must divide its share of batch_size."""


C = TypeVar("C", bound=FileConfig)


def load_config(config_class: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a JSON config and apply `section.field=value` overrides.

    Args:
        path: JSON file.
        overrides: values are read as JSON where they parse as such, else as strings.
    Raises:
        ConfigError: missing file, broken JSON, unknown setting, wrong type; names the setting and suggests one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such config file; `ls configs` shows the ones that ship.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, expected a JSON config file; name the file in it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not JSON ({error}); mend that line.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, expected an object with sections.")
    for override in overrides:
        _apply(values, override)
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_sentence(path, config_class, error)) from None


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {override}: expected section.field=value.")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *sections, field = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section.")
    values[field] = value


def _one_sentence(path: Path, config_class: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    more = f" ({error.error_count() - 1} more after this one)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, setting_names(config_class), n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else "; the schema in configs/schema lists what is."
        return f"{path}: {name} is not a setting{hint}{more}"
    if first["type"] == "missing":
        return f"{path}: {name} is missing; add it or --set {name}=…{more}"
    found = first.get("input")
    shown = f"found {json.dumps(found, default=str)[:80]}"
    return f"{path}: {name}: {shown}, expected {_expected(first)}; correct it or --set {name}=…{more}"


def _expected(first: Any) -> str:
    message = str(first["msg"])
    for start in ("Input should be ", "Value error, "):
        message = message.removeprefix(start)
    return message


def setting_names(config_class: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting of a config as dotted names, for suggestions and docs."""
    names: list[str] = []
    for name, field in config_class.model_fields.items():
        full = f"{prefix}{field.alias or name}"
        names.append(full)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{full}.")
    return names


def resolved_json(config: BaseModel) -> str:
    """The config with every default written out, as JSON text with stable order."""
    return json.dumps(config.model_dump(mode="json", exclude={"schema_"}), indent=2, ensure_ascii=False)


def run_command(
    room: str,
    config_class: type[C],
    main: Callable[[C], None],
    *,
    check: Callable[[C], None] | None = None,
    default_config: str | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `--config`, `--set` and `--dry-run`, then call `main` with the frozen config.

    Args:
        room: the module's name, as typed after `python -m`.
        main: does the work; imports what is heavy inside.
        check: looks whether the inputs exist, for `--dry-run`; called before `main` too.
        default_config: used when `--config` is absent.
    Returns:
        the exit status: 0 done, 1 a CrestError (printed bare), 130 interrupted.
    """
    doc = (sys.modules[main.__module__].__doc__ or "").strip().splitlines()
    parser = argparse.ArgumentParser(prog=f"python -m {room}", description=doc[0] if doc else None)
    parser.add_argument("--config", type=Path, required=default_config is None, default=default_config, metavar="FILE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.field=value", help="change one setting; repeatable"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config, check inputs, exit")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(config_class, arguments, main, check))


def _run(
    config_class: type[C],
    arguments: argparse.Namespace,
    main: Callable[[C], None],
    check: Callable[[C], None] | None,
) -> None:
    config = load_config(config_class, Path(arguments.config), arguments.set)
    if arguments.dry_run:
        print(resolved_json(config))
    if check is not None:
        check(config)
    if not arguments.dry_run:
        main(config)


def guarded(work: Callable[[], None]) -> int:
    """Run `work`; turn the errors that a user can cause into one printed sentence and an exit status."""
    try:
        work()
    except CrestError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            place = error.filename or "the working folder"
            print(f"{place}: the disk is full; free some space and run the same command again.", file=sys.stderr)
            return 1
        raise
    return 0
