"""The model card of a published CLIP: data, recipe, figures before and after, limits, by the run's files.

Shows what was measured and recorded, and says where nothing was; names no path of this machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clip_train.publish_config import PublishHubConfig
from clip_train.run_record import Run
from crest.errors import DataError
from crest.records import SPLITS
from crest.shards import read_samples

FEW: Final = 200
"""Held-out pairs below which figures are said to be rough."""
SHOWN: Final = 30
"""Rows of a table at most."""
WAYS: Final = {"": "", "text_to_image_": "text to image ", "image_to_text_": "image to text "}
MEASURES: Final = {
    **{f"{way}r_at_{k}": f"{said}R@{k}" for way, said in WAYS.items() for k in (1, 5, 10)},
    **{f"{way}median_rank": f"{said}median rank" for way, said in WAYS.items() if way},
}
_PATHS: Final = frozenset(("dir", "shards"))


@dataclass(frozen=True)
class Facts:
    """What the samples of a shards folder say of themselves."""

    sources: Counter[tuple[str, str]]
    """(source, licence) -> pictures"""
    writers: Counter[tuple[str, str]]
    """(origin, model) of the captions -> pictures"""


def read_facts(shards: Path, run: Run) -> Facts:
    """Count sources, licences and writers of the samples that a run learned from and was judged on.

    Raises:
        DataError: the folder is another than the run's.
    """
    expected = run.card.get("parents", {}).get("shards")
    if expected is not None and run.shards.get("hash") not in (None, expected):
        raise DataError(
            f"{shards}: is {run.shards['hash']}, but the run was trained on {expected}; name the folder of "
            "then by data.shards."
        )
    sources: Counter[tuple[str, str]] = Counter()
    writers: Counter[tuple[str, str]] = Counter()
    for split in SPLITS:
        for sample in read_samples(shards, split):
            meta = sample.meta
            sources[str(meta.get("source") or "not said"), str(meta.get("licence") or "not said")] += 1
            origin: Any = meta.get("caption_origin") or {}
            if not isinstance(origin, Mapping):
                origin = {"origin": origin}
            writers[str(origin.get("origin") or "not said"), str(origin.get("model") or "")] += 1
    return Facts(sources, writers)


def model_card(
    run: Run,
    facts: Facts | None,
    hub: PublishHubConfig,
    *,
    base: str | None = None,
    tokenizer: str = "",
) -> str:
    """The README.md of a repository.

    Args:
        run: finished.
        facts: of its samples; None where its shards are not on this machine.
        hub: what the config says of the repository.
        base: hub name of the weights that it started from, where known.
        tokenizer: what a user of plain OpenCLIP must know of the tokenizer.
    """
    name = hub.repository.rpartition("/")[2]
    chapters = [
        _front(hub, base),
        f"# {name}\n\n{_summary(run)}",
        _usage(hub.repository, tokenizer),
        _data(run, facts),
        _recipe(run),
        _figures(run),
        _limits(run, facts, hub),
        "Made with Crest.",
    ]
    return "\n\n".join(chapters) + "\n"


def _front(hub: PublishHubConfig, base: str | None) -> str:
    # JSON's strings are YAML's, so that no value can end the block
    fields: dict[str, Any] = {
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "logos", "crest"],
        "license": hub.licence,
    }
    if base:
        fields["base_model"] = base
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _summary(run: Run) -> str:
    spec = run.card.get("spec", {})
    architecture = spec.get("architecture")
    kind = f"OpenCLIP's {architecture}" if architecture else "an architecture of its own"
    return (
        f"A CLIP for logos: {kind}, {_mode_of(run)} on {_number(_pairs(run))} pairs of a logo and its "
        "caption. Picture and text become unit vectors; their product says how well they go together."
    )


def _mode_of(run: Run) -> str:
    mode = _mode(run)
    return {"scratch": "trained from random weights", "": "trained"}.get(mode, f"tuned ({mode})")


def _mode(run: Run) -> str:
    recipe = run.card.get("recipe", {}).get("model", {})
    return str(run.report.get("mode") or ("scratch" if recipe.get("scratch") else recipe.get("mode") or ""))


def _pairs(run: Run) -> Any:
    return run.report.get("pairs") or run.shards.get("counts", {}).get("train")


def _usage(repository: str, tokenizer: str) -> str:
    return f"""## Use

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repository}")
tokenizer = open_clip.get_tokenizer("hf-hub:{repository}")
```

{tokenizer}`preprocess` shows the model the whole picture, padded white to a square, as it was trained;
pictures with transparency must be flattened on white first. In Crest: `"start": "hf-hub:{repository}"`."""


def _data(run: Run, facts: Facts | None) -> str:
    counts: Mapping[str, int] = run.shards.get("counts", {})
    parent = run.card.get("parents", {}).get("shards", "not recorded")
    lines = [
        "## Data",
        "",
        f"Shards `{parent}`: {_counts(counts) or 'their counts are not on this machine'}.",
    ]
    lost = {**run.shards.get("dropped", {}), **run.report.get("dropped", {})}
    if any(lost.values()):
        lines.append(f"Left out or changed, by reason: {_counts(lost)}.")
    if facts is None:
        lines.append("Sources and licences can't be told: the shards are not where the run found them.")
        return "\n".join(lines)
    rows = [(source, licence, _number(count)) for (source, licence), count in facts.sources.most_common()]
    lines += ["", *_table(("source", "licence, as the records tell", "pictures"), rows), ""]
    rows = [(origin, model, _number(count)) for (origin, model), count in facts.writers.most_common()]
    lines += _table(("captions written by", "model", "pictures"), rows)
    return "\n".join(lines)


def _counts(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_number(count)}" for name, count in values.items() if count)


def _recipe(run: Run) -> str:
    recipe = run.card.get("recipe", {})
    said = [f"Mode `{_mode(run) or 'not recorded'}`"]
    if run.report.get("why"):
        said.append(f"because {run.report['why']}")
    if run.card.get("wise_ft") is not None:
        said.append(f"{run.card['wise_ft']:g} of the way from the start to the tuned weights (WiSE-FT)")
    lines = [
        "## Recipe",
        "",
        f"{'; '.join(said)}. Weights of step {run.card.get('step', 'not recorded')}.",
        "",
    ]
    rows = [(name, f"`{json.dumps(value, ensure_ascii=False)}`") for name, value in _settings(recipe)]
    rows.append(("made on", json.dumps(run.card.get("world", {}))))
    return "\n".join([*lines, *_table(("setting", "value"), rows, most=200)])


def _settings(recipe: Mapping[str, Any], section: str = "") -> Iterable[tuple[str, Any]]:
    """The recipe under dotted names, without architectures and without this machine's paths."""
    for name, value in recipe.items():
        full = f"{section}{name}"
        if isinstance(value, Mapping) and value:
            if name != "scratch":
                yield from _settings(value, f"{full}.")
        elif value is not None and name not in _PATHS:
            is_path = isinstance(value, str) and ("\\" in value or value.startswith(("/", ".", "~", "out/")))
            yield full, Path(value).name if is_path else value


def _figures(run: Run) -> str:
    before, after = run.before, run.after
    held_out = run.report.get("held_out") or after.get("samples")
    rows = [
        (said, _figure(before, name), _figure(after, name), _chance(after, name))
        for name, said in MEASURES.items()
        if name in after or name in before
    ]
    drift = run.report.get("probe", {}).get("drift")
    lines = ["## Figures", ""]
    if not rows:
        return "\n".join([*lines, "None were recorded."])
    lines.append(
        f"Retrieval among {_number(held_out)} pairs of the validation split; intervals are 95 % bootstrap "
        "intervals over the pairs, where given. Weights were chosen on the same pairs, which flatters them."
    )
    lines += ["", *_table(("measure", "before", "after", "chance"), rows)]
    if drift is not None:
        lines += ["", f"Drift on a fixed bank of general pictures and prompts: {drift:.4f}."]
    return "\n".join(lines)


def _figure(figures: Mapping[str, float], name: str) -> str:
    value = figures.get(name)
    if value is None:
        return "not measured"
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    interval = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return f"{value:.3g}{interval}"


def _chance(figures: Mapping[str, float], name: str) -> str:
    value = figures.get(f"chance_{name[name.find('r_at_') :]}") if "r_at_" in name else None
    return "" if value is None else f"{value:.3g}"


def _limits(run: Run, facts: Facts | None, hub: PublishHubConfig) -> str:
    held_out = run.report.get("held_out") or run.after.get("samples")
    limits = [
        "Made for logos; it was not measured on photographs, faces or documents.",
        "Logos are trademarks of their owners. The licences of the pictures, as far as they are known, are "
        "in the table of sources; these weights give no right to the pictures.",
    ]
    if held_out is not None and held_out < FEW:
        limits.append(
            f"Only {_number(held_out)} held-out pairs: read the intervals, not the second digit of a figure."
        )
    if not run.before:
        limits.append("What the weights could do before was not measured.")
    if run.report.get("probe", {}).get("drift") is None:
        limits.append("How much general knowledge it lost was not measured.")
    if facts is not None:
        models = sorted({model for _, model in facts.writers if model})
        if models:
            limits.append(f"Captions were written by models too ({', '.join(models)}), with their errors.")
        unknown = sum(count for (_, licence), count in facts.sources.items() if licence == "not said")
        if unknown:
            limits.append(f"The records name no licence for {_number(unknown)} pictures.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in (*limits, *hub.limits))])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], most: int = SHOWN) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    left = len(rows) - most
    more = [line([f"and {left} more", *[""] * (len(head) - 1)])] if left > 0 else []
    return [line(head), line("---" for _ in head), *map(line, rows[:most]), *more]


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else "an unknown number of"
