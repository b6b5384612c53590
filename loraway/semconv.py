"""The names of span attributes, all in one place because most of them are still in development.

GenAI names: open-telemetry/semantic-conventions-genai, "Semantic conventions for generative client AI spans"
(status: Development). HTTP and error names: the stable conventions. Names beginning with `loraway.` are ours.
"""

from __future__ import annotations

from typing import Final

GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
#: Seconds from the request to the first piece of a streamed answer. (As a metric the conventions call the
#: server's own figure `gen_ai.server.time_to_first_token`; ours is `loraway_ttft_seconds` on /metrics.)
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"

HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
ERROR_TYPE: Final = "error.type"

LORAWAY_REQUEST_ID: Final = "loraway.request.id"
LORAWAY_PROJECT_ID: Final = "loraway.project.id"
LORAWAY_BASE_MODEL: Final = "loraway.base_model"
LORAWAY_REPLICA_ID: Final = "loraway.replica.id"
LORAWAY_RETRIES: Final = "loraway.retries"
#: `support-bot`, and the version's number and id: what was really asked to answer.
LORAWAY_ADAPTER_NAME: Final = "loraway.adapter.name"
LORAWAY_ADAPTER_VERSION: Final = "loraway.adapter.version"
LORAWAY_ADAPTER_VERSION_ID: Final = "loraway.adapter.version_id"
LORAWAY_ADAPTER_RANK: Final = "loraway.adapter.rank"

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def operation_name(path: str) -> str:
    """`gen_ai.operation.name` of a data-plane path; the conventions leave names beyond theirs to us."""
    return _OPERATIONS.get(path) or path.rpartition("/")[2] or "request"
