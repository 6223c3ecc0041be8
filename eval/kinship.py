"""Who may judge whom: a CLIP never scores pictures that it, its parent or its child conditioned.

Decided by the hashes on the weights' cards alone; reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crest.errors import DataError, WeightsError
from eval.systems import System


@dataclass(frozen=True)
class Descent:
    """Which weights these are, and which they were trained from."""

    hash: str
    forebears: frozenset[str]

    @classmethod
    def of(cls, own: str, parents: Mapping[str, str]) -> Descent:
        """Keep the weights among a card's parents; the data that they were trained on may be shared."""
        weights = (value for name, value in parents.items() if name.startswith(("start", "ancestor", "clip")))
        return cls(own, frozenset(weights))


def read_descent(place: str) -> Descent:
    """The descent of a CLIP's weights (folder, file or stock name), from their card.

    Raises:
        WeightsError: nothing there, or weights of another kind.
    """
    from crest.checkpoint import locate_weights, read_card, short_hash

    path = locate_weights(place, "clip")
    return Descent.of(short_hash(path), read_card(path, "clip").get("parents", {}))


def refuse_kin(
    reference: Descent, place: str, systems: Sequence[System], clips: Mapping[str, str | None]
) -> None:
    """Refuse a reference CLIP that is, made, or stems from a CLIP that conditioned a system.

    Args:
        reference: the CLIP that would score.
        place: how the config names it, for the error.
        systems: the systems with the hashes that their samples name.
        clips: system -> where the config says its CLIP lies, whose card adds the parents.
    Raises:
        WeightsError: the reference is no independent judge.
        DataError: a system was drawn by another CLIP than the config names.
    """
    for system in systems:
        known, forebears = set(system.ancestry), set[str]()
        if (clip := clips.get(system.name)) is not None:
            descent = read_descent(clip)
            if known and descent.hash not in known:
                raise DataError(
                    f"{system.dir}: was drawn with CLIP {sorted(known)[0]}, but {clip} is {descent.hash}; "
                    f"correct the clip of system {system.name}."
                )
            known, forebears = known | {descent.hash}, set(descent.forebears)
        if reference.hash in known:
            what = "is the CLIP that conditioned"
        elif reference.hash in forebears:
            what = "is the parent of the CLIP that conditioned"
        elif kin := reference.forebears & (known | forebears):
            what = f"stems from {min(kin)}, kin of the CLIP that conditioned"
        else:
            continue
        raise WeightsError(
            f"{place}: {what} system {system.name} (hash {reference.hash}), so it would score its own work; "
            "set eval.reference to a CLIP of other data."
        )
