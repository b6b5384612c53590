"""A job's events survive torn lines, and are handed out once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from finetune.executors.process_identity import ExitNote, ProcessIdentity, own_identity
from finetune.trainers.protocol import (
    EVENTS_NAME,
    EventReader,
    EventWriter,
    Message,
    Started,
    log_tail,
    starts_without_progress,
)


def _write(folder: Path, *texts: str) -> None:
    writer = EventWriter(folder)
    for text in texts:
        writer.write(Message(text=text))
    writer.close()


def _texts(reader: EventReader) -> list[str]:
    return [event.text for event in reader.read_new() if event.type == "message"]


def test_each_event_is_handed_out_once_and_from_an_offset_on(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert _texts(reader) == []

    _write(tmp_path, "one", "two")
    assert _texts(reader) == ["one", "two"]
    _write(tmp_path, "three")

    assert _texts(EventReader(tmp_path, reader.offset)) == ["three"]
    assert _texts(reader) == ["three"]
    assert _texts(reader) == []


def test_an_event_that_is_not_taken_is_handed_out_again(tmp_path: Path) -> None:
    _write(tmp_path, "one", "two")
    reader = EventReader(tmp_path)

    for _event in reader.read_new():
        break  # as when the database does not answer

    assert _texts(reader) == ["one", "two"]


def test_a_line_torn_by_a_kill_is_skipped(tmp_path: Path) -> None:
    _write(tmp_path, "one")
    with open(tmp_path / EVENTS_NAME, "ab") as file:
        file.write(b'{"type":"message","te')
    reader = EventReader(tmp_path)
    assert _texts(reader) == ["one"]

    _write(tmp_path, "two")

    assert _texts(reader) == ["two"]


def test_starts_are_counted_since_the_last_step_forward(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for step in (0, 0, 10):
        writer.write(Started(pid=1, from_step=step, total_steps=20))
    assert starts_without_progress(tmp_path) == 1

    writer.write(Started(pid=1, from_step=10, total_steps=20))

    assert starts_without_progress(tmp_path) == 2
    writer.close()


def test_the_end_of_the_log_is_what_an_error_shows(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("".join(f"line {number}\n\n" for number in range(5000)))

    assert log_tail(tmp_path, lines=2) == "line 4998\nline 4999"


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    identity = own_identity()
    later = identity.model_copy(update={"start_ticks": identity.start_ticks + 1})

    assert identity.is_alive()
    assert not later.is_alive()


def test_a_process_that_waits_to_be_reaped_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None and identity.is_alive()

    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass

    assert not identity.is_alive()
    child.wait()


def test_an_end_by_signal_is_named(tmp_path: Path) -> None:
    ExitNote(pid=7, exit_code=-9).write(tmp_path)

    note = ExitNote.read(tmp_path, 7)
    assert str(note) == "killed by SIGKILL, as the kernel does when memory runs out"
    assert ExitNote.read(tmp_path, 8) is None
