"""A training process from the inside: takes the job's lock, trains, and says how it ended.

`python -m finetune.trainers.process JOB_FOLDER` runs one alone; usually it is forked from the warm process.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.executors.process_identity import own_identity
from finetune.trainers.base_model import LoadedBase, NothingToTrainOn, load_base
from finetune.trainers.chat import TemplateMismatch
from finetune.trainers.completion import UnsupportedModel
from finetune.trainers.completion_trainer import LossNotFinite
from finetune.trainers.protocol import Done, EventWriter, Failed, Message
from finetune.trainers.spec import EXIT_INTERRUPTED, EXIT_LOCKED, TrainingSpec
from finetune.trainers.supervised import Interrupted, train_supervised

#: The methods, each a file of this package.
METHODS = {"supervised": train_supervised}

#: Errors that say themselves what the user should know, and the code they get.
_KNOWN_ERRORS: dict[type[Exception], str] = {
    LossNotFinite: "loss_not_finite",
    TemplateMismatch: "template_mismatch",
    NothingToTrainOn: "nothing_to_train_on",
    UnsupportedModel: "unsupported_model",
    MemoryError: "out_of_memory",
    torch.OutOfMemoryError: "out_of_memory",
}

FINISHED, FAILED = 0, 1

LoadBase = Callable[[TrainingSpec], LoadedBase]


@dataclass(slots=True)
class StopRequest:
    """Set by SIGTERM; training looks at it after each step, writes a checkpoint and ends."""

    is_made: bool = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "is_made", True))


def load_from_spec(spec: TrainingSpec) -> LoadedBase:
    """The base model that the spec names."""
    return load_base(spec.model_path, spec.training_dtype, spec.device)


def run(job_folder: Path, load: LoadBase = load_from_spec) -> int:
    """Train the job in this folder to its end; returns the exit status.

    The lock makes two processes on one job impossible, whoever starts them; it is let go by the kernel
    when this process ends, however it ends.
    """
    stop = StopRequest()
    stop.listen()
    lock = os.open(job_folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return EXIT_LOCKED
    own_identity().write(job_folder)
    events = EventWriter(job_folder)
    try:
        spec = TrainingSpec.read(job_folder)
        torch.set_num_threads(spec.threads)
        METHODS[spec.method](spec, job_folder, load(spec), events, stop)
        events.write(Done())
        return FINISHED
    except Interrupted as interruption:
        events.write(Message(text=f"Training paused at step {interruption.step}."))
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the process's outermost edge: logged and reported
        traceback.print_exc()
        code = next((c for kind, c in _KNOWN_ERRORS.items() if isinstance(error, kind)), "training_failed")
        events.write(Failed(code=code, message=str(error) or type(error).__name__))
        return FAILED
    finally:
        events.close()


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
