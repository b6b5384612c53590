"""The right to write to a running job: held by one trainer, for a while, under a number that only grows.

Clocks of the machines that run trainers must agree to well under `trainer.lease_seconds`.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraway.errors import Conflict
from loraway.ids import JobId


class LeaseLost(Conflict):
    """Another trainer has taken this job over, or it has ended."""

    code = "lease_lost"


@dataclass(frozen=True, slots=True)
class Lease:
    """What `JobStore.claim` gives out and every write to the job must show.

    Who claims a job whose lease ran out gets a higher token; a write with a lower one changes nothing.
    """

    job_id: JobId
    owner: str
    token: int
