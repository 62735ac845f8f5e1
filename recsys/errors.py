"""The errors that a user sees: what was expected, what was found, where, and what to do."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_REFUSED = 3


class UserError(Exception):
    """A mistake or condition that the user can act on; shown without a traceback.

    Args:
        message: One sentence that says what went wrong.
        expected: What was expected.
        found: What was found instead.
        where: File, row, column or field.
        fix: What to do next.
        exit_code: Exit code of the command line (1 failed, 2 wrong use, 3 refused by a gate).
    """

    def __init__(
        self,
        message: str,
        *,
        expected: str = "",
        found: str = "",
        where: str = "",
        fix: str = "",
        exit_code: int = EXIT_FAILED,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.found = found
        self.where = where
        self.fix = fix
        self.exit_code = exit_code

    def __str__(self) -> str:
        rows = [self.message]
        for name in ("where", "expected", "found", "fix"):
            value = getattr(self, name)
            if value:
                rows.append(f"  {name + ':':<10}{value}")
        return "\n".join(rows)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (Beam workers, Ray actors), so they must pickle whole.
        return (_rebuild, (type(self), self.message, self.fields()))

    def fields(self) -> dict[str, object]:
        """The keyword arguments that rebuild this error."""
        names = ("expected", "found", "where", "fix", "exit_code")
        return {name: getattr(self, name) for name in names}


_BEFORE_THE_CAUSE = ("Graph execution error:", "Detected at node", "<stack traces", "File ")
"""How lines begin that TensorFlow puts above what went wrong within a graph."""


def first_line(error: BaseException) -> str:
    """What an error says in one line; its kind where it says nothing.

    >>> first_line(ValueError("no number\\nat line 3")), first_line(TimeoutError())
    ('no number', 'TimeoutError')
    >>> first_line(OSError("Graph execution error:\\n\\nDetected at node a\\nb; No such file"))
    'b; No such file'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(_BEFORE_THE_CAUSE)]
    return (told or lines or [type(error).__name__])[0]


def kind_and_line(error: BaseException) -> str:
    """As `first_line`, after the kind of the error: for those whose words alone say little."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OF_RIGHTS = (errno.EACCES, errno.EPERM)
OF_WRITING = _OF_THE_DISK + _OF_RIGHTS
"""Numbers of the system's errors by which it refuses to write."""

_FULL = "Free space or choose another folder; nothing half-written was left."
_RIGHTS = "Let this user read it, or write where it is an output."
_IN_THE_WAY = "Name another output."
_ADVICE = {
    **dict.fromkeys(_OF_THE_DISK, _FULL),
    **dict.fromkeys(_OF_RIGHTS, _RIGHTS),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), _IN_THE_WAY),
}


def of_system(error: OSError, where: str | Path = "while writing") -> UserError | None:
    """What the operating system refused as an error of the user, where the user can act on it.

    Args:
        error: Of the system.
        where: The place to name, if the error names none.

    Returns:
        The error to show, or None: then it is a fault of the program.
    """
    number = error.errno or 0
    if number not in _ADVICE:
        return None
    message = os.strerror(number)
    if _ADVICE[number] == _IN_THE_WAY:
        message = "A file stands where a folder is needed."
    return UserError(message, where=str(error.filename or where), fix=_ADVICE[number])


def _rebuild(kind: type[UserError], message: str, fields: dict[str, object]) -> UserError:
    return kind(message, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fault:
    """One fault of a spec: its place (`spec.yaml:12 features[3].encode`) and what to do."""

    where: str
    message: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class SpecError(UserError):
    """A spec with one or more faults, all of them listed."""

    def __init__(self, path: str, faults: list[Fault]) -> None:
        self.path = path
        self.faults = faults
        count = f"{len(faults)} fault{'s' if len(faults) != 1 else ''}"
        lines = "\n".join(f"  {fault}" for fault in faults)
        super().__init__(f"{path} has {count}:\n{lines}", exit_code=EXIT_WRONG_USE)

    def __reduce__(self) -> tuple[object, ...]:
        return (SpecError, (self.path, self.faults))
