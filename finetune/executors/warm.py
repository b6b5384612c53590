"""The warm process: has everything imported and the base model read, and forks a child for each job.

    python -m finetune.executors.warm [MODEL_FOLDER DTYPE]

Takes a job's folder a line on stdin, answers with the child's pid on stdout, notes in the folder how the
child ended, and ends itself when stdin does; children go on. Importing torch, transformers, TRL and PEFT
takes seconds, a fork milliseconds. It has one thread and never touches a GPU: neither survives a fork.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import sys
import traceback
from pathlib import Path

import torch
from pydantic import TypeAdapter
from transformers.utils import logging as transformers_logging

from finetune.executors.process_identity import ExitNote
from finetune.executors.warm_protocol import READY
from finetune.trainers import process
from finetune.trainers.base_model import LoadedBase, load_base
from finetune.trainers.spec import Dtype, TrainingSpec

#: Imported by the libraries only when a job gets to them; here they come before the fork.
_LATE_IMPORTS = (
    "accelerate.data_loader",
    "peft.tuners.lora.model",
)

#: Served requests come first, and when memory runs out, training goes before the engine does.
_NICENESS = 5
_OOM_SCORE = 500


class WarmProcess:
    """Owns the preloaded base model and the children that have not been reaped."""

    def __init__(self, model_path: Path | None, dtype: Dtype) -> None:
        self._model_path, self._dtype = model_path, dtype
        self._preloaded: LoadedBase | None = None
        self._folders: dict[int, Path] = {}

    def serve(self) -> None:
        """Fork on request until stdin ends."""
        self._warm_up()
        child_ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle; it closes stdin
        print(READY, flush=True)
        pending = b""
        while True:
            readable, _, _ = select.select([0, child_ended], [], [])
            if child_ended in readable:
                os.read(child_ended, 4096)
                self._reap()
            if 0 in readable:
                received = os.read(0, 65536)
                if not received:
                    return
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    print(self._fork(Path(os.fsdecode(line))), flush=True)

    def _warm_up(self) -> None:
        torch.set_num_threads(1)
        transformers_logging.disable_progress_bar()  # its monitor is a thread
        for name in _LATE_IMPORTS:
            importlib.import_module(name)
        if self._model_path is not None:
            self._preloaded = load_base(self._model_path, self._dtype, "cpu")
        gc.collect()
        gc.freeze()  # objects that are never collected keep their pages shared with the children

    def _load(self, spec: TrainingSpec) -> LoadedBase:
        wanted = (spec.model_path, spec.training_dtype, spec.device)
        if self._preloaded is not None and wanted == (self._model_path, self._dtype, "cpu"):
            return self._preloaded
        return process.load_from_spec(spec)

    def _fork(self, job_folder: Path) -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(self._run_child(job_folder))
        self._folders[pid] = job_folder
        return pid

    def _run_child(self, job_folder: Path) -> int:
        """In the child: a session of its own, its output into the job's log, then training."""
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for name in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(name, signal.SIG_DFL)
            _redirect_output(job_folder / "train.log")
            os.nice(_NICENESS)
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
            return process.run(job_folder, self._load)
        except BaseException:  # noqa: BLE001 - nothing may unwind into the parent's loop
            traceback.print_exc()
            return process.FAILED
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def _reap(self) -> None:
        while self._folders:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            folder = self._folders.pop(pid)
            if folder.is_dir():  # a cancelled job's folder may be gone
                ExitNote(pid=pid, exit_code=os.waitstatus_to_exitcode(status)).write(folder)


def _redirect_output(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)


def main(arguments: list[str]) -> None:
    model_path, dtype = (Path(arguments[0]), arguments[1]) if arguments else (None, "float32")
    WarmProcess(model_path, TypeAdapter(Dtype).validate_python(dtype)).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
