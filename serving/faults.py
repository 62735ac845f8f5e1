"""What a caller of the endpoint did wrong, as a value that becomes an HTTP answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from recsys.errors import UserError

SHOWN_FAULTS = 20
"""Faults that one answer explains; a body of thousands of candidates can have thousands."""


@dataclass(frozen=True)
class BodyFault:
    """One fault of a request body: its place (`candidates[3].features.price`) and what it is."""

    where: str
    message: str
    expected: str = ""
    found: str = ""
    fix: str = ""


@dataclass
class Faults:
    """Faults of one body: the first `SHOWN_FAULTS` explained, all counted."""

    shown: list[BodyFault] = field(default_factory=list)
    count: int = 0

    def add(self, faults: Iterable[BodyFault], count: int) -> None:
        """Count so many more, and take of them what is still to be shown.

        Args:
            faults: Explained as they are asked for.
            count: How many there are.
        """
        self.shown += islice(faults, SHOWN_FAULTS - len(self.shown))
        self.count += count


class RequestError(UserError):
    """A request that is refused, with the HTTP status of the refusal."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        expected: str = "",
        found: str = "",
        where: str = "",
        fix: str = "",
        faults: tuple[BodyFault, ...] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, expected=expected, found=found, where=where, fix=fix)
        self.status = status
        self.faults = faults
        self.headers = headers or {}

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.status, self.message, self.fields(), self.faults, self.headers))

    @classmethod
    def of(cls, faults: Faults) -> RequestError:
        """The error of one or more faults: the first in the fields, all that are shown listed."""
        first = faults.shown[0]
        message = first.message
        if faults.count > 1:
            message = f"The request has {faults.count} faults; the first: {first.message}"
        return cls(
            422,
            message,
            expected=first.expected,
            found=first.found,
            where=first.where,
            fix=first.fix,
            faults=tuple(faults.shown),
        )

    def body(self) -> dict[str, Any]:
        """The answer's JSON body."""
        error: dict[str, Any] = error_fields(self)
        if len(self.faults) > 1:
            error["faults"] = [{"where": f.where, "message": f.message} for f in self.faults]
        return {"error": error}


def _rebuild(
    status: int,
    message: str,
    fields: dict[str, Any],
    faults: tuple[BodyFault, ...],
    headers: dict[str, str],
) -> RequestError:
    fields.pop("exit_code", None)
    return RequestError(status, message, faults=faults, headers=headers, **fields)


def error_fields(error: UserError) -> dict[str, str]:
    """The five fields that each error answer has."""
    return {
        "message": error.message,
        "expected": error.expected,
        "found": error.found,
        "where": error.where,
        "fix": error.fix,
    }
