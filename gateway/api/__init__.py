"""The control plane API: FastAPI, a router a resource."""
