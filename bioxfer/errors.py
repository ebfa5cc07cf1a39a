"""The exceptions of bioxfer.

Every error that a user can cause or mend is one of these; its message is one
sentence that names the value, the place and the remedy. The command line shows
that sentence and exits with ``exit_code``; anything else that rises is a bug.
`UsageError` and `InputError` are ``ValueError`` too, which scikit-learn expects.

::

    BioxferError
    ├── UsageError             options that contradict each other or are out of range
    │   └── MissingExtraError  an optional package is needed
    ├── InputError             a file or a record of the user's
    │   ├── FormatError        the file is not what it should be
    │   ├── SequenceError      a sequence cannot be used as it stands
    │   ├── DuplicateIdError   two records carry one id
    │   └── LabelError         labels and records do not fit
    ├── ModelError             a backbone or a head
    │   ├── UnknownModelError  no such name
    │   ├── WeightsError       a weights file is damaged, foreign or unsafe
    │   ├── HeadFileError      a head file is damaged or foreign
    │   ├── FingerprintError   a head meets a backbone that is not its own
    │   └── OfflineError       the network is needed and forbidden
    ├── OutputError            the result cannot be written
    └── WorkerError            processes that share the work cannot go on
"""

from __future__ import annotations

import re

__all__ = [
    "BioxferError",
    "DuplicateIdError",
    "FingerprintError",
    "FormatError",
    "HeadFileError",
    "InputError",
    "LabelError",
    "MissingExtraError",
    "ModelError",
    "OfflineError",
    "OutputError",
    "SequenceError",
    "UnknownModelError",
    "UsageError",
    "WeightsError",
    "WorkerError",
]

_LONGEST = 900  # characters of a message: a dozen lines of a terminal
_WHITE = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # the last turn the order of a line


def _one_sentence(message: str) -> str:
    line = _WHITE.sub(" ", message)
    line = _CONTROL.sub(lambda found: ascii(found.group())[1:-1], line)
    if len(line) <= _LONGEST:
        return line
    # the place stands at the beginning, and the remedy at the end
    return f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 + 5 :]}"


class BioxferError(Exception):
    """Root of all errors that bioxfer raises on purpose.

    Parameters
    ----------
    message : str
        One sentence. What it quotes from a file may hold anything: line ends become blanks, other control
        characters are escaped, so that none reaches a terminal, and a very long text loses its middle.
    """

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(_one_sentence(message))


class UsageError(BioxferError, ValueError):
    """Options that contradict each other or are out of range."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional package is needed; the message holds the install command."""


class InputError(BioxferError, ValueError):
    """A file or record of the user's cannot be used."""


class FormatError(InputError):
    """A file is not in the format it should be in."""


class SequenceError(InputError):
    """A sequence cannot be used as it stands."""


class DuplicateIdError(InputError):
    """Two records carry the same id."""


class LabelError(InputError):
    """Labels and records do not fit together."""


class ModelError(BioxferError):
    """A backbone or a head cannot be used."""


class UnknownModelError(ModelError):
    """No backbone or head has this name."""


class WeightsError(ModelError):
    """A weights file is damaged, foreign or unsafe."""


class HeadFileError(ModelError):
    """A head file is damaged or foreign."""


class FingerprintError(ModelError):
    """A head was trained on another backbone, layer or pooling."""


class OfflineError(ModelError):
    """The network is needed, and forbidden."""


class OutputError(BioxferError):
    """The result cannot be written."""


class WorkerError(BioxferError):
    """Processes that share the work cannot go on."""
