"""Reading a foreign config field by field, so that none is dropped: taken, meaningless here, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from crest.errors import ConfigError

NEWER: Final = (
    "it may belong to a later release than 1.1, whose numbers differ; remove it if it does not matter"
)
"""What to do about an unknown field."""


@dataclass(frozen=True)
class Line:
    """What became of one field."""

    field: str
    """as in the foreign file, dotted"""
    fate: str
    """our setting and its value, or why it means nothing here"""
    translated: bool


@dataclass
class Fields:
    """One section of a foreign config; what nobody asked for is refused at the end.

    Args:
        file: where it comes from, for messages.
        name: dotted name of the section; "" for the whole file.
        values: the section.
        lines: what became of the fields so far, shared by all sections of a file.
    """

    file: str
    name: str
    values: Mapping[str, Any]
    lines: list[Line]
    seen: set[str] = field(default_factory=set)

    def take(self, name: str, to: str, default: Any = None, *, as_is: bool = True) -> Any:
        """A field that is our setting `to`, as it is or as `to` tells; null and absent mean its default."""
        self.seen.add(name)
        value = self.values.get(name)
        if value is None:
            if name in self.values:
                self._line(name, f"{to}: null, which there means {default!r}", True)
            return default
        self._line(name, f"{to} = {value!r}" if as_is else to, True)
        return value

    def without_meaning(self, reason: str, *names: str) -> None:
        """Fields that change nothing here, and why."""
        for name in names:
            self.seen.add(name)
            if name in self.values:
                self._line(name, reason, False)

    def must_be(self, name: str, *accepted: Any, because: str) -> None:
        """A field that Crest has no setting for: one of the values that change nothing, or refused.

        Raises:
            ConfigError: another value.
        """
        self.seen.add(name)
        value = self.values.get(name)
        if value is None:
            if name in self.values:
                self._line(name, "null, which there means its default", False)
            return
        given = tuple(value) if isinstance(value, list) else value
        if given not in accepted:
            raise self.refused(name, repr(value), f"{accepted[0]!r}, because {because}")
        self._line(name, f"as here, where {because}", False)

    def section(self, name: str, values: Any = None) -> Fields:
        """A section within this one.

        Raises:
            ConfigError: it is not there, or no section.
        """
        self.seen.add(name.partition(".")[0])
        found = self.values.get(name) if values is None else values
        if not isinstance(found, Mapping):
            raise self.refused(name, "nothing" if found is None else repr(found), "a section")
        return Fields(self.file, self._dotted(name), found, self.lines)

    def close(self, remedy: str) -> None:
        """Refuse what is left.

        Raises:
            ConfigError: the first field that was not asked for.
        """
        for name in self.values:
            if name not in self.seen:
                raise ConfigError(
                    f"{self.file}: {self._dotted(name)} is no setting that Crest can translate "
                    f"(found {self.values[name]!r}); {remedy}."
                )

    def refused(self, name: str, found: str, expected: str) -> ConfigError:
        """The sentence that refuses a value."""
        return ConfigError(
            f"{self.file}: {self._dotted(name)}: found {found}, expected {expected}; change it there."
        )

    def number(self, name: str, to: str, default: Any = None, *, as_is: bool = True) -> Any:
        """`take`, for a number.

        Raises:
            ConfigError: something else.
        """
        value = self.take(name, to, default, as_is=as_is)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise self.refused(name, repr(value), "a number")
        return value

    def _line(self, name: str, fate: str, translated: bool) -> None:
        self.lines.append(Line(self._dotted(name), fate, translated))

    def _dotted(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name
