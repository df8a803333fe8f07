"""The download, from servers that fail in many ways."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from fast_cifar.data import download as download_module
from fast_cifar.data.download import download
from fast_cifar.data.load import load_dataset
from fast_cifar.system.errors import UserError
from tests.helpers import fake_cifar
from tests.helpers.archive_server import (
    CONTENTS,
    NAME,
    Answer,
    OneByOneServer,
    Server,
    chunked,
    first_and_then,
    lying,
    ranged,
    redirecting,
    refusing,
    reset_after,
    resumable,
    send,
    whole,
)

MD5 = hashlib.md5(CONTENTS).hexdigest()


@pytest.fixture
def serve() -> Iterator[Callable[..., OneByOneServer]]:
    servers = []

    def start(answer: Answer, kind: type[OneByOneServer] = Server) -> OneByOneServer:
        servers.append(kind(answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_pauses_and_no_proxy(monkeypatch):
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
    assert [file.name for file in path.parent.iterdir()] == [NAME]


def refusal(path: Path, *servers: OneByOneServer) -> str:
    """The error when no server delivers: one line that names the archive, each server, and three ways to continue."""
    with pytest.raises(UserError) as caught:
        download([server.url for server in servers], path, MD5)
    message = str(caught.value)
    assert message.isprintable()
    for server in servers:
        assert f"127.0.0.1:{server.server_port}" in message
    for expected in (NAME, "--mirror URL", f"--data /path/to/{NAME}", "--data synthetic"):
        assert expected in message
    assert not path.exists()
    return message


def test_servers_are_tried_in_order_and_no_more_than_needed(serve, path):
    second = serve(whole())
    download([serve(whole()).url, second.url], path, MD5)
    assert_arrived(path)
    assert second.ranges == []


def test_a_part_of_an_earlier_run_is_resumed(serve, path):
    put_part(path, CONTENTS[:200_000])
    server = serve(resumable())
    download([server.url], path, MD5)
    assert_arrived(path)
    assert server.ranges == ["bytes=200000-"]


def test_another_server_resumes_what_the_first_began(serve, path):
    def then_refuses(request: BaseHTTPRequestHandler, start: int) -> None:
        (refusing(503) if start else resumable(at_most=100_000))(request, start)

    second = serve(resumable())
    download([serve(then_refuses).url, second.url], path, MD5)
    assert_arrived(path)
    assert second.ranges == ["bytes=100000-"]


PART = CONTENTS[:200_000]
ARRIVALS = {  # what an earlier run left, if anything, and what the server does
    "a complete part": (CONTENTS, resumable()),
    "a complete part, and no archive on the server": (CONTENTS, refusing(404)),
    "a wrong part": (b"x" * 100, resumable()),
    "a wrong part as long as the archive": (b"x" * len(CONTENTS), resumable()),
    "a wrong part longer than the archive": (b"x" * 400_000, resumable()),
    "ignores ranges": (PART, whole()),
    "refuses every range": (PART, lambda request, start: (refusing(416) if start else whole())(request, start)),
    "sends another range": (PART, ranged("bytes 7-299999/300000", lambda _: CONTENTS[7:])),
    "states no range": (PART, ranged("nonsense", lambda start: CONTENTS[start:])),
    "sends other bytes than it states": (PART, ranged("bytes {start}-299999/300000", lambda start: CONTENTS[:-start])),
    "states no length": (None, lying({})),
    "states a negative length": (None, lying({"Content-Length": "-1"})),
    "states a length that is no number": (None, lying({"Content-Length": "many"})),
}


@pytest.mark.parametrize(("part", "answer"), ARRIVALS.values(), ids=ARRIVALS)
def test_the_archive_arrives_whatever_an_earlier_run_left_and_the_server_does(serve, path, part, answer):
    if part is not None:
        put_part(path, part)
    download([serve(answer).url], path, MD5)
    assert_arrived(path)


def test_a_server_that_handles_one_request_at_a_time_can_start_over(monkeypatch, serve, path):
    monkeypatch.setattr(download_module, "TIMEOUT", 5.0)
    put_part(path, CONTENTS[:100])
    server = serve(ranged("bytes 7-9999999/10000000", lambda _: bytes(10_000_000)), OneByOneServer)
    download([server.url], path, MD5)
    assert_arrived(path)


@pytest.mark.parametrize("length", [250_000, 400_000])
def test_a_range_with_a_wrong_total_length_is_accepted_if_the_checksum_is_right(serve, path, length):
    put_part(path, CONTENTS[:200_000])
    server = serve(ranged(f"bytes {{start}}-299999/{length}", lambda start: CONTENTS[start:]))
    download([server.url], path, MD5)
    assert_arrived(path)
    assert None not in server.ranges


@pytest.fixture
def stall(monkeypatch) -> Iterator[Callable[..., Answer]]:
    """Servers that send at most `at_most` bytes and then keep the connection open until the test is over."""
    monkeypatch.setattr(download_module, "TIMEOUT", 1.0)
    over = threading.Event()

    def stalling(at_most: int | None = None) -> Answer:
        def answer(request: BaseHTTPRequestHandler, start: int) -> None:
            if at_most is not None:
                resumable(at_most=at_most)(request, start)
            over.wait(30)

        return answer

    yield stalling
    over.set()


@pytest.mark.parametrize("kind", ["closed", "reset", "chunked", "stalled"])
def test_a_dropped_connection_is_resumed(stall, serve, path, kind):
    first = {
        "closed": resumable(at_most=120_000),
        "reset": reset_after(120_000),
        "chunked": chunked(at_most=120_000),
        "stalled": stall(120_000),
    }
    server = serve(first_and_then(first[kind], chunked() if kind == "chunked" else resumable()))
    download([server.url], path, MD5)
    assert_arrived(path)
    if kind != "reset":  # a reset may lose bytes that were on their way
        assert server.ranges == [None, "bytes=120000-"]


def test_a_server_that_never_answers_is_given_up(stall, serve, path):
    assert "no answer for 1 seconds" in refusal(path, serve(stall()))


def test_a_server_that_stalls_again_and_again_at_the_same_byte_is_given_up(monkeypatch, stall, serve, path):
    monkeypatch.setattr(download_module, "RETRIES", 1)
    server = serve(first_and_then(stall(120_000), stall(0)))
    assert "no answer for 1 seconds" in refusal(path, server)
    assert part_of(path).read_bytes() == CONTENTS[:120_000]


def test_a_server_that_drops_again_and_again_at_the_same_byte_is_given_up(serve, path):
    server = serve(whole(at_most=1000))
    assert "broke off after 1,000 of 300,000 bytes" in refusal(path, server)
    assert len(server.ranges) == 2 + download_module.RETRIES


@pytest.mark.parametrize("length", [300_001, 10**12, "9" * 5000], ids=["one more", "a terabyte", "thousands of digits"])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_complete_archive_is_accepted_though_the_server_announced_a_longer_one(serve, path, length, knows_ranges):
    announcing = lying({"Content-Length": length})
    download([serve(first_and_then(announcing, resumable()) if knows_ranges else announcing).url], path, MD5)
    assert_arrived(path)


WRONG = {
    "other bytes": resumable(b"wrong" * 1000),
    "cut short at an unknown length": lying({}, CONTENTS[:100_000]),
    "more bytes than announced": lying({"Content-Length": 100_000}),
    "a web page under another type": whole(b"<html>Sign in</html>", kind="application/octet-stream"),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_wrong_bytes_are_deleted_and_refused(serve, path, answer):
    assert "something other than the archive (wrong MD5)" in refusal(path, serve(answer))
    assert list(path.parent.iterdir()) == []


REFUSALS = {
    "HTTP 404": refusing(404),
    "HTTP 429": refusing(429),
    "HTTP 503": refusing(503),
    "web page instead of the archive": whole(b"<html>Sign in</html>", kind="text/html; charset=utf-8"),
}


@pytest.mark.parametrize(("reason", "answer"), REFUSALS.items(), ids=REFUSALS)
def test_a_refusal_is_named_and_keeps_the_part(serve, path, reason, answer):
    put_part(path, CONTENTS[:1000])
    assert reason in refusal(path, serve(answer))
    assert part_of(path).read_bytes() == CONTENTS[:1000]


def test_a_server_that_can_satisfy_no_range_at_all_is_given_up(serve, path):
    assert "416" in refusal(path, serve(refusing(416)))


def test_a_server_that_sends_only_a_later_part_is_given_up(serve, path):
    later = {"Content-Range": "bytes 7-299999/300000"}
    assert "sent a part" in refusal(path, serve(lambda request, _: send(request, 206, later, CONTENTS[7:])))


def test_a_redirect_is_followed_with_the_range(serve, path):
    put_part(path, CONTENTS[:1000])
    elsewhere = serve(resumable())
    download([serve(redirecting(elsewhere.url)).url], path, MD5)
    assert_arrived(path)
    assert elsewhere.ranges == ["bytes=1000-"]


@pytest.mark.parametrize(
    ("where", "reason"),
    [(f"/{NAME}", "infinite loop"), ("file:///etc/hostname", "not allowed"), ("http://[::1/x", "Invalid")],
)
def test_a_redirect_that_leads_nowhere_is_refused_in_one_line(serve, path, where, reason):
    assert reason in refusal(path, serve(redirecting(where)))


@pytest.mark.parametrize("line", [b"SSH-2.0-OpenSSH_9.7\r\n", b"\x1b[2J\r\n", b"", b"HTTP/1.1 404 \x1b[2J\r\n\r\n"])
def test_an_answer_that_is_not_http_is_refused_in_one_line(serve, path, line):
    refusal(path, serve(lambda request, _: request.wfile.write(line)))


def test_when_all_servers_fail_every_reason_is_named(serve, path):
    message = refusal(path, serve(refusing(404)), serve(refusing(500)))
    assert "404 Not Found" in message
    assert "500" in message


def test_after_every_kind_of_failure_a_good_server_still_delivers(stall, serve, path):
    bad = [
        stall(),
        *WRONG.values(),
        *REFUSALS.values(),
        redirecting(f"/{NAME}"),
        reset_after(1000),
    ]
    download([*(serve(answer).url for answer in bad), serve(resumable()).url], path, MD5)
    assert_arrived(path)


def test_the_archive_arrives_where_folders_cannot_be_locked(monkeypatch, serve, path):
    def flock(*_: object) -> None:
        raise OSError("no locks here")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", flock)
    download([serve(whole()).url], path, MD5)
    assert_arrived(path)


@pytest.mark.parametrize("url", ["", "cifar.tar.gz", "ftp://host/x", "http://", "file:///etc/passwd", "http://[::1/x"])
def test_a_malformed_url_is_refused(path, url):
    with pytest.raises(UserError, match="--mirror .*http"):
        download([url], path, MD5)
    assert not path.parent.exists()


def test_two_that_cannot_lock_the_folder_never_mix_their_bytes(monkeypatch, serve, path):
    """The second begins in the middle of the first, as can happen where folders cannot be locked."""
    monkeypatch.setattr(download_module, "locked", lambda _: nullcontext())
    halfway, over = threading.Event(), threading.Event()

    def answer_in_two_halves(request: BaseHTTPRequestHandler, _: int) -> None:
        send(request, 200, {"Content-Length": len(CONTENTS)}, CONTENTS[:150_000])
        halfway.set()
        over.wait(30)
        request.wfile.write(CONTENTS[150_000:])

    def download_first() -> str:
        with pytest.raises(UserError) as caught:
            download([serve(answer_in_two_halves).url], path, MD5)
        return str(caught.value)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(download_first)
        halfway.wait(30)
        while not part_of(path).exists() or part_of(path).stat().st_size < 150_000:
            assert not first.done()
        download([serve(resumable()).url], path, MD5)
        over.set()
        assert first.result().startswith(f"another process is writing {part_of(path)} too;")
    assert_arrived(path)


def test_cifar10_is_downloaded_from_the_official_server_which_may_be_slow(monkeypatch, serve, tmp_path, capsys):
    archive = fake_cifar.build("cifar10")
    fake_cifar.publish(monkeypatch, "cifar10", archive, serve(resumable(archive)).url)
    assert len(load_dataset("cifar10", tmp_path).train) == 50
    assert (tmp_path / NAME).read_bytes() == archive
    assert "add --mirror https://" in capsys.readouterr().out


def test_with_a_mirror_the_official_server_is_neither_used_nor_mentioned(monkeypatch, serve, tmp_path, capsys):
    archive = fake_cifar.build("cifar10")
    official = serve(resumable(archive))
    fake_cifar.publish(monkeypatch, "cifar10", archive, official.url)
    with pytest.raises(UserError, match="404"):
        load_dataset("cifar10", tmp_path, mirrors=[serve(refusing(404)).url])
    load_dataset("cifar10", tmp_path, mirrors=[serve(resumable(archive)).url])
    assert official.ranges == []
    assert tuple(capsys.readouterr()) == ("", "")
