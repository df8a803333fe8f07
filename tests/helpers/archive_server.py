"""Servers that deliver an archive, well or badly: each `Answer` is one way to behave."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import numpy as np

CONTENTS = np.random.default_rng(0).bytes(300_000)
NAME = "cifar-10-python.tar.gz"

Answer = Callable[[BaseHTTPRequestHandler, int], None]  # called with the request and the first byte it asks for


class OneByOneServer(HTTPServer):
    """Handles requests one after the other with `answer`, and records the Range header of each."""

    def __init__(self, answer: Answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"

    def handle_error(self, *_: object) -> None:
        """Prints nothing: clients disconnect from a server that misbehaves."""


class Server(ThreadingHTTPServer, OneByOneServer):
    """Like `OneByOneServer`, but handles requests at the same time."""

    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        self.server.answer(self, int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0)

    def log_message(self, *_: object) -> None:
        pass


def whole(contents: bytes = CONTENTS, *, kind: str = "application/gzip", at_most: int | None = None) -> Answer:
    """A server without support for ranges; it disconnects after `at_most` bytes."""

    def answer(request: BaseHTTPRequestHandler, _: int) -> None:
        send(request, 200, {"Content-Type": kind, "Content-Length": len(contents)}, contents[:at_most])

    return answer


def resumable(contents: bytes = CONTENTS, *, at_most: int | None = None) -> Answer:
    """A server with support for ranges; it disconnects after `at_most` bytes of each response."""

    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        if start >= len(contents):
            send(request, 416, {"Content-Range": f"bytes */{len(contents)}"}, b"")
            return
        extent = f"bytes {start}-{len(contents) - 1}/{len(contents)}"
        headers = {"Content-Length": len(contents) - start} | ({"Content-Range": extent} if start else {})
        send(request, 206 if start else 200, headers, contents[start:][:at_most])

    return answer


def refusing(status: int) -> Answer:
    return lambda request, _: send(request, status, {}, b"")


def redirecting(url: str) -> Answer:
    return lambda request, _: send(request, 302, {"Location": url}, b"")


def first_and_then(first: Answer, others: Answer) -> Answer:
    """A server that answers the first request with `first`, and every later one with `others`."""
    answers = iter([first])
    return lambda request, start: next(answers, others)(request, start)


def lying(headers: dict[str, object], contents: bytes = CONTENTS) -> Answer:
    """A server without support for ranges, whose headers are wrong."""
    return lambda request, _: send(request, 200, headers, contents)


def ranged(extent: str | None, contents: Callable[[int], bytes]) -> Answer:
    """A server that answers a range request with the Content-Range `extent` ({start}: the requested byte) and with
    `contents(start)`."""

    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        if start:
            headers = {"Content-Range": extent.format(start=start)} if extent is not None else {}
            send(request, 206, headers, contents(start))
        else:
            whole()(request, 0)

    return answer


def chunked(at_most: int | None = None) -> Answer:
    """A server that sends the archive in chunks, without its length; it disconnects after `at_most` bytes."""

    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        body = CONTENTS[start:][:at_most]
        pieces = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:5000], body[5000:]) if piece)
        extent = {"Content-Range": f"bytes {start}-{len(CONTENTS) - 1}/*"} if start else {}
        request.protocol_version = "HTTP/1.1"
        headers = {"Transfer-Encoding": "chunked", "Connection": "close"} | extent
        send(request, 206 if start else 200, headers, pieces + (b"" if at_most else b"0\r\n\r\n"))

    return answer


def reset_after(at_most: int) -> Answer:
    """A server that sends some bytes and then resets the connection, as a restarting router does."""

    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        resumable(at_most=at_most)(request, start)
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()

    return answer


def send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, object], body: bytes) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, str(value))
    request.end_headers()
    request.wfile.write(body)
