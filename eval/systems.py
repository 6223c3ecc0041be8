"""Read what each system drew, and see to it that all drew the same prompts with the same seeds.

Refuses systems that cannot be compared; it never fills a gap and never drops a prompt quietly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crest.errors import DataError
from crest.records import content_id, hash_of, read_json, read_jsonl
from eval.config import SystemConfig

MADE_BY = "python -m crest"


@dataclass(frozen=True)
class Drawing:
    """One picture that a system drew."""

    prompt_id: str
    prompt: str
    seed: int
    path: Path

    @property
    def key(self) -> tuple[str, int]:
        """What the same picture of another system shares with this one."""
        return self.prompt_id, self.seed


@dataclass(frozen=True)
class System:
    """All drawings of one system, prompts in their first order, seeds ascending within a prompt."""

    name: str
    dir: Path
    drawings: tuple[Drawing, ...]
    ancestry: frozenset[str]
    """hashes of the CLIPs that conditioned it and, where its folder tells, of their parents"""
    hash: str
    """over the rows of samples.jsonl and the bytes of the pictures"""

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """Each prompt once, in order."""
        return tuple(dict.fromkeys(drawing.prompt_id for drawing in self.drawings))


def read_system(name: str, folder: Path) -> System:
    """Read one system's samples.jsonl and look whether every picture is there.

    Raises:
        DataError: no folder, a row without its fields, the same prompt and seed twice, pictures missing.
    """
    table = folder / "samples.jsonl"
    if not table.exists():
        what = "does not exist" if not folder.exists() else "has no samples.jsonl"
        raise DataError(f"{folder}: {what}, expected what system {name} drew; run {MADE_BY} for it first.")
    rows = list(read_jsonl(table))
    if not rows:
        raise DataError(f"{table}: is empty, expected a row for each picture of {name}; run {MADE_BY} again.")
    drawings: dict[tuple[str, int], Drawing] = {}
    for number, row in enumerate(rows, start=1):
        drawing = _drawing(row, folder, f"{table}:{number}")
        if drawing.key in drawings:
            raise DataError(
                f"{table}:{number}: prompt {drawing.prompt_id} with seed {drawing.seed} is there twice, "
                "expected once; remove one of the rows."
            )
        drawings[drawing.key] = drawing
    missing = [drawing.path.name for drawing in drawings.values() if not drawing.path.is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(drawings)} pictures are missing ({_few(missing)}); run "
            f"{MADE_BY} again for system {name}."
        )
    first: dict[str, int] = {}
    for drawing in drawings.values():
        first.setdefault(drawing.prompt_id, len(first))
    ordered = sorted(drawings.values(), key=lambda drawing: (first[drawing.prompt_id], drawing.seed))
    return System(name, folder, tuple(ordered), _ancestry(rows, folder), _hash(rows, ordered))


def _drawing(row: dict[str, object], folder: Path, where: str) -> Drawing:
    for field in ("prompt_id", "prompt", "seed", "file"):
        if field not in row:
            raise DataError(f"{where}: has no {field}; expected the fields prompt_id, prompt, seed and file.")
    seed = row["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"{where}: seed is {json.dumps(seed)}, expected a whole number; mend that line.")
    name = Path(str(row["file"]))
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{where}: file {name} lies outside the folder; expected a name within {folder}.")
    return Drawing(str(row["prompt_id"]), str(row["prompt"]), seed, folder / name)


def _hash(rows: Sequence[dict[str, object]], drawings: Iterable[Drawing]) -> str:
    return hash_of(list(rows), [content_id(drawing.path.read_bytes()) for drawing in drawings])


def _ancestry(rows: Iterable[dict[str, object]], folder: Path) -> frozenset[str]:
    """The conditioning CLIP's hash from every row, and what the folder's manifest says of its parents."""
    hashes = {str(row["clip"]) for row in rows if row.get("clip")}
    manifest = folder / "manifest.json"
    if manifest.exists():
        found = read_json(manifest)
        parents = found.get("parents", {}) if isinstance(found, dict) else {}
        hashes |= {str(value) for name, value in parents.items() if "clip" in name and value}
    return frozenset(hashes)


def read_systems(wanted: Sequence[SystemConfig], baseline: str, prompts: Path | None = None) -> list[System]:
    """Read all systems, the baseline first, and refuse what cannot be compared.

    Args:
        prompts: when given, exactly the prompts of this list must have been drawn.
    Raises:
        DataError: other prompts, other seeds, another text under the same prompt_id, too few prompts.
    """
    ordered = sorted(wanted, key=lambda system: system.name != baseline)
    systems = [read_system(system.name, system.samples) for system in ordered]
    for other in systems[1:]:
        _same_prompts(systems[0], other)
    order = {drawing.key: place for place, drawing in enumerate(systems[0].drawings)}
    systems = [
        System(s.name, s.dir, tuple(sorted(s.drawings, key=lambda d: order[d.key])), s.ancestry, s.hash)
        for s in systems
    ]
    if prompts is not None:
        _covers(systems[0], prompts)
    if len(systems[0].prompt_ids) < 2:
        raise DataError(f"{systems[0].dir}: holds one prompt, expected at least 2; draw more prompts.")
    return systems


def _same_prompts(base: System, other: System) -> None:
    for a, b in ((base, other), (other, base)):
        have = {drawing.key for drawing in b.drawings}
        lacking = [drawing for drawing in a.drawings if drawing.key not in have]
        if lacking:
            first = lacking[0]
            raise DataError(
                f"{b.dir}: has no picture of prompt {first.prompt_id} with seed {first.seed} ({len(lacking)} "
                f"such), but {a.dir} has; draw every system from the same prompts with the same seeds."
            )
    texts = {drawing.prompt_id: drawing.prompt for drawing in base.drawings}
    for drawing in other.drawings:
        if texts[drawing.prompt_id] != drawing.prompt:
            raise DataError(
                f"{other.dir}: prompt {drawing.prompt_id} reads {drawing.prompt[:60]!r}, but in {base.dir} "
                f"{texts[drawing.prompt_id][:60]!r}; draw every system from the same prompts."
            )


def _covers(system: System, prompts: Path) -> None:
    listed = read_prompts(prompts)
    drawn = {drawing.prompt for drawing in system.drawings}
    undrawn = [text for text in listed if text not in drawn]
    unlisted = [text for text in drawn if text not in set(listed)]
    if undrawn:
        raise DataError(
            f"{prompts}: {len(undrawn)} of {len(listed)} prompts were not drawn (first: "
            f"{undrawn[0][:60]!r}); run {MADE_BY} with this prompt list."
        )
    if unlisted:
        raise DataError(
            f"{system.dir}: {len(unlisted)} prompts are not in {prompts} (first: {unlisted[0][:60]!r}); run "
            f"{MADE_BY} with this prompt list or name the one that was drawn."
        )


def read_prompts(path: Path) -> list[str]:
    """The texts of a prompt list: rows with `text` in a .jsonl file, else one a line."""
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder, expected a prompt list; name a file or leave eval.prompts out."
        )
    if path.suffix == ".jsonl":
        texts = []
        for number, row in enumerate(read_jsonl(path), start=1):
            if not isinstance(row.get("text"), str):
                raise DataError(f"{path}:{number}: has no text; expected an object with id and text.")
            texts.append(row["text"])
    else:
        try:
            texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such prompt list; check eval.prompts.") from None
    if not texts:
        raise DataError(f"{path}: is empty, expected prompts; add some.")
    return texts


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
