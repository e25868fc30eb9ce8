"""The HTTP API over a fake service: every route, every kind of error, every limit."""

import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from streamlearn.api import Service, create_app
from streamlearn.errors import SearchError, SettingsError
from streamlearn.metrics import Metrics
from streamlearn.schemas import SearchRequest, thumbnail_url
from streamlearn.server import Server
from streamlearn.settings import ApiSettings
from streamlearn.testing import FakeClip, FakeService, fake_clips


@contextlib.contextmanager
def serving(service: Service, **settings: object) -> Iterator[TestClient]:
    registry = CollectorRegistry()
    app = create_app(service, settings=ApiSettings(**settings), metrics=Metrics.create(registry), registry=registry)
    # A failure must become an answer, as it does under a real server.
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def service() -> FakeService:
    return FakeService(fake_clips(12))


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with serving(service) as client:
        yield client


def problem(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["type"].startswith("urn:streamlearn:problem:") or body["type"] == "about:blank"
    return body


# --- searching


def test_search_answers_best_first_in_the_shape_of_the_contract(client):
    answer = client.post("/v1/search", json={"query": {"text": "a red ball rolls to the left over the sand"}}).json()
    assert set(answer) == {
        "results", "model_version", "generation", "as_of", "staleness", "took_ms", "next_page_token",
    }  # fmt: skip
    assert len(answer["results"]) == 10
    best = answer["results"][0]
    assert set(best) == {
        "rank", "score", "video_id", "uri", "start_s", "end_s", "captions", "meta", "task", "thumbnail_url",
        "embedded_at_step",
    }  # fmt: skip
    assert best["captions"] == ["a red ball rolls to the left over the sand"]
    assert [r["rank"] for r in answer["results"]] == list(range(1, 11))


def test_search_passes_limit_filter_include_and_page_token_to_the_service(client, service):
    body = {
        "query": {"text": "x"},
        "limit": 3,
        "filter": {
            "task": "t2",
            "meta.camera": ["7", 8, True],
            "meta.n": {"gt": 3, "lte": 4.5},
            "time": {"gte": "2026-01-01T00:00:00Z", "lt": "2026-01-01t12:00:00+01:00"},
        },
        "include": ["vector"],
        "page_token": "abc",
    }
    answer = client.post("/v1/search", json=body).json()
    request = service.requests[-1]
    assert (request.limit, request.page_token, request.include) == (3, "abc", ["vector"])
    assert request.filter == {**body["filter"], "task": ["t2"]}
    assert {r["task"] for r in answer["results"]} == {"t2"}
    assert answer["results"][0]["vector"] == [1.0, 0.0]


@pytest.mark.parametrize("query", [{"video_id": "cam-0/0000.mp4"}, {"vector": [0.6, 0.8]}, {"uri": "https://h/v.mp4"}])
def test_search_takes_every_kind_of_query(client, service, query):
    service.failure = SearchError("enough seen")
    problem(client.post("/v1/search", json={"query": query}), 422)
    assert service.requests[-1].query.model_dump(exclude_none=True) == query


def test_search_by_get_is_the_same_search(client):
    by_get = client.get("/v1/search", params={"q": "a blue square", "limit": 2}).json()
    by_post = client.post("/v1/search", json={"query": {"text": "a blue square"}, "limit": 2}).json()
    assert by_get["results"] == by_post["results"]
    assert len(by_get["results"]) == 2


def test_search_observes_queue_and_total_of_answered_searches_only(client, service):
    client.get("/v1/search", params={"q": "ball"})
    service.failure = SearchError("no")
    client.get("/v1/search", params={"q": "ball"})
    text = client.get("/metrics").text
    assert 'streamlearn_search_seconds_count{stage="queue"} 2.0' in text
    assert 'streamlearn_search_seconds_count{stage="total"} 1.0' in text


# --- bad requests


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"query": {}}, "query"),
        ({"query": {"text": "a", "video_id": "b"}}, "query"),
        ({"query": {"text": None}}, "query"),
        ({"query": "a"}, "query"),
        ({"query": {"text": ""}}, "query.text"),
        ({"query": {"text": " \n\t"}}, "query.text"),
        ({"query": {"text": "a\0b"}}, "query.text"),
        ({"query": {"text": "a" * 2001}}, "query.text"),
        ({"query": {"text": 7}}, "query.text"),
        ({"query": {"words": "a"}}, "query.words"),
        ({"query": {"video_id": ""}}, "query.video_id"),
        ({"query": {"vector": []}}, "query.vector"),
        ({"query": {"vector": [0.0, 0.0]}}, "query.vector"),
        ({"query": {"vector": [1e300]}}, "query.vector"),
        ({"query": {"vector": ["1"]}}, "query.vector.0"),
        ({"query": {"text": "a"}, "limit": 0}, "limit"),
        ({"query": {"text": "a"}, "limit": "10"}, "limit"),
        ({"query": {"text": "a"}, "limit": 10**400}, "limit"),
        ({"query": {"text": "a"}, "limits": 3}, "limits"),
        ({"query": {"text": "a"}, "include": ["audio"]}, "include.0"),
        ({"query": {"text": "a"}, "filter": {"camera": "7"}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"meta.": "7"}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"meta.camera": []}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"meta.camera": {"is": 1}}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"meta.n": 2**63}}, "filter"),
        ({"query": {"text": "a"}, "filter": {f"meta.{i}": 1 for i in range(33)}}, "filter"),
        ({"query": {"text": "a"}, "filter": [1]}, "filter"),
        ({"query": {"text": "a"}, "filter": {"time": "2026-01-01T00:00:00Z"}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"time": {"gte": "2026-01-01T00:00:00"}}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"time": {"gte": 1767225600}}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"time": {}}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"task": {"gt": "t1"}}}, "filter"),
        ({"query": {"text": "a"}, "filter": {"meta.n": {"gt": [1]}}}, "filter"),
        ({"query": {"text": "a"}, "page_token": 3}, "page_token"),
        ([], "body"),
        ("a red ball", "body"),
    ],
)
def test_invalid_request_names_the_field_and_the_remedy(client, service, body, field):
    errors = problem(client.post("/v1/search", json=body), 422)["errors"]
    assert [e["field"] for e in errors] == [field]
    assert errors[0]["remedy"]
    assert service.requests == []


@pytest.mark.parametrize("params", [{}, {"q": ""}, {"q": " "}, {"q": "a\0"}, {"q": "a" * 2001}])
def test_invalid_search_by_get_names_q(client, params):
    assert problem(client.get("/v1/search", params=params), 422)["errors"][0]["field"] == "q"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"\xff\xfe",
        b'{"query": {"text": "\xff"}}',
        b'{"query": {"text": "\\ud800"}}',
        b'{"\\ud800": 1, "query": {"text": "a"}}',
        b'{"query": {"text": "a"}, "filter": {"task": "\\udfff"}}',
        b'{"query": {"text": "a"}, "filter": {"meta.\\udfff": 1}}',
        b'{"query": {"text": "a"}, "filter": {"meta.n": NaN}}',
        b'{"query": {"text": "a"}, "page_token": "\\ud800"}',
        b'{"query": {"vector": [NaN]}}',
        b'{"query": {"vector": [-Infinity]}}',
        b'{"query": {"text": "a"}, "limit": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_hostile_bytes_are_the_senders_fault(client, service, body):
    response = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    problem(response, response.status_code)
    assert service.requests == []


def test_body_that_is_not_declared_as_json_is_415(client):
    problem(client.post("/v1/search", data={"query": "x"}), 415)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["task", "time", "meta.a", "text", "vector", "gte"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
near_requests = st.fixed_dictionaries(
    {},
    optional={
        "query": json_values
        | st.fixed_dictionaries({}, optional=dict.fromkeys(["text", "video_id", "uri"], json_values)),
        "limit": json_values,
        "filter": json_values,
        "include": json_values,
        "page_token": json_values,
    },
)


@hypothesis_settings(max_examples=150, deadline=None, derandomize=True)
@given(body=near_requests | json_values)
def test_no_json_body_gives_a_500(shared_client, body):
    headers = {"Content-Type": "application/json"}
    response = shared_client.post("/v1/search", content=json.dumps(body).encode(), headers=headers)
    assert response.status_code in (200, 404, 422)
    if response.status_code != 200:
        problem(response, response.status_code)


@pytest.fixture(scope="module")
def shared_client() -> Iterator[TestClient]:
    with serving(FakeService(fake_clips(4))) as client:
        yield client


# --- limits


def test_body_with_a_large_declared_length_is_413(service):
    with serving(service, max_body_bytes=100) as client:
        body = problem(client.post("/v1/search", json={"query": {"text": "a" * 200}}), 413)
        assert "100 bytes" in body["detail"]
        assert client.post("/v1/search", json={"query": {"text": "a" * 50}}).status_code == 200


def test_body_without_a_declared_length_is_refused_before_its_end(service):
    with running(service, max_body_bytes=100) as url:
        port = int(url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + 3 * (b"28\r\n" + b" " * 40 + b"\r\n")
            )
            # The last chunk is never sent; the answer comes, and then the connection's end.
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_one_search_too_many_is_429_at_once_and_the_next_is_answered(service):
    service.gate.clear()
    with serving(service, max_concurrent_searches=2) as client, ThreadPoolExecutor() as pool:
        try:
            running = [pool.submit(client.get, "/v1/search", params={"q": "ball"}) for _ in range(2)]
            for _ in running:
                assert service.entered.acquire(timeout=30)
            refused = client.get("/v1/search", params={"q": "ball"})
            assert client.get("/v1/status").status_code == 200  # other reads have threads of their own
        finally:
            service.gate.set()
        problem(refused, 429)
        assert refused.headers["retry-after"] == "1"
        assert [r.result().status_code for r in running] == [200, 200]
        assert client.get("/v1/search", params={"q": "ball"}).status_code == 200


@pytest.mark.parametrize("failure", [SearchError("no such clip", status=404), RuntimeError("secret of the house")])
def test_failed_searches_give_their_place_back(service, failure):
    with serving(service, max_concurrent_searches=1) as client:
        service.failure = failure
        for _ in range(3):
            assert client.get("/v1/search", params={"q": "a"}).status_code in (404, 500)
        service.failure = None
        assert client.get("/v1/search", params={"q": "a"}).status_code == 200


# --- errors of the service and of the address


@pytest.mark.parametrize("status", [404, 422, 503, 507])
def test_search_error_becomes_its_status(client, service, status):
    service.failure = SearchError("a sentence for the user", status=status)
    assert problem(client.get("/v1/search", params={"q": "a"}), status)["detail"] == "a sentence for the user"


def test_unexpected_error_is_500_and_tells_nothing_of_itself(client, service):
    service.failure = RuntimeError("secret of the house")
    response = client.get("/v1/search", params={"q": "a"})
    problem(response, 500)
    assert "secret" not in response.text
    assert "Traceback" not in response.text


def test_unknown_address_and_wrong_method_are_problems(client):
    assert "/v1/nothing" in problem(client.get("/v1/nothing"), 404)["detail"]
    assert problem(client.get("/v1/status/"), 404)
    response = client.delete("/v1/status")
    problem(response, 405)
    assert "GET" in response.headers["allow"]


# --- clips


@pytest.mark.parametrize(
    "video_id", ["plain", "a/b/c.mp4", "Ein Fluß/川 ?#%2F&.mp4", "x/thumbnail", "thumbnail", "..a//b"]
)
def test_any_id_reaches_its_clip_and_its_thumbnail(video_id):
    # Over a socket: the test client decodes a path twice.
    with running(FakeService([FakeClip(video_id, "a red ball"), FakeClip("x", "a blue ball")])) as url:
        path = thumbnail_url(video_id)
        assert httpx.get(url + path.removesuffix("/thumbnail")).json()["video_id"] == video_id
        image = httpx.get(url + path)
        assert image.headers["content-type"] == "image/webp"
        assert image.content[:4] == b"RIFF"


def test_clip_whose_slashes_are_not_escaped_is_found_too(client):
    assert client.get("/v1/clips/cam-0/0000.mp4").json()["video_id"] == "cam-0/0000.mp4"
    assert client.get("/v1/clips/cam-0/0000.mp4/thumbnail").status_code == 200


def test_unknown_clip_and_thumbnail_are_404(client):
    problem(client.get("/v1/clips/none"), 404)
    problem(client.get("/v1/clips/none/thumbnail"), 404)


def test_thumbnail_that_cannot_be_had_now_says_when_to_ask_again():
    class Away(FakeService):
        def thumbnail(self, video_id: str) -> bytes | None:
            raise SearchError("its host is away", status=503, retry_after_s=41.2)

    with serving(Away()) as client:
        answer = client.get("/v1/clips/cam-0/0000.mp4/thumbnail")
    assert problem(answer, 503)["detail"] == "its host is away"
    assert answer.headers["retry-after"] == "42"


@pytest.mark.parametrize("video_id", ["", "%20", "a%00b", "a" * 1025])
def test_impossible_id_is_422(client, video_id):
    for path in (f"/v1/clips/{video_id}", f"/v1/clips/{video_id}/thumbnail"):
        assert problem(client.get(path), 422)["errors"][0]["field"] == "video_id"


def test_thumbnail_is_not_sent_again_while_it_is_the_same(client):
    first = client.get("/v1/clips/cam-0/0000.mp4/thumbnail")
    again = client.get("/v1/clips/cam-0/0000.mp4/thumbnail", headers={"If-None-Match": first.headers["etag"]})
    other = client.get("/v1/clips/cam-1/0001.mp4/thumbnail", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert other.status_code == 200
    assert "max-age" in first.headers["cache-control"]


# --- the rest of the reads


def test_reads_pass_on_what_the_service_says(client, service):
    for name in ("tasks", "evaluation", "status"):
        assert client.get(f"/v1/{name}").json() == getattr(service, name)()
    assert client.get("/v1/scores").json() == service.scores(None, None, None, None, 200, 10)


def test_scores_are_asked_for_by_task_direction_k_and_view():
    class Asked(FakeService):
        def scores(self, *what):
            return {"asked": what}

    with serving(Asked()) as client:
        said = client.get("/v1/scores?task=t1&direction=t2v&k=5&view=pool&most=7&columns=12").json()
        assert said == {"asked": ["t1", "t2v", 5, "pool", 7, 12]}
        assert client.get("/v1/scores?view=single").status_code == 200
        assert client.get("/v1/scores?view=other").status_code == 422


def test_score_that_does_not_exist_is_null():
    class Young(FakeService):
        def scores(self, *_):
            return {"points": [], "forgetting": {"t1": float("nan")}}

    with serving(Young()) as client:
        assert client.get("/v1/scores").json()["forgetting"] == {"t1": None}


def test_health_follows_the_snapshot_and_life_does_not(client, service):
    service.is_ready = False
    assert client.get("/livez").status_code == 200
    for path in ("/readyz", "/healthz"):
        assert problem(client.get(path), 503)["detail"] == "nothing is indexed yet"
        assert client.head(path).status_code == 503
    service.is_ready = True
    for path in ("/livez", "/readyz", "/healthz"):
        assert client.get(path).status_code == 200
        assert client.head(path).status_code == 200


def test_metrics_are_prometheus_text_of_the_given_registry(client):
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "# TYPE streamlearn_search_seconds histogram" in response.text


def test_openapi_resolves_and_documents_the_problems(client):
    schema = client.get("/openapi.json").json()
    references = {node["$ref"] for node in _objects(schema) if "$ref" in node}
    for reference in references:
        node = schema
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    search = schema["paths"]["/v1/search"]["post"]["responses"]
    assert {"200", "400", "413", "415", "422", "429", "500", "503"} <= set(search)
    for status, response in search.items():
        assert list(response["content"]) == ["application/json" if status == "200" else "application/problem+json"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def _objects(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from _objects(value)


# --- the token


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("s3cret ünïcode\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3cret", "Bearer é"]
)
def test_without_the_token_nothing_is_told(service, token_file, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    with serving(service, token_file=token_file) as client:
        for path in ("/v1/status", "/v1/clips/x", "/openapi.json", "/v1/nothing", "/metrics/"):
            response = client.get(path, headers=headers)
            problem(response, 401)
            assert response.headers["www-authenticate"].startswith("Bearer")
        # Not even whether the body is valid.
        problem(client.post("/v1/search", content=b"{", headers=headers), 401)
    assert service.requests == []


def test_with_the_token_all_is_told(service, token_file):
    headers = {"Authorization": "bearer s3cret ünïcode".encode()}
    with serving(service, token_file=token_file) as client:
        assert client.post("/v1/search", json={"query": {"text": "a"}}, headers=headers).status_code == 200
        schema = client.get("/openapi.json", headers=headers).json()
        assert schema["paths"]["/v1/status"]["get"]["security"]


def test_health_metrics_and_page_need_no_token(service, token_file):
    with serving(service, token_file=token_file) as client:
        for path in ("/livez", "/readyz", "/healthz", "/metrics", "/", "/app.js", "/style.css"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize("content", [None, b"", b" \n"])
def test_token_file_without_a_token_stops_the_start(service, tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"api\.token_file"), serving(service, token_file=path):
        pass


# --- the page's files


def test_page_forbids_everything_from_elsewhere(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "//" not in response.text.replace("<!doctype", "").replace("<!--", "")


# --- the real server


@contextlib.contextmanager
def running(service: Service, **settings: object) -> Iterator[str]:
    registry = CollectorRegistry()
    app = create_app(service, settings=ApiSettings(**settings), metrics=Metrics.create(registry), registry=registry)
    with Server(app, host="127.0.0.1", port=0) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_server_answers_over_a_socket_and_leaves_signals_alone(service):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with running(service) as url:
        assert httpx.get(f"{url}/v1/search", params={"q": "ball"}).json()["results"]
        assert "server" not in httpx.get(f"{url}/livez").headers
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez")


def test_port_in_use_is_a_settings_error_that_names_the_remedy(service):
    with running(service) as url:
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(SettingsError, match=rf"api\.port = {port}: .*in use.*another port"):
            Server(create_nothing, host="127.0.0.1", port=port)


def test_host_that_is_not_ours_is_a_settings_error():
    with pytest.raises(SettingsError, match=r"api\.(host|port)"):
        Server(create_nothing, host="256.0.0.1.invalid", port=0)


async def create_nothing(scope: object, receive: object, send: object) -> None:
    """An application that never answers."""


def test_stop_finishes_the_searches_that_run(service):
    service.gate.clear()
    registry = CollectorRegistry()
    app = create_app(service, settings=ApiSettings(), metrics=Metrics.create(registry), registry=registry)
    server = Server(app, host="127.0.0.1", port=0)
    server.start()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.get, f"http://127.0.0.1:{server.port}/v1/search", params={"q": "ball"}, timeout=30)
        assert service.entered.acquire(timeout=30)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        service.gate.set()
        assert answer.result().status_code == 200
        stopping.join(timeout=30)
        assert not stopping.is_alive()
    server.stop()


def test_client_that_goes_away_breaks_nothing(service, caplog):
    service.gate.clear()
    with running(service, max_concurrent_searches=1) as url, caplog.at_level(logging.WARNING):
        port = int(url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /v1/search?q=ball HTTP/1.1\r\nHost: x\r\n\r\n")
            assert service.entered.acquire(timeout=30)
        service.gate.set()
        # Its place is free again as soon as its answer is made.
        deadline_s = time.monotonic() + 30
        with httpx.Client() as client:
            while (status := client.get(f"{url}/v1/search", params={"q": "ball"}).status_code) == 429:
                assert time.monotonic() < deadline_s
            assert status == 200
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.get(f"{url}/livez").status_code == 200
    assert caplog.records == []


def test_large_body_is_refused_over_a_socket_and_the_refusal_can_be_read(service):
    with running(service) as url:
        response = httpx.post(f"{url}/v1/search", content=b" " * 5_000_000)
        problem(response, 413)


def test_api_imports_neither_torch_nor_faiss():
    code = "import sys, streamlearn.api, streamlearn.server; print(sorted({'torch', 'faiss', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_search_request_is_frozen():
    request = SearchRequest(query={"text": "a"})
    with pytest.raises(ValueError, match="frozen"):
        request.limit = 3
