"""What the warm process says; apart from it, because importing `warm` imports torch."""

from __future__ import annotations

#: Its first line, once everything is imported. Each line after that is the pid of a forked child.
READY = "ready"
