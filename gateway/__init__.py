"""The OpenAI-compatible gateway: data plane, routing, API."""
