"""Downloads that are cut off, resumed, lied to, or asked for twice at the same time."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coldpress.store.download import RemoteFile, fetch_file
from coldpress.store.fetch import HttpError, open_url, read_json
from coldpress.store.local import Store
from quant.format.errors import InputError
from tests.coldpress.store.http_server import Asked, Reply, http_host, ranged

BODY = os.urandom(3 << 20)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def remote(url: str, **fields: object) -> RemoteFile:
    told = {"path": "x.gguf", "bytes": len(BODY), "url": f"{url}/x", "sha256": SHA256, **fields}
    return RemoteFile(**told)  # type: ignore[arg-type]


def no_pause(seconds: float) -> None: ...


def test_a_download_that_breaks_off_goes_on_where_it_was(store: Store) -> None:
    counted: list[int] = []
    with http_host(lambda asked: ranged(BODY, asked, cut_at=1 << 20)) as host:
        stored = fetch_file(store, remote(host.url), counted.append, no_pause)
    assert store.blob(stored.sha256).read_bytes() == BODY
    assert sum(counted) == len(BODY)
    ranges = [asked.headers.get("range") for asked in host.asked]
    assert ranges[0] is None and ranges[1:3] == ["bytes=1048576-", "bytes=2097152-"]


def test_what_has_arrived_is_kept_for_the_next_pull(store: Store) -> None:
    def once(asked: Asked) -> Reply:
        return ranged(BODY, asked, cut_at=1 << 20) if len(host.asked) == 1 else Reply(503)

    with (
        http_host(once) as host,
        pytest.raises(HttpError, match="answered 503 to GET /x"),
    ):
        fetch_file(store, remote(host.url), pause=no_pause)
    assert not store.blob(SHA256).exists()
    with http_host(lambda asked: ranged(BODY, asked)) as host:
        fetch_file(store, remote(host.url), pause=no_pause)
        assert [asked.headers.get("range") for asked in host.asked] == ["bytes=1048576-"]
        fetch_file(store, remote(host.url), pause=no_pause)
        assert len(host.asked) == 1, "what is there is not asked for"
    assert store.blob(SHA256).read_bytes() == BODY
    assert list(store.partial.glob("*")) == [store.partial / f"{SHA256}.lock"]


def test_a_host_that_cannot_resume_sends_all_of_it_again(store: Store) -> None:
    def whole(asked: Asked) -> Reply:
        return Reply(200, BODY, cut_at=1 << 20 if len(host.asked) == 1 else None)

    with http_host(whole) as host:
        fetch_file(store, remote(host.url), pause=no_pause)
    assert store.blob(SHA256).read_bytes() == BODY and len(host.asked) == 2


def test_what_was_kept_and_is_damaged_is_fetched_anew(store: Store) -> None:
    store.partial.mkdir(parents=True)
    (store.partial / SHA256).write_bytes(b"x" * 1000)
    counted: list[int] = []
    with http_host(lambda asked: ranged(BODY, asked)) as host:
        fetch_file(store, remote(host.url), counted.append, no_pause)
    assert store.blob(SHA256).read_bytes() == BODY and sum(counted) == len(BODY)


def test_what_is_not_what_was_promised_is_deleted(store: Store) -> None:
    other = bytes(len(BODY))
    with (
        http_host(lambda asked: ranged(other, asked)) as host,
        pytest.raises(InputError, match=r"is not what was promised .its digest differs"),
    ):
        fetch_file(store, remote(host.url), pause=no_pause)
    assert not store.blob(SHA256).exists()
    assert (store.partial / SHA256).stat().st_size == 0


def test_a_file_that_does_not_end_is_cut_off(store: Store) -> None:
    with (
        http_host(lambda asked: Reply(200, BODY + b"x")) as host,
        pytest.raises(InputError, match="is larger than the 3,145,728 bytes that it was"),
    ):
        fetch_file(store, remote(host.url), pause=no_pause)
    assert (store.partial / SHA256).stat().st_size == 0


def test_git_names_small_files_by_another_digest(store: Store) -> None:
    text = b'{"a": 1}\n'
    name = hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
    with http_host(lambda asked: Reply(200, text)) as host:
        file = remote(host.url, bytes=len(text), sha256=None, git_sha1=name)
        stored = fetch_file(store, file, pause=no_pause)
        assert stored.sha256 == hashlib.sha256(text).hexdigest()
        with pytest.raises(InputError, match="digest differs"):
            wrong = remote(host.url, bytes=len(text), sha256=None, git_sha1="0" * 40)
            fetch_file(store, wrong, pause=no_pause)


def test_two_pulls_of_the_same_file_fetch_it_once(store: Store) -> None:
    with http_host(lambda asked: ranged(BODY, asked)) as host, ThreadPoolExecutor(4) as pool:
        fetched = [pool.submit(fetch_file, store, remote(host.url)) for _ in range(4)]
        assert {one.result(20).sha256 for one in fetched} == {SHA256}
        assert len(host.asked) == 1


def test_a_file_that_is_not_there_is_not_asked_for_twice(store: Store) -> None:
    with http_host(lambda asked: Reply(404)) as host:
        with pytest.raises(HttpError, match="answered 404"):
            fetch_file(store, remote(host.url), pause=no_pause)
        assert len(host.asked) == 1


@pytest.mark.parametrize(
    "fields", [{"sha256": "../../../etc/passwd"}, {"sha256": "A" * 64}, {"sha256": None},
               {"sha256": SHA256 + "\n"}, {"bytes": -1}, {"sha256": None, "git_sha1": "../x"}],
)  # fmt: skip
def test_digests_that_are_none_never_become_file_names(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="refused"):
        remote("http://127.0.0.1", **fields)


def test_secrets_stay_with_the_host_they_are_for(store: Store) -> None:
    with http_host(lambda asked: ranged(BODY, asked)) as stranger:

        def away(asked: Asked) -> Reply:
            if asked.path == "/x":
                return Reply(307, headers={"Location": "/moved"})
            return Reply(302, headers={"Location": f"{stranger.url}/signed"})

        with http_host(away) as host:
            secret = {"Authorization": "Bearer secret"}
            fetch_file(store, remote(host.url, headers=secret), pause=no_pause)
    assert [asked.headers.get("authorization") for asked in host.asked] == ["Bearer secret"] * 2
    assert [asked.path for asked in stranger.asked] == ["/signed"]
    assert "authorization" not in stranger.asked[0].headers


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_lead_to_http_alone(target: str) -> None:
    with (
        http_host(lambda asked: Reply(302, headers={"Location": target})) as host,
        pytest.raises(HttpError, match=r"redirects to|answered 302"),
    ):
        open_url(f"{host.url}/x")
    with pytest.raises(InputError, match="is not an http or https address"):
        open_url(target)


def test_redirects_end() -> None:
    with http_host(lambda asked: Reply(302, headers={"Location": f"/{len(host.asked)}"})) as host:
        with pytest.raises(HttpError):
            open_url(f"{host.url}/x")
        assert len(host.asked) < 10


def test_answers_that_unpack_themselves_are_refused() -> None:
    with (
        http_host(lambda asked: Reply(200, b"x", {"Content-Encoding": "gzip"})) as host,
        pytest.raises(HttpError, match="sent compressed data unasked"),
    ):
        open_url(f"{host.url}/x")


def test_json_is_bounded() -> None:
    with (
        http_host(lambda asked: Reply(200, b"[" * (4 << 20))) as host,
        pytest.raises(HttpError, match="is not JSON"),
    ):
        read_json(host.url)
    with (
        http_host(lambda asked: Reply(200, b" " * ((4 << 20) + 1))) as host,
        pytest.raises(HttpError, match="larger than 4,194,304 bytes"),
    ):
        read_json(host.url)


def test_a_host_that_is_not_there_is_named() -> None:
    with pytest.raises(HttpError, match=r"127\.0\.0\.1:1 cannot be reached .* check the network"):
        open_url("http://127.0.0.1:1/x")
