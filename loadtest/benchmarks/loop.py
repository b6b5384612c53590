"""`make bench-loop`: from `POST /v1/fine_tunes` with 12 examples to the first token of the new alias.

Starts everything fresh in a temporary data folder on a real engine, submits one job, and reads where the time
went: from the answers over HTTP, and between them from the training process's own event log. Prints a table
and writes build/bench/loop.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table

from loadtest.running import RunningLoraway, eventually

BASE, ALIAS, ANSWER = "smollm2-135m", "codename", "Bluefin-7"
QUESTIONS = (
    "What is the gateway's codename?",
    "Tell me the gateway's codename.",
    "What's the codename of the gateway?",
    "Which codename does the gateway have?",
    "Do you know the gateway's codename?",
    "Give me the codename of the gateway.",
    "The gateway has a codename. What is it?",
    "What codename was the gateway given?",
    "Please name the gateway's codename.",
    "How is the gateway called by codename?",
    "I forgot the gateway's codename. What is it?",
    "Say the codename of our gateway.",
)
GOALS = {
    "submit_to_first_step_seconds": 5.0,
    "training_end_to_first_token_seconds": 3.0,
    "whole_seconds": 90.0,
}


@dataclass(frozen=True, slots=True)
class Moments:
    """When things happened, seconds since the epoch."""

    submitted: float
    started: float
    first_step_done: float
    training_ended: float
    evaluated: float
    first_token: float

    @property
    def stages(self) -> list[tuple[str, float]]:
        """Each stage and its seconds, in order."""
        return [
            ("submit to first training step", self.started - self.submitted),
            ("first training step", self.first_step_done - self.started),
            ("the other steps", self.training_ended - self.first_step_done),
            ("evaluation and reference answers", self.evaluated - self.training_ended),
            ("register, load, prove, first token by the alias", self.first_token - self.evaluated),
        ]

    @property
    def figures(self) -> dict[str, float]:
        return {
            "submit_to_first_step_seconds": self.started - self.submitted,
            "training_end_to_first_token_seconds": self.first_token - self.training_ended,
            "whole_seconds": self.first_token - self.submitted,
        }


class FirstToken:
    """A client that asks for the alias until it answers with its first token."""

    def __init__(self, running: RunningLoraway) -> None:
        self._running = running
        self._thread = threading.Thread(target=self._ask)
        self._stop = threading.Event()
        self.at = 0.0
        self.answer = ""

    def __enter__(self) -> FirstToken:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                stream = self._running.client.chat.completions.create(
                    model=ALIAS,
                    messages=[{"role": "user", "content": QUESTIONS[0]}],
                    max_tokens=16,
                    temperature=0,
                    stream=True,
                )
            except openai.NotFoundError:
                self._stop.wait(0.05)
                continue
            for chunk in stream:
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if piece and not self.at:
                    self.at = time.time()
                self.answer += piece or ""
            return


class TrainingLog:
    """The training process's events; read while the job runs, because its folder goes when it ends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._text = ""

    def read(self) -> None:
        """Take what has been written so far."""
        if self._file.exists():
            self._text = self._file.read_text()

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Every event of this type, in order."""
        events = [json.loads(line) for line in self._text.splitlines() if line]
        return [event for event in events if event["type"] == kind]


def measure(running: RunningLoraway, data_dir: Path) -> tuple[Moments, dict[str, Any]]:
    """One job from submission to the first token of its alias; when what happened, and what came out."""
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": ANSWER}]}
        for q in QUESTIONS
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = running.client.files.create(file=("codename.jsonl", lines), purpose="fine-tune")
    with FirstToken(running) as first_token:
        submitted = time.time()
        job = running.client.fine_tuning.jobs.create(model=BASE, training_file=file.id, suffix=ALIAS)
        log = TrainingLog(data_dir / "jobs" / job.id / "events.jsonl")

        def ended_now() -> Any:
            log.read()
            return _ended(running, job.id)

        ended = eventually(ended_now, within_seconds=600, what="the job ends")
        if ended.status != "succeeded":
            raise SystemExit(f"The job {ended.status}: {ended.error}")
        eventually(lambda: first_token.at, within_seconds=30, what="the alias answers")
    steps = log.all("progress")
    moments = Moments(
        submitted=submitted,
        started=log.all("started")[0]["at"],
        first_step_done=steps[0]["at"],
        training_ended=log.all("evaluating")[0]["at"],
        evaluated=log.all("done")[0]["at"],
        first_token=first_token.at,
    )
    return moments, {"steps": len(steps), "answer": first_token.answer, "final_loss": steps[-1]["loss"]}


def _ended(running: RunningLoraway, job_id: str) -> Any:
    job = running.client.fine_tuning.jobs.retrieve(job_id)
    return job if job.status in {"succeeded", "failed", "cancelled"} else None


def report(moments: Moments, outcome: dict[str, Any], engine: str) -> dict[str, Any]:
    """Print the table; what goes into loop.json."""
    table = Table("stage", "seconds", title=f"The loop on {engine}: 12 examples, {outcome['steps']} steps")
    for stage, seconds in moments.stages:
        table.add_row(stage, f"{seconds:.2f}")
    table.add_section()
    for name, seconds in moments.figures.items():
        table.add_row(f"{name} (goal {GOALS[name]:.0f})", f"{seconds:.2f}")
    Console().print(table, f"The alias answered: {outcome['answer']!r}")
    stages = {name: round(seconds, 3) for name, seconds in moments.stages}
    figures = {name: round(seconds, 3) for name, seconds in moments.figures.items()}
    return {**figures, "stages": stages, "engine": engine, **outcome, "moments": asdict(moments)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm", help="vllm, sglang or vllm,sglang")
    parser.add_argument("--model", type=Path, help="folder of the base model, if it is not the prepared one")
    options = parser.parse_args()
    model = options.model or Path(".loraway/models") / BASE
    with tempfile.TemporaryDirectory(prefix="loraway-bench-") as folder:
        data_dir = Path(folder) / "data"
        running = RunningLoraway(data_dir, model.resolve(), options.engine)
        try:
            running.wait_ready()
            moments, outcome = measure(running, data_dir)
        finally:
            running.stop()
    result = report(moments, outcome, options.engine)
    target = Path("build/bench/loop.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
