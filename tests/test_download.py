from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fast_cifar import download as download_module
from fast_cifar.datasets import load_dataset
from fast_cifar.download import download
from fast_cifar.errors import UserError
from tests import fake_cifar

CONTENTS = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENTS).hexdigest()
NAME = "cifar-10-python.tar.gz"

Answer = Callable[[BaseHTTPRequestHandler, int], None]  # called with the request and the first byte it asks for


class Server(ThreadingHTTPServer):
    """Gives every request to one `answer` and remembers the Range header of each."""

    daemon_threads = True

    def __init__(self, answer: Answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        self.server.answer(self, int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0)

    def log_message(self, *_: object) -> None:
        pass


def whole(contents: bytes = CONTENTS, *, kind: str = "application/gzip", at_most: int | None = None) -> Answer:
    """A server that knows no ranges; it hangs up after `at_most` bytes."""

    def answer(request: BaseHTTPRequestHandler, _: int) -> None:
        send(request, 200, {"Content-Type": kind, "Content-Length": len(contents)}, contents[:at_most])

    return answer


def resumable(contents: bytes = CONTENTS, *, at_most: int | None = None) -> Answer:
    """A server that knows ranges; it hangs up after `at_most` bytes of each answer."""

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


def send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, object], body: bytes) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, str(value))
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _quick_and_direct(monkeypatch):
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data" / NAME


def part_of(path: Path) -> Path:
    return path.with_name(f"{NAME}.part")


def put_part(path: Path, contents: bytes) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(contents)


def assert_arrived(path: Path) -> None:
    assert path.read_bytes() == CONTENTS
    assert not part_of(path).exists()


def test_an_archive_is_fetched_and_takes_its_name(serve, path):
    download([serve(whole()).url], path, MD5)
    assert_arrived(path)


def test_a_dropped_connection_is_taken_up_where_it_broke_off(serve, path):
    server = serve(resumable(at_most=120_000))
    download([server.url], path, MD5)
    assert_arrived(path)
    assert server.ranges == [None, "bytes=120000-", "bytes=240000-"]


def test_a_part_of_an_earlier_run_is_taken_up(serve, path):
    put_part(path, CONTENTS[:200_000])
    server = serve(resumable())
    download([server.url], path, MD5)
    assert_arrived(path)
    assert server.ranges == ["bytes=200000-"]


def test_what_one_server_began_the_next_completes(serve, path):
    def then_refuses(request: BaseHTTPRequestHandler, start: int) -> None:
        (refusing(503) if start else resumable(at_most=100_000))(request, start)

    second = serve(resumable())
    download([serve(then_refuses).url, second.url], path, MD5)
    assert_arrived(path)
    assert second.ranges == ["bytes=100000-"]


def test_a_server_that_ignores_ranges_starts_over(serve, path):
    put_part(path, CONTENTS[:200_000])
    download([serve(whole()).url], path, MD5)
    assert_arrived(path)


def test_a_server_that_keeps_dropping_at_the_same_byte_is_given_up(serve, path):
    server = serve(whole(at_most=1000))
    with pytest.raises(UserError, match="broke off after 1,000 of 300,000 bytes"):
        download([server.url], path, MD5)
    assert len(server.ranges) == 2 + download_module.RETRIES
    assert not path.exists()


@pytest.mark.parametrize("extent", ["bytes 7-299999/300000", "nonsense"])
def test_another_range_than_asked_for_starts_over(serve, path, extent):
    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        if start:
            send(request, 206, {"Content-Range": extent}, CONTENTS[7:])
        else:
            whole()(request, 0)

    put_part(path, CONTENTS[:100])
    download([serve(answer).url], path, MD5)
    assert_arrived(path)


def test_a_server_that_sends_only_a_later_part_is_given_up(serve, path):
    server = serve(lambda request, _: send(request, 206, {"Content-Range": "bytes 7-299999/300000"}, CONTENTS[7:]))
    with pytest.raises(UserError, match="sent a part"):
        download([server.url], path, MD5)


def test_a_complete_part_only_needs_its_name(serve, path):
    put_part(path, CONTENTS)
    download([serve(resumable()).url], path, MD5)
    assert_arrived(path)


@pytest.mark.parametrize("stale", [b"x" * 100, b"x" * len(CONTENTS), b"x" * 400_000])
def test_a_part_of_something_else_is_replaced(serve, path, stale):
    put_part(path, stale)
    download([serve(resumable()).url], path, MD5)
    assert_arrived(path)


def test_wrong_bytes_are_deleted_and_the_next_server_is_asked(serve, path):
    download([serve(whole(b"wrong" * 1000)).url, serve(resumable()).url], path, MD5)
    assert_arrived(path)


def test_wrong_bytes_never_take_the_archives_name(serve, path):
    with pytest.raises(UserError, match="wrong MD5"):
        download([serve(resumable(b"wrong" * 1000)).url], path, MD5)
    assert not path.exists()
    assert not part_of(path).exists()


def test_a_web_page_is_no_archive_and_spares_the_part(serve, path):
    put_part(path, CONTENTS[:200_000])
    with pytest.raises(UserError, match="web page instead of the archive"):
        download([serve(whole(b"<html>Sign in</html>", kind="text/html; charset=utf-8")).url], path, MD5)
    assert part_of(path).read_bytes() == CONTENTS[:200_000]


def test_a_missing_file_sends_us_to_the_next_server(serve, path):
    download([serve(refusing(404)).url, serve(whole()).url], path, MD5)
    assert_arrived(path)


def test_servers_are_asked_in_order_and_no_more_than_needed(serve, path):
    second = serve(whole())
    download([serve(whole()).url, second.url], path, MD5)
    assert second.ranges == []


def test_a_server_that_stalls_is_given_up(monkeypatch, serve, path):
    monkeypatch.setattr(download_module, "TIMEOUT", 0.1)
    over = threading.Event()
    with pytest.raises(UserError, match="no answer for 0.1 seconds"):
        download([serve(lambda *_: over.wait(10)).url], path, MD5)
    over.set()


def test_when_all_fail_one_line_gives_the_reasons_and_the_three_ways_out(serve, path):
    missing, broken = serve(refusing(404)), serve(refusing(500))
    with pytest.raises(UserError) as caught:
        download([missing.url, broken.url], path, MD5)
    message = str(caught.value)
    for expected in ("404 Not Found", "500", "--mirror URL", f"--data /path/to/{NAME}", "--data synthetic"):
        assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("url", ["", "cifar.tar.gz", "ftp://host/x", "http://", "file:///etc/passwd", "http://[::1/x"])
def test_an_address_that_is_not_of_the_web_is_refused(path, url):
    with pytest.raises(UserError, match="--mirror .*http"):
        download([url], path, MD5)
    assert not path.parent.exists()


def test_two_at_once_fetch_the_archive_once(serve, path):
    server = serve(resumable())
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: download([server.url], path, MD5), range(4)))
    assert_arrived(path)
    assert server.ranges == [None]


def test_cifar10_comes_from_the_official_server(monkeypatch, serve, tmp_path):
    archive = fake_cifar.build("cifar10")
    fake_cifar.publish(monkeypatch, "cifar10", archive, serve(resumable(archive)).url)
    assert len(load_dataset("cifar10", tmp_path).train) == 50
    assert (tmp_path / NAME).read_bytes() == archive


def test_with_a_mirror_the_official_server_is_not_asked(monkeypatch, serve, tmp_path):
    archive = fake_cifar.build("cifar10")
    official = serve(resumable(archive))
    fake_cifar.publish(monkeypatch, "cifar10", archive, official.url)
    with pytest.raises(UserError, match="404"):
        load_dataset("cifar10", tmp_path, mirrors=[serve(refusing(404)).url])
    load_dataset("cifar10", tmp_path, mirrors=[serve(resumable(archive)).url])
    assert official.ranges == []
