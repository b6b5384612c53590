"""What most gateways are: FastAPI in front, httpx behind, ASGI messages and parsed JSON for each request."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

ENGINE_URL = os.environ.get("BENCH_ENGINE_URL", "")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=ENGINE_URL, limits=limits, timeout=60.0) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    body = await request.json()
    client: httpx.AsyncClient = request.app.state.client
    if not body.get("stream"):
        answer = await client.post("/v1/chat/completions", json=body)
        return Response(answer.content, answer.status_code, media_type="application/json")
    upstream = client.build_request("POST", "/v1/chat/completions", json=body)
    streamed = await client.send(upstream, stream=True)

    async def chunks() -> AsyncIterator[bytes]:
        async for chunk in streamed.aiter_bytes():
            yield chunk
        await streamed.aclose()

    return StreamingResponse(chunks(), streamed.status_code, media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
