"""Telling a process from a later one with the same number, and how it ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from finetune.trainers.spec import write_whole

_STATE, _START_TIME = 0, 19  # fields of /proc/PID/stat after the command's name (man 5 proc)
_ZOMBIE_OR_DEAD = "ZXx"


class ProcessIdentity(BaseModel):
    """A process of this machine: its number, and when it began, in clock ticks since the machine did."""

    model_config = ConfigDict(frozen=True)

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process with this number; None when there is none or it is only waiting to be reaped."""
        fields = _read_stat(pid)
        if fields is None or fields[_STATE] in _ZOMBIE_OR_DEAD:
            return None
        return cls(pid=pid, start_ticks=int(fields[_START_TIME]), boot_id=_boot_id())

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self

    def write(self, job_folder: Path) -> None:
        write_whole(job_folder / "process.json", self.model_dump_json())

    @classmethod
    def read(cls, job_folder: Path) -> Self | None:
        """Who last took the job up; alive or not."""
        try:
            return cls.model_validate_json((job_folder / "process.json").read_text())
        except FileNotFoundError:
            return None


class ExitNote(BaseModel):
    """How a training process ended, as its parent saw it: `exit.json`."""

    model_config = ConfigDict(frozen=True)

    pid: int
    #: As `os.waitstatus_to_exitcode` has it: negative for a signal.
    exit_code: int

    def write(self, job_folder: Path) -> None:
        write_whole(job_folder / "exit.json", self.model_dump_json())

    @classmethod
    def read(cls, job_folder: Path, pid: int) -> Self | None:
        """How the process with this number ended, if its parent lived to see it."""
        try:
            note = cls.model_validate_json((job_folder / "exit.json").read_text())
        except FileNotFoundError:
            return None
        return note if note.pid == pid else None

    def __str__(self) -> str:
        if self.exit_code >= 0:
            return f"exit status {self.exit_code}"
        name = signal.Signals(-self.exit_code).name
        hint = ", as the kernel does when memory runs out" if self.exit_code == -signal.SIGKILL else ""
        return f"killed by {name}{hint}"


def _read_stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def own_identity() -> ProcessIdentity:
    """This process."""
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    return identity
