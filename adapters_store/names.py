"""Names of adapters and versions: `codename`, `codename@3`."""

from __future__ import annotations

import re

from loraway.errors import InvalidRequest

#: No colon: SGLang splits on it. No `@`: it separates the version's number. No slash: it becomes a folder.
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_VERSION_PATTERN = re.compile(rf"({NAME_PATTERN.pattern})@([1-9][0-9]{{0,8}})")


def check_name(name: str, *, param: str) -> str:
    """The name itself. Raises InvalidRequest when it is not an adapter's name."""
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidRequest(
            f"{name[:80]!r} is not a valid adapter name: use 1 to 64 lower-case letters, digits, '.', '_' "
            "or '-', beginning with a letter or digit.",
            param=param,
        )
    return name


def split_version_name(name: str) -> tuple[str, int] | None:
    """`codename@3` as name and number; None when it is not a version's name."""
    match = _VERSION_PATTERN.fullmatch(name)
    return (match[1], int(match[2])) if match else None
