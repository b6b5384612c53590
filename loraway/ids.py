"""Time-ordered ids with OpenAI's prefixes.

An id is its prefix and 26 characters of Crockford base32: 48 bits of milliseconds, then 80 random bits
(the ULID layout, https://github.com/ulid/spec). Ids made later sort later; within one millisecond of one
process they still do, because the random part is then counted up.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NewType

ProjectId = NewType("ProjectId", str)
KeyId = NewType("KeyId", str)
FileId = NewType("FileId", str)
DatasetId = NewType("DatasetId", str)
JobId = NewType("JobId", str)
AdapterId = NewType("AdapterId", str)
VersionId = NewType("VersionId", str)
ReplicaId = NewType("ReplicaId", str)
RolloutId = NewType("RolloutId", str)
CompletionId = NewType("CompletionId", str)
FeedbackId = NewType("FeedbackId", str)

#: What each kind of object's id begins with.
PROJECT, KEY, FILE, DATASET = "proj_", "key_", "file-", "dataset-"
JOB, EVENT, CHECKPOINT = "ftjob-", "ftevent-", "ftckpt-"
ADAPTER, VERSION, REPLICA, ROLLOUT = "adapter-", "version-", "replica-", "rollout-"
COMPLETION, REQUEST, FEEDBACK = "chatcmpl-", "req_", "feedback-"

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
#: Two characters for each ten bits: half as many steps.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = tuple(range(120, -1, -10))
_RANDOM_BITS = 80


class IdSource:
    """Makes ids; owns the last one made, guarded by a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def new(self, prefix: str) -> str:
        """The next id, `prefix` and 26 characters; always greater than the one before it."""
        fresh = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | int.from_bytes(os.urandom(10), "big")
        with self._lock:
            self._last = max(fresh, self._last + 1)
            number = self._last
        return prefix + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


_SOURCE = IdSource()


def new_id(prefix: str) -> str:
    """A new time-ordered id with this prefix."""
    return _SOURCE.new(prefix)
