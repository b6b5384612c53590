"""The folders that jobs work in, below `<data_dir>/jobs`; gone once the job has ended, but for its log."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy import select

from finetune.jobs.states import JobState
from loraway.database import Database
from loraway.ids import JobId
from loraway.schema import jobs


class JobFolders:
    """Owns the jobs' folders of this machine."""

    def __init__(self, root: Path, logs_dir: Path) -> None:
        self._root, self._logs_dir = root, logs_dir / "jobs"

    def make(self, job_id: JobId) -> Path:
        """The job's folder; it may hold what an earlier trainer left."""
        folder = self._root / job_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove(self, job_id: JobId) -> None:
        """Delete the job's folder; what its process printed is kept in the logs' folder."""
        folder = self._root / job_id
        log = folder / "train.log"
        if log.exists() and log.stat().st_size:
            self._logs_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, self._logs_dir / f"{job_id}.log")
        shutil.rmtree(folder, ignore_errors=True)

    def remove_ended(self, database: Database) -> None:
        """Delete the folders of jobs that have ended, which a killed trainer could not."""
        if not self._root.is_dir():
            return
        here = [path.name for path in self._root.iterdir()]
        ended = [state for state in JobState if state.is_terminal]
        with database.read() as connection:
            found = select(jobs.c.id).where(jobs.c.id.in_(here), jobs.c.status.in_(ended))
            for job_id in connection.execute(found).scalars().all():
                self.remove(JobId(job_id))
