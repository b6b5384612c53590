"""The client's side without a socket: any split of the bytes, any mix of requests, any garbage."""

from __future__ import annotations

import itertools

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraway.settings import GatewaySettings
from tests.unit.dataplane.in_memory import Answers, exchange_bytes

DATA_PATHS = st.sampled_from(["/v1/chat/completions", "/v1/embeddings", "/rerank"])
CONTROL = st.sampled_from(
    [
        *(("GET", "/v1/models"), ("POST", "/v1/files"), ("GET", "/v1/chat/completions")),
        *(("HEAD", "/healthz"), ("DELETE", "/v1/chat/completions/x"), ("POST", "/v1/chat/completions/x")),
    ]
)
TARGETS = st.one_of(st.tuples(st.just("POST"), DATA_PATHS), CONTROL)


def message(number: int, method: str, path: str, body: bytes, is_chunked: bool) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: g\r\nX-Request-Id: r{number}\r\n"
    if method in ("GET", "HEAD"):
        return (head + "\r\n").encode()
    if not is_chunked:
        return (head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    half = len(body) // 2
    chunks = [part for part in (body[:half], body[half:]) if part]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in chunks)
    return (head + "Transfer-Encoding: chunked\r\n\r\n").encode() + framed + b"0\r\n\r\n"


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[tuple[str, str]], bytes]:
    targets = draw(st.lists(TARGETS, min_size=1, max_size=6))
    wire = b"".join(
        message(number, method, path, draw(st.binary(max_size=40)), draw(st.booleans()))
        for number, (method, path) in enumerate(targets)
    )
    return targets, wire


def pieces_of(wire: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(wire) + 1) for cut in cuts}), len(wire)]
    return [wire[start:end] for start, end in itertools.pairwise(places) if end > start]


@settings(max_examples=150, deadline=None)
@given(conversations(), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_mix_of_requests_split_anywhere_is_answered_in_order(
    conversation: tuple[list[tuple[str, str]], bytes], cuts: list[int]
) -> None:
    targets, wire = conversation
    written, is_over = exchange_bytes(pieces_of(wire, cuts))

    def status(method: str, path: str) -> int:
        is_data = method == "POST" and path in ("/v1/chat/completions", "/v1/embeddings", "/rerank")
        return 401 if is_data else 200  # nobody has a key here

    expected = [(status(*target), f"r{number}") for number, target in enumerate(targets)]
    # llhttp needs to know which answers are to HEAD; here their length is given and their body missing.
    if any(method == "HEAD" for method, _ in targets):
        assert [f"x-request-id: r{n}".encode() in written for n in range(len(targets))] == [True] * len(
            targets
        )
        places = [written.index(f"x-request-id: r{n}\r\n".encode()) for n in range(len(targets))]
        assert places == sorted(places)
    else:
        assert Answers(written).found == expected
    assert not is_over


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
def test_byte_by_byte_gives_the_same_answer_as_at_once(path: str, is_chunked: bool) -> None:
    wire = message(1, "POST", path, b'{"model": "x", "messages": []}', is_chunked)

    at_once, _ = exchange_bytes([wire])
    byte_by_byte, _ = exchange_bytes([wire[i : i + 1] for i in range(len(wire))])

    assert Answers(at_once).found == Answers(byte_by_byte).found
    assert at_once.split(b"\r\n\r\n")[1] == byte_by_byte.split(b"\r\n\r\n")[1]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    *(
                        b"POST /v1/chat/completions HTTP/1.1\r\n",
                        b"GET / HTTP/1.1\r\n",
                        b"Host: g\r\n",
                        b"\r\n",
                    ),
                    *(
                        b"Content-Length: 5\r\n",
                        b"Transfer-Encoding: chunked\r\n",
                        b"5\r\nhello\r\n",
                        b"0\r\n\r\n",
                    ),
                    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"hello"),
                    *(
                        b"Connection: upgrade\r\n",
                        b"Content-Length: 99999999999\r\n",
                        b"POST /v1/files HTTP/1.0\r\n",
                    ),
                ]
            ),
        ),
        max_size=12,
    )
)
def test_no_bytes_crash_or_hang_the_connection_and_every_answer_is_whole(pieces: list[bytes]) -> None:
    written, is_over = exchange_bytes(pieces)

    answers = Answers(written).found  # raises where the output is not HTTP
    assert len(answers) == written.count(b"HTTP/1.1 ") - written.count(b"HTTP/1.1 100 ")
    if any(status in (400, 408, 413, 431) for status, _ in answers[-1:]):
        assert is_over


def test_pipelined_requests_behind_a_refused_one_are_not_answered() -> None:
    bad = (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    good = message(1, "POST", "/v1/embeddings", b"{}", False)
    written, is_over = exchange_bytes([good + bad + message(2, "POST", "/v1/embeddings", b"{}", False)])

    assert [status for status, _ in Answers(written).found] == [401, 400]
    assert is_over


def test_client_header_limits_hold_for_a_head_that_comes_with_a_body() -> None:
    limits = GatewaySettings(max_header_bytes=300)
    large_body = message(1, "POST", "/v1/embeddings", b"x" * 2000, False)
    large_head = message(1, "POST", "/v1/embeddings?" + "x" * 400, b"{}", False)

    assert Answers(exchange_bytes([large_body], limits)[0]).found[0][0] == 401
    assert Answers(exchange_bytes([large_head], limits)[0]).found[0][0] == 431


def test_flood_of_trailers_is_refused() -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    trailers = b"".join(b"T%d: x\r\n" % n for n in range(100))

    assert Answers(exchange_bytes([head + b"T: x\r\n\r\n"])[0]).found[0][0] == 401
    assert Answers(exchange_bytes([head + trailers + b"\r\n"])[0]).found[0][0] == 400


@pytest.mark.parametrize("given", ["mine-1", "a.b_c", "x" * 64])
def test_sane_request_id_is_kept(given: str) -> None:
    wire = message(1, "POST", "/v1/embeddings", b"{}", False).replace(b"r1", given.encode())
    assert Answers(exchange_bytes([wire])[0]).found == [(401, given)]


@pytest.mark.parametrize("given", ["x" * 65, "a b", "a\tb", "é", ""])
def test_other_request_ids_are_replaced(given: str) -> None:
    wire = message(1, "POST", "/v1/embeddings", b"{}", False).replace(b"r1", given.encode())
    ((_, request_id),) = Answers(exchange_bytes([wire])[0]).found
    assert request_id.startswith("req_")


def test_upgrade_offer_is_ignored_on_both_planes() -> None:
    for path in ("/v1/embeddings", "/v1/files"):
        wire = message(1, "POST", path, b"{}", False).replace(
            b"Host: g\r\n", b"Host: g\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        )
        written, is_over = exchange_bytes([wire + wire])
        assert len(Answers(written).found) == 2
        assert not is_over


def test_llhttp_still_refuses_what_we_rely_on_it_to_refuse() -> None:
    """Both length headers, two lengths, and a header folded over lines."""
    for headers in (
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 1\r\nContent-Length: 1\r\n",
    ):
        for parser in (httptools.HttpRequestParser(object()),):
            with pytest.raises(httptools.HttpParserError):
                parser.feed_data(b"POST / HTTP/1.1\r\n" + headers + b"\r\n")
        with pytest.raises(httptools.HttpParserError):
            httptools.HttpResponseParser(object()).feed_data(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n")
