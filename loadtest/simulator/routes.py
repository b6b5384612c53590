"""From a request to the function that answers it, for both dialects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from loadtest.simulator.http import Refusal, Request, Responder

Route = Callable[[Request, Responder], Awaitable[None]]
#: By path and method.
Routes = dict[str, dict[str, Route]]


class Dialect(Protocol):
    """One engine's way of speaking."""

    routes: Routes

    def may_enter(self, request: Request) -> bool:
        """Whether the request has the key, where one is asked for."""
        ...

    def lose_adapter(self, name: str) -> None:
        """What an eviction that nobody asked for does to this adapter."""
        ...


def find_route(dialect: Dialect, request: Request) -> Route:
    """The function for this request. Raises Refusal: 401, 404 or 405, alike in both engines."""
    if not dialect.may_enter(request):
        raise Refusal(401, {"error": "Unauthorized"})
    methods = dialect.routes.get(request.path)
    if methods is None:
        raise Refusal(404, {"detail": "Not Found"})
    route = methods.get(request.method)
    if route is None:
        raise Refusal(405, {"detail": "Method Not Allowed"}, {"allow": ", ".join(methods)})
    return route
