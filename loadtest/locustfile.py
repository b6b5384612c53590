"""The users of `make loadtest`; also `locust -f loadtest/locustfile.py` for Locust's own page."""

from loadtest.scenarios.chat import ChatUser
from loadtest.scenarios.streaming import StreamingUser

__all__ = ["ChatUser", "StreamingUser"]
