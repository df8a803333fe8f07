"""The download, against servers that fail in every way we have heard of."""

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
    assert [file.name for file in path.parent.iterdir()] == [NAME]


def refusal(path: Path, *servers: OneByOneServer) -> str:
    """What the user is told when no server delivers: one line that names the archive and each server."""
    with pytest.raises(UserError) as caught:
        download([server.url for server in servers], path, MD5)
    message = str(caught.value)
    assert message.isprintable()
    for expected in (NAME, *(f"127.0.0.1:{server.server_port}" for server in servers), "--mirror URL"):
        assert expected in message
    assert not path.exists()
    return message


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


@pytest.fixture
def stall(monkeypatch) -> Iterator[Callable[..., Answer]]:
    """Servers that send `at_most` bytes as a resumable one does, if any, and then nothing until the test is over."""
    monkeypatch.setattr(download_module, "TIMEOUT", 0.2)
    over = threading.Event()

    def stalling(at_most: int | None = None) -> Answer:
        def answer(request: BaseHTTPRequestHandler, start: int) -> None:
            if at_most is not None:
                resumable(at_most=at_most)(request, start)
            over.wait(30)

        return answer

    yield stalling
    over.set()


def test_a_server_that_never_answers_is_given_up(stall, serve, path):
    assert "no answer for 0.2 seconds" in refusal(path, serve(stall()))


def test_a_server_that_stalls_midway_is_asked_for_the_rest(stall, serve, path):
    server = serve(first_and_then(stall(120_000), resumable()))
    download([server.url], path, MD5)
    assert_arrived(path)
    assert server.ranges[:2] == [None, "bytes=120000-"]


def test_a_server_that_stalls_at_the_same_byte_again_and_again_is_given_up(monkeypatch, stall, serve, path):
    monkeypatch.setattr(download_module, "RETRIES", 1)
    server = serve(first_and_then(stall(120_000), stall(0)))
    assert "no answer for 0.2 seconds" in refusal(path, server)
    assert part_of(path).read_bytes() == CONTENTS[:120_000]


def test_a_connection_broken_by_force_is_taken_up(serve, path):
    server = serve(first_and_then(reset_after(120_000), resumable()))
    download([server.url], path, MD5)
    assert_arrived(path)
    assert len(server.ranges) == 2


@pytest.mark.parametrize("length", [300_001, 10**12, 10**5000], ids=["one more", "a terabyte", "thousands of digits"])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_whole_archive_is_taken_though_a_longer_one_was_promised(serve, path, length, knows_ranges):
    promising = lying({"Content-Length": "9" * 5000 if length == 10**5000 else length})
    download([serve(first_and_then(promising, resumable()) if knows_ranges else promising).url], path, MD5)
    assert_arrived(path)


def test_more_bytes_than_promised_are_not_the_archive(serve, path):
    assert "wrong MD5" in refusal(path, serve(lying({"Content-Length": 100_000})))
    assert not part_of(path).exists()


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "-1"}, {"Content-Length": "many"}], ids=str)
def test_an_archive_of_unknown_length_ends_with_the_connection(serve, path, headers):
    download([serve(lying(headers)).url], path, MD5)
    assert_arrived(path)


def test_a_drop_that_looks_like_the_end_does_not_pass_for_the_archive(serve, path):
    assert "wrong MD5" in refusal(path, serve(lying({}, CONTENTS[:100_000])))
    assert not part_of(path).exists()


def test_an_archive_in_chunks_is_taken_up_where_they_broke_off(serve, path):
    server = serve(first_and_then(chunked(at_most=120_000), chunked()))
    download([server.url], path, MD5)
    assert_arrived(path)
    assert server.ranges == [None, "bytes=120000-"]


@pytest.mark.parametrize("length", [250_000, 400_000])
def test_a_range_that_misstates_the_archives_length_is_taken_by_its_bytes(serve, path, length):
    put_part(path, CONTENTS[:200_000])
    server = serve(ranged(f"bytes {{start}}-299999/{length}", lambda start: CONTENTS[start:]))
    download([server.url], path, MD5)
    assert_arrived(path)
    assert None not in server.ranges


def test_a_range_of_other_bytes_than_it_says_starts_over(serve, path):
    put_part(path, CONTENTS[:200_000])
    server = serve(ranged("bytes {start}-299999/300000", lambda start: CONTENTS[: len(CONTENTS) - start]))
    download([server.url], path, MD5)
    assert_arrived(path)
    assert server.ranges == ["bytes=200000-", None]


def test_a_server_that_serves_one_at_a_time_can_start_over(monkeypatch, serve, path):
    monkeypatch.setattr(download_module, "TIMEOUT", 5.0)
    put_part(path, CONTENTS[:100])
    server = serve(ranged("bytes 7-9999999/10000000", lambda _: bytes(10_000_000)), OneByOneServer)
    download([server.url], path, MD5)
    assert_arrived(path)


def test_a_server_that_refuses_every_range_starts_over(serve, path):
    put_part(path, CONTENTS[:200_000])
    server = serve(lambda request, start: (refusing(416) if start else whole())(request, start))
    download([server.url], path, MD5)
    assert_arrived(path)


def test_a_server_that_cannot_satisfy_no_range_at_all_is_given_up(serve, path):
    assert "416" in refusal(path, serve(refusing(416)))


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, 502, 503])
def test_a_refusal_is_told_with_its_number_and_spares_the_part(serve, path, status):
    put_part(path, CONTENTS[:1000])
    assert f"HTTP {status}" in refusal(path, serve(refusing(status)))
    assert part_of(path).read_bytes() == CONTENTS[:1000]


def test_a_complete_part_needs_no_server(serve, path):
    put_part(path, CONTENTS)
    download([serve(refusing(404)).url], path, MD5)
    assert_arrived(path)


def test_a_redirect_is_followed_with_the_range(serve, path):
    put_part(path, CONTENTS[:1000])
    elsewhere = serve(resumable())
    download([serve(redirecting(elsewhere.url)).url], path, MD5)
    assert_arrived(path)
    assert elsewhere.ranges == ["bytes=1000-"]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (f"/{NAME}", "infinite loop"),
        ("", "infinite loop"),
        ("file:///etc/hostname", "not allowed"),
        ("http://[::1/x", "Invalid"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_given_up_in_one_line(serve, path, where, reason):
    assert reason in refusal(path, serve(redirecting(where)))


@pytest.mark.parametrize("line", [b"SSH-2.0-OpenSSH_9.7\r\n", b"\x1b[2J\r\n", b"", b"HTTP/1.1 404 \x1b[2J\r\n\r\n"])
def test_what_is_no_web_server_is_told_in_one_line(serve, path, line):
    refusal(path, serve(lambda request, _: request.wfile.write(line)))


def test_a_web_page_by_another_name_is_no_archive(serve, path):
    page = serve(whole(b"<html>Sign in</html>", kind="application/octet-stream"))
    assert "something else than the archive" in refusal(path, page)
    assert list(path.parent.iterdir()) == []


def test_after_every_kind_of_failure_a_good_server_still_delivers(stall, serve, path):
    bad = [
        stall(),
        whole(b"wrong" * 1000),
        whole(b"<html>Sign in</html>", kind="text/html"),
        refusing(503),
        lying({"Content-Length": 100_000}),
        redirecting(f"/{NAME}"),
        reset_after(1000),
    ]
    download([*(serve(answer).url for answer in bad), serve(resumable()).url], path, MD5)
    assert_arrived(path)


def test_where_folders_cannot_be_locked_the_archive_comes_all_the_same(monkeypatch, serve, path):
    def flock(*_: object) -> None:
        raise OSError("no locks here")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", flock)
    download([serve(whole()).url], path, MD5)
    assert_arrived(path)


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


def test_two_that_cannot_wait_for_each_other_never_take_a_mixture_for_the_archive(monkeypatch, serve, path):
    """The second begins in the middle of the first, as it may where folders cannot be locked."""
    monkeypatch.setattr(download_module, "_alone_in", lambda _: nullcontext())
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
        assert first.result().startswith(f"another process is writing {part_of(path)}, too; when it has ended")
    assert_arrived(path)


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
