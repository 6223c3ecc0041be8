"""Merge groups that share something, so that a split cannot tear apart what belongs together."""

from __future__ import annotations

from collections.abc import Iterable


class Groups:
    """Sets of names that grow together; a merged group is called by its first name in sorting order."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def name(self, key: str) -> str:
        """What the group of `key` is called."""
        self._parent.setdefault(key, key)
        root = key
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[key] != root:
            self._parent[key], key = root, self._parent[key]
        return root

    def merge(self, keys: Iterable[str]) -> None:
        """Put all these into one group."""
        roots = sorted({self.name(key) for key in keys})
        for root in roots[1:]:
            self._parent[root] = roots[0]
