"""The errors that a user can cause, each one sentence: where, what was found, what was expected, what to do.

CrestError
├── ConfigError    a setting is unknown, of a wrong type, or does not fit another one
├── DataError      an input file or folder is missing, empty, broken or of another make
├── FetchError     the network or a site did not give what was asked for
├── WeightsError   weights are of another architecture, another parent or damaged
├── DeviceError    the machine lacks what was asked of it (CUDA, memory, disk)
└── RunError       a run cannot start, go on or be trusted (other config, non-finite loss)

`python -m <room>` prints a CrestError bare and exits with 1; anything else is our own mistake and keeps its
traceback.
"""

from __future__ import annotations


class CrestError(Exception):
    """Base of every error that tells the user what to do."""


class ConfigError(CrestError):
    """A setting is unknown, of a wrong type, or does not fit another one."""


class DataError(CrestError):
    """An input file or folder is missing, empty, broken or of another make."""


class FetchError(CrestError):
    """The network or a site did not give what was asked for."""


class WeightsError(CrestError):
    """Weights are of another architecture, another parent or damaged."""


class DeviceError(CrestError):
    """The machine lacks what was asked of it."""


class RunError(CrestError):
    """A run cannot start, go on or be trusted."""
