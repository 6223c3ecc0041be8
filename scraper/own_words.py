"""What a source itself says of its pictures, as captions: kept as it is, but for what a page cut short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from crest.records import Caption, Record
from scraper.cut_text import cut_back, is_cut, tidy


def own_captions(records: Iterable[Record]) -> tuple[list[Caption], Counter[str]]:
    """The sources' own words, cut ones ended at a clause; those of one picture together.

    Returns:
        captions; how many texts were whole, cut_back or given_up, and how many pictures had none (missing).
    """
    captions: list[Caption] = []
    counts: Counter[str] = Counter(whole=0, cut_back=0, given_up=0, missing=0)
    for record in records:
        texts = [tidy(text) for text in (record.caption or "", *record.further_captions)]
        texts = list(dict.fromkeys(filter(None, texts)))
        counts["missing"] += not texts
        by_model = record.written_by not in ("human", "rule")
        origin, model = ("model", record.written_by) if by_model else (record.written_by, "")
        for text in texts:
            how = "whole"
            if is_cut(text):
                text = cut_back(text) or ""
                how = "cut_back" if text else "given_up"
            counts[how] += 1
            if text:
                captions.append(Caption(record.id, text, origin, model))
    return captions, counts
