"""`/v1/chat/completions`, the stored ones: list, retrieve, messages, update metadata, delete.

Creating one is the data plane's: `POST /v1/chat/completions` never comes here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from gateway.api.routing import (
    METADATA_PARAMETER,
    After,
    Fields,
    Limit,
    ListOf,
    MetadataFilter,
    Order,
    Project,
    api_router,
)
from gateway.completions import CompletionStore, StoredCompletion
from gateway.traffic_row import checked_metadata
from loraway.database import Database

#: Fields of the request that OpenAI shows with a stored completion.
_ECHOED = (
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "tools",
    "tool_choice",
    "response_format",
)


class StoredCompletionObject(BaseModel):
    """A chat completion as it was answered, with its metadata and what shaped it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    request_id: str
    metadata: dict[str, str]
    choices: list[dict[str, Any]]
    usage: dict[str, Any] | None
    input_user: str | None


class StoredMessage(BaseModel):
    """One of the messages that were sent."""

    model_config = ConfigDict(extra="allow")

    id: str
    role: str
    content: str | None
    name: str | None
    content_parts: list[dict[str, Any]] | None


class DeletedCompletion(BaseModel):
    """What is left of a deleted completion."""

    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True


class MetadataUpdate(Fields):
    """New metadata, in place of the old; null or {} for none."""

    metadata: dict[str, str] | None


class CompletionRoutes:
    """The routes of stored completions."""

    def __init__(self, database: Database) -> None:
        self._completions = CompletionStore(database)

    def router(self) -> APIRouter:
        router = api_router("Stored completions")
        path, one = "/v1/chat/completions", "/v1/chat/completions/{completion_id}"
        router.get(path, openapi_extra=METADATA_PARAMETER)(self.list_completions)
        router.get(one)(self.retrieve)
        router.post(one)(self.update_metadata)
        router.delete(one)(self.delete)
        router.get(f"{one}/messages")(self.list_messages)
        return router

    def list_completions(
        self,
        project: Project,
        metadata: MetadataFilter,
        model: Annotated[str | None, Query(max_length=128, description="What answered.")] = None,
        after: After = None,
        limit: Limit = 20,
        order: Order = "asc",
    ) -> ListOf[StoredCompletionObject]:
        """The stored completions, oldest first unless `order=desc`."""
        page = self._completions.list(
            project,
            after=after,
            limit=limit,
            is_ascending=order == "asc",
            model=model,
            metadata=metadata,
        )
        return ListOf.of([completion_object(item) for item in page.items], page.has_more)

    def retrieve(self, project: Project, completion_id: str) -> StoredCompletionObject:
        """One stored completion."""
        return completion_object(self._completions.get(project, completion_id))

    def update_metadata(
        self, project: Project, completion_id: str, body: MetadataUpdate
    ) -> StoredCompletionObject:
        """Replace the metadata."""
        metadata = checked_metadata(body.metadata)
        return completion_object(self._completions.set_metadata(project, completion_id, metadata))

    def delete(self, project: Project, completion_id: str) -> DeletedCompletion:
        """Forget a stored completion and the feedback about it."""
        self._completions.delete(project, completion_id)
        return DeletedCompletion(id=completion_id)

    def list_messages(
        self,
        project: Project,
        completion_id: str,
        after: After = None,
        limit: Limit = 20,
        order: Order = "asc",
    ) -> ListOf[StoredMessage]:
        """The messages that were sent, in order unless `order=desc`."""
        messages = message_objects(self._completions.get(project, completion_id))
        if order == "desc":
            messages.reverse()
        if after is not None:
            places = [index for index, message in enumerate(messages) if message.id == after]
            messages = messages[places[0] + 1 :] if places else []
        return ListOf.of(messages[:limit], has_more=len(messages) > limit)


def completion_object(stored: StoredCompletion) -> StoredCompletionObject:
    """The completion as OpenAI shows a stored one."""
    request, response = stored.request, stored.response
    user = request.get("user")
    shown = {
        **{name: request.get(name) for name in _ECHOED},
        **response,
        "id": stored.completion_id,
        "object": "chat.completion",
        "created": int(response.get("created") or stored.created_at),
        "model": stored.model,
        "request_id": stored.request_id,
        "metadata": stored.metadata,
        "choices": response.get("choices") or [],
        "usage": response.get("usage"),
        "input_user": user if isinstance(user, str) else None,
    }
    return StoredCompletionObject.model_validate(shown)


def message_objects(stored: StoredCompletion) -> list[StoredMessage]:
    """The messages as OpenAI shows them; parts of a message in `content_parts`, their text in `content`."""
    return [
        _message(message, f"{stored.completion_id}-{index}") for index, message in enumerate(stored.messages)
    ]


def _message(message: dict[str, Any], message_id: str) -> StoredMessage:
    content, parts = message.get("content"), None
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        content = "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
    name = message.get("name")
    shown = {
        **message,
        "id": message_id,
        "role": str(message.get("role", "user")),
        "content": content if isinstance(content, str) else None,
        "name": name if isinstance(name, str) else None,
        "content_parts": parts,
    }
    return StoredMessage.model_validate(shown)
