"""Is this training file right? Line by line, in constant memory, with a reason for each line that is not."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

MAX_LINE_BYTES = 4 << 20
#: Bad lines beyond these are only counted.
REPORTED_LINES = 100

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class InvalidExample(ValueError):
    """Says what is wrong with one line."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no example; `number` counts from 1, blank lines included."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a file holds."""

    example_count: int
    #: The first `REPORTED_LINES` of them.
    bad_lines: tuple[BadLine, ...]
    bad_line_count: int

    @property
    def is_valid(self) -> bool:
        return self.bad_line_count == 0 and self.example_count > 0

    @property
    def summary(self) -> str:
        """What is wrong, for people: how many lines, then each of them."""
        if self.bad_line_count == 0:
            return "" if self.example_count else "The file holds no examples."
        noun = "line is" if self.bad_line_count == 1 else "lines are"
        more = self.bad_line_count - len(self.bad_lines)
        tail = f"\n... and {more} more" if more else ""
        return f"{self.bad_line_count} {noun} not valid:\n" + "\n".join(map(str, self.bad_lines)) + tail


@dataclass(slots=True)
class LineSplitter:
    """Cuts a stream of bytes into lines (`\\n`, `\\r\\n` or `\\r`) whatever the chunks' borders.

    Owns at most one line; one longer than `max_line_bytes` comes out as None, and is not kept.
    """

    max_line_bytes: int = MAX_LINE_BYTES
    _pending: bytearray = field(default_factory=bytearray)
    _is_too_long: bool = False
    _ended_with_cr: bool = False

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """The lines that end in this chunk, without their ends."""
        if chunk and self._ended_with_cr:
            chunk = chunk.removeprefix(b"\n")  # the first half of this line end was taken as one already
            self._ended_with_cr = False
        if not chunk:
            return
        self._ended_with_cr = chunk.endswith(b"\r")
        *whole, last = chunk.splitlines(keepends=True)
        for piece in whole:
            self._append(piece)
            yield self._take()
        self._append(last)
        if last.endswith((b"\n", b"\r")):
            yield self._take()

    def finish(self) -> Iterator[bytes | None]:
        """The last line, when the stream did not end with a line end."""
        if self._pending or self._is_too_long:
            yield self._take()

    def _append(self, piece: bytes) -> None:
        if len(self._pending) + len(piece.rstrip(b"\r\n")) > self.max_line_bytes:
            self._is_too_long = True
            self._pending.clear()
        elif not self._is_too_long:
            self._pending += piece

    def _take(self) -> bytes | None:
        line = None if self._is_too_long else bytes(self._pending).rstrip(b"\r\n")
        self._pending.clear()
        self._is_too_long = False
        return line


class FileValidator:
    """Takes a training file in chunks; knows at the end what it holds."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._splitter = LineSplitter(max_line_bytes)
        self._number = 0
        self._examples = 0
        self._bad: list[BadLine] = []
        self._bad_count = 0

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        for line in self._splitter.feed(chunk):
            self._check(line)

    def finish(self) -> FileReport:
        """The report, once every byte was fed."""
        for line in self._splitter.finish():
            self._check(line)
        return FileReport(self._examples, tuple(self._bad), self._bad_count)

    def _check(self, line: bytes | None) -> None:
        self._number += 1
        try:
            if line is None:
                limit = self._splitter.max_line_bytes
                raise InvalidExample(f"longer than {limit} bytes; split the example")
            if self._number == 1:
                line = _without_bom(line)
            if line.strip():
                parse_example(line)
                self._examples += 1
        except InvalidExample as error:
            self._bad_count += 1
            if len(self._bad) < REPORTED_LINES:
                self._bad.append(BadLine(self._number, str(error)))


def read_examples(source: BinaryIO) -> Iterator[dict[str, Any]]:
    """The examples of a file, in order, in constant memory. Raises InvalidExample at the first bad line."""
    is_first = True
    for line in _lines(source):
        if line is None:
            raise InvalidExample(f"a line is longer than {MAX_LINE_BYTES} bytes")
        line, is_first = (_without_bom(line) if is_first else line), False
        if line.strip():
            yield parse_example(line)


def parse_example(line: bytes) -> dict[str, Any]:
    """One line as a chat example. Raises InvalidExample."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidExample(f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    try:
        example = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidExample(f"not JSON at column {error.colno}: {error.msg.split(':')[0]}") from error
    if not isinstance(example, dict):
        raise InvalidExample(f"must be an object with 'messages', not {_kind(example)}")
    check_example(example)
    return example


def check_example(example: Mapping[str, Any]) -> None:
    """Raise InvalidExample unless this is a chat that supervised training can learn from."""
    messages = example.get("messages")
    if messages is None:
        hint = " (the prompt/completion form is not taken)" if "prompt" in example else ""
        raise InvalidExample(f"'messages' is missing{hint}")
    if not isinstance(messages, list) or not messages:
        raise InvalidExample("'messages' must be a list of at least one message")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        raise InvalidExample("there is no message before the assistant's answer")
    if messages[-1]["role"] != "assistant":
        raise InvalidExample(f"the last message must be the assistant's, not {messages[-1]['role']!r}")
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise InvalidExample("every assistant message has weight 0: there is nothing to learn")
    tools = example.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise InvalidExample("'tools' must be a list of objects")


def _check_message(message: object, place: str) -> None:
    if not isinstance(message, dict):
        raise InvalidExample(f"{place} must be an object, not {_kind(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise InvalidExample(f"{place}.role is {str(role)[:40]!r}; roles are {', '.join(ROLES)}")
    has_calls = role == "assistant" and bool(message.get("tool_calls") or message.get("function_call"))
    if not (has_calls and message.get("content") in (None, "")):
        _check_content(message.get("content"), f"{place}.content")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(c, dict) for c in calls)):
        raise InvalidExample(f"{place}.tool_calls must be a list of objects")
    weight = message.get("weight")
    if weight is None:
        return
    if role != "assistant":
        raise InvalidExample(f"{place}.weight: only assistant messages have a weight")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise InvalidExample(f"{place}.weight is {str(weight)[:40]}; it must be 0 or 1")


def _check_content(content: object, place: str) -> None:
    if content is None:
        raise InvalidExample(f"{place} is missing")
    if isinstance(content, list):
        for index, part in enumerate(content):
            is_text = isinstance(part, dict) and part.get("type") == "text"
            if not is_text or not isinstance(part.get("text"), str):
                raise InvalidExample(f"{place}[{index}] must be a text part")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InvalidExample(f"{place} must be text, not {_kind(content)}")
    if not content.strip():
        raise InvalidExample(f"{place} is empty")


def _lines(source: BinaryIO) -> Iterator[bytes | None]:
    splitter = LineSplitter()
    while chunk := source.read(1 << 20):
        yield from splitter.feed(chunk)
    yield from splitter.finish()


def _without_bom(line: bytes) -> bytes:
    if line.startswith(_UTF16):
        raise InvalidExample("the file is UTF-16; save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def _kind(value: object) -> str:
    """What a JSON value is called."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")
