"""Which captions say too little, by named rule: writes lint.json, changes nothing that it reads.

The rules on one text are those of crest.wording; here the collection is looked at too, for words that many
pictures share. Memory: eight bytes a caption.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from crest.config import run_command
from crest.records import read_json, read_manifest, stream_captions, stream_records, write_json
from scraper.config import ScraperConfig
from scraper.harvest import told
from scraper.own_words import own_captions

RECORDS_BY: Final = "python -m scraper (make scrape)"
SHOWN: Final = 10
"""Examples of each rule in lint.json; the counts hold all."""


class SharedWords:
    """Which words too many pictures of a collection have."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Read every picture's words once; order does not matter."""
        import numpy as np

        from crest.wording import shared_limit

        keys = array("Q", (_key(text) for text in texts))
        self.count = len(keys)
        found, counts = np.unique(np.frombuffer(keys, np.uint64), return_counts=True)
        self._many = {int(key) for key in found[counts > shared_limit(self.count)]}

    def __contains__(self, text: str) -> bool:
        return bool(self._many) and _key(text) in self._many


def _key(text: str) -> int:
    from scraper.screen import key_of

    return key_of(" ".join(text.casefold().split()).rstrip("."))


def reasons_of(text: str, shared: SharedWords) -> tuple[str, ...]:
    """Why a caption of this collection is vague; none for a good one."""
    from crest.wording import vague_reasons  # numpy's import is not --help's to wait for

    return vague_reasons(text, is_shared=text in shared)


def lead_captions(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(id, text, origin) of each picture's heaviest caption: of captions.jsonl, else the source's own."""
    if (folder / "captions.json").exists():
        last = ""
        for caption in stream_captions(folder / "captions.jsonl"):
            if caption.id != last:
                yield caption.id, caption.text, caption.origin
            last = caption.id
        return
    for record in stream_records(folder / "records.jsonl"):
        for caption in own_captions([record])[0][:1]:
            yield caption.id, caption.text, caption.origin


def lint(folder: Path) -> dict[str, Any]:
    """The content of lint.json."""
    shared = SharedWords(text for _, text, _ in lead_captions(folder))
    rules: Counter[str] = Counter()
    by_origin: Counter[str] = Counter()
    read: Counter[str] = Counter()
    shown: dict[str, list[dict[str, str]]] = {}
    for name, text, origin in lead_captions(folder):
        read[origin] += 1
        found = reasons_of(text, shared)
        rules.update(found)
        by_origin[origin] += bool(found)
        for rule in found:
            examples = shown.setdefault(rule, [])
            if len(examples) < SHOWN:
                examples.append({"id": name, "text": text})
    return {
        "captions": read.total(),
        "vague": by_origin.total(),
        "by_origin": {origin: {"captions": read[origin], "vague": by_origin[origin]} for origin in read},
        "rules": dict(rules.most_common()),
        "examples": shown,
    }


def main(config: ScraperConfig) -> None:
    """Write lint.json and print the counts."""
    folder = config.data.dir
    found = lint(folder)
    write_json(folder / "lint.json", found)
    share = found["vague"] / max(1, found["captions"])
    print(
        f"{folder / 'lint.json'}: {found['vague']:,} of {found['captions']:,} captions are vague "
        f"({share:.1%}): {told(found['rules'])}."
    )
    for rule, examples in found["examples"].items():
        print(f"  {rule}: {examples[0]['text']!r}")
    if found["vague"] and config.caption.describe == "missing":
        print('  caption.describe "vague" sends these to the captioner; what people wrote stays.')


def check(config: ScraperConfig) -> None:
    """Look whether there are captions."""
    read_manifest(config.data.dir, "records", RECORDS_BY)
    if (config.data.dir / "captions.json").exists():
        read_json(config.data.dir / "captions.json")


if __name__ == "__main__":
    raise SystemExit(run_command("scraper.lint", ScraperConfig, main, check=check))
