"""What all routers share: who asks, how JSON is read, how lists are paged."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, StringConstraints

from gateway.api.errors import ERROR_RESPONSES
from gateway.routing.snapshot import Key
from loraway.errors import InvalidRequest
from loraway.ids import ProjectId

Order = Literal["asc", "desc"]
After = Annotated[
    str | None, Query(max_length=128, description="Id of the last item of the page before this one.")
]
Limit = Annotated[int, Query(ge=1, le=100, description="Most items on a page.")]
#: What PostgreSQL's text can hold.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]

_METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
#: OpenAPI's word for `metadata[key]=value&...`.
METADATA_PARAMETER: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "description": "`metadata[key]=value`: pairs that the item's metadata must have.",
        }
    ]
}


def project_of(request: Request) -> ProjectId:
    """The project whose key came with the request."""
    key: Key = request.state.key
    return key.project_id


#: The project that asks; `gateway.api.edge` has checked the key.
Project = Annotated[ProjectId, Depends(project_of)]


class Fields(BaseModel):
    """A body: what is not known is refused, not ignored."""

    model_config = {"extra": "forbid"}


class JsonRequest(Request):
    """Reads JSON with orjson, which refuses NaN and lone surrogates: what it lets through can be stored."""

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route whose requests are `JsonRequest`s."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


def api_router(tag: str) -> APIRouter:
    """A router for one kind of object."""
    bearer = Depends(HTTPBearer(auto_error=False, description="`Authorization: Bearer sk-loraway-...`"))
    return APIRouter(
        tags=[tag],
        route_class=JsonRoute,
        dependencies=[bearer],
        responses=ERROR_RESPONSES,
        strict_content_type=False,
    )


Item = TypeVar("Item", bound=BaseModel)


class ListOf(BaseModel, Generic[Item]):
    """A page of a list. The next one begins `after` the last item's id."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: Sequence[Item], has_more: bool = False) -> ListOf[Item]:
        ids = [str(getattr(item, "id", "")) for item in items]
        return cls(
            data=list(items),
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
            has_more=has_more,
        )


def metadata_filter(request: Request) -> dict[str, str]:
    """The pairs of `metadata[key]=value` in the query. Raises InvalidRequest for another form."""
    pairs = {}
    for name, value in request.query_params.multi_items():
        if not name.startswith("metadata"):
            continue
        match = _METADATA.fullmatch(name)
        if match is None or len(value) > 512:
            raise InvalidRequest(f"{name[:80]!r} is no filter; write metadata[key]=value.", param="metadata")
        pairs[match[1]] = value
    return pairs


MetadataFilter = Annotated[dict[str, str], Depends(metadata_filter)]
