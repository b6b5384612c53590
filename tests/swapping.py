"""Streams through swaps: what was said, by which version, and what the alias stood for at that time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import openai
from openai.types.chat import ChatCompletionMessageParam
from sqlalchemy import select

from adapters_store.version import RolloutState, Version
from loraway.ids import VersionId
from loraway.schema import alias_moves
from tests.stack import Stack

#: A gateway worker is behind the database by its polling interval, 0.05 s, and more on a busy machine.
SNAPSHOT_LAG_SECONDS = 0.5
Messages = list[ChatCompletionMessageParam]


@dataclass(slots=True)
class Heard:
    """One stream, from start to end."""

    sent_at: float
    first_token_at: float = 0.0
    text: str = ""
    models: set[str] = field(default_factory=set)
    finish_reason: str | None = None


async def listen(client: openai.AsyncOpenAI, model: str, messages: Messages, max_tokens: int) -> Heard:
    """One greedy stream, read to its end. Raises whatever the client raises."""
    heard = Heard(sent_at=time.time())
    stream = await client.chat.completions.create(
        model=model, messages=messages, max_tokens=max_tokens, temperature=0, stream=True
    )
    async for chunk in stream:
        heard.models.add(chunk.model)
        choice = chunk.choices[0]
        if choice.delta.content:
            heard.first_token_at = heard.first_token_at or time.time()
            heard.text += choice.delta.content
        heard.finish_reason = choice.finish_reason or heard.finish_reason
    return heard


async def listen_often(
    listen_once: Callable[[], Awaitable[Heard]], times: int, at_once: int, heard: list[Heard]
) -> None:
    """Streams, `at_once` at any time, each added to `heard` when it has ended. The first failure ends all."""
    left = iter(range(times))

    async def one_after_another() -> None:
        for _ in left:
            heard.append(await listen_once())

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(one_after_another())


async def swap_back_and_forth(
    stack: Stack,
    versions: Sequence[Version],
    swaps: int,
    may_swap: Callable[[int], bool],
) -> None:
    """Roll the versions out in turn, each when `may_swap(number of swaps so far)` says so."""
    for swap in range(swaps):
        while not may_swap(swap):  # noqa: ASYNC110 - waits for streams that others count
            await asyncio.sleep(0.01)
        version = versions[(swap + 1) % len(versions)]
        rollout = await asyncio.to_thread(stack.roll_out, version)
        assert rollout.state is RolloutState.DONE, rollout.error


def pointed_at(stack: Stack, alias: str, since: float, until: float) -> set[VersionId]:
    """The versions that the alias stood for at some time in between, by the registry's own record."""
    query = (
        select(alias_moves.c.moved_at, alias_moves.c.to_version_id)
        .where(alias_moves.c.project_id == stack.project_id, alias_moves.c.name == alias)
        .order_by(alias_moves.c.id)
    )
    with stack.database.read() as connection:
        moves = [(row.moved_at, VersionId(row.to_version_id)) for row in connection.execute(query)]
    before = [version for moved_at, version in moves if moved_at <= since]
    return {*before[-1:], *(version for moved_at, version in moves if since < moved_at <= until)}


def assert_each_kept_one_version(
    stack: Stack, alias: str, heard: Sequence[Heard], texts: dict[VersionId, str]
) -> int:
    """Each stream is one version's answer, whole, and that of a version the alias stood for at its start.

    Returns for how many streams only one version was right.
    """
    by_text = {text: version for version, text in texts.items()}
    assert len(by_text) == len(texts), "versions that answer alike cannot be told apart"
    decided = 0
    for stream in heard:
        assert stream.text in by_text, f"no version answers this: {stream.text!r}"
        assert stream.finish_reason is not None
        assert len(stream.models) == 1
        stood_for = pointed_at(stack, alias, stream.sent_at - SNAPSHOT_LAG_SECONDS, stream.first_token_at)
        assert by_text[stream.text] in stood_for
        decided += len(stood_for) == 1
    return decided
