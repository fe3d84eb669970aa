"""The HTTP interface: answers, bounds, strangers, and nothing that ends in a 500."""

import http.client
import io
import json
import logging
import socket
import string
import threading
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beit3_vqa.apps.serve import guard
from beit3_vqa.apps.serve import server as connections
from beit3_vqa.apps.serve.ensemble import Ensemble
from beit3_vqa.apps.serve.guard import LOOPBACK_NAMES, refusal
from beit3_vqa.apps.serve.limits import MAX_BODY_BYTES, MAX_UPLOAD_BYTES
from beit3_vqa.data import decoding
from tests.helpers.hostile_images import jpeg2000_of_precincts, jpeg_of_scans
from tests.helpers.serve_client import CHOICES, ask, form, running, send


def test_answer_over_http_equals_the_models(url, ensemble, photograph):
    status, said = ask(url, photograph, attention="true")
    assert status == 200
    expected = ensemble.predictors[0].predict(photograph, "What is in the picture?", CHOICES)
    assert said["answer"] == expected.answer
    assert [option["letter"] for option in said["options"]] == list("ABCD")
    assert [option["text"] for option in said["options"]] == list(CHOICES)
    assert [option["probability"] for option in said["options"]] == pytest.approx(
        list(expected.probabilities.values()), abs=1e-5
    )
    assert said["text"] == CHOICES["ABCD".index(said["answer"])]
    (look,) = said["attention"]
    assert look["region"] == [0, 0, 1, 1]
    assert [len(row) for row in look["patches"]] == [4, 4, 4, 4]
    assert ask(url, photograph)[1]["attention"] == []


def test_clients_at_the_same_time_get_their_own_answers(url, ensemble, scpc):
    images = sorted((scpc / "images").iterdir())[:12]
    expected = [ensemble.predictors[0].predict(path, f"What is {path.stem}?", CHOICES).probabilities for path in images]
    got: dict[int, list[float]] = {}

    def client(place):
        _, said = ask(url, images[place], f"What is {images[place].stem}?")
        got[place] = [option["probability"] for option in said["options"]]

    threads = [threading.Thread(target=client, args=(place,)) for place in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for place, probabilities in enumerate(expected):
        assert got[place] == pytest.approx(list(probabilities.values()), abs=1e-5)


def png(*size: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return file.getvalue()


BAD_IMAGES = {
    "text": (b"no image", "no image that can be read"),
    "empty": (b"", "empty"),
    "truncated": (png(2000, 2000)[:90], "truncated"),
    "huge": (png(10_000, 6_000), "10000 x 6000 pixels"),
    "of a thousand scans": (jpeg_of_scans(10_000, 10_000, 1000), "a JPEG of more than 20 scans"),
    "decoded for ever": (jpeg2000_of_precincts(7000), "can't be decoded within 1 s"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_one_clear_error(url, name, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_DECODE_SECONDS", 1)
    content, says = BAD_IMAGES[name]
    status, said = ask(url, content)
    assert status == 422
    assert list(said) == ["error"]
    assert said["error"].startswith("the image ")
    assert says in said["error"]
    assert "/" not in said["error"]  # no path of the server


@pytest.mark.parametrize(
    ("question", "choices", "says"),
    [
        ("What?", CHOICES[:3], "among 4 options; 3 were given"),
        ("What?", (), "give 4 choices"),
        ("What?", ("a", "a", "b", "c"), "must differ"),
        ("What?", ("a", " ", "b", "c"), "none may be empty"),
        ("What?", CHOICES * 10, "choices"),
        ("What?", ("a", "b", "c", "d" * 301), "choices.3: String should have at most 300"),
        ("What?" * 300, CHOICES, "question: String should have at most 1000"),
        (" ", CHOICES, "the question is empty"),
        ("", CHOICES, "question: is empty"),
        ("What?", ("",), "none may be empty"),
        ("a\0b", CHOICES, "NUL"),
        ("What?", ("lots of words " * 20, *CHOICES[:3]), "the options are too long, shorten them"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(url, photograph, question, choices, says):
    status, said = ask(url, photograph, question, choices)
    assert status in (400, 422)
    assert says in said["error"] or "Too many fields" in said["error"]
    assert "--" not in said["error"]  # a client has no options


@pytest.mark.parametrize(("name", "value"), [("question", "Which?"), ("attention", "true"), ("image", b"")])
def test_a_field_that_is_there_twice_is_refused(url, photograph, name, value):
    parts = [("choices", choice) for choice in CHOICES]
    parts += [("image", photograph.read_bytes()), ("question", "What?"), ("attention", "false")]
    body, headers = form([*parts, (name, value)])
    status, said = send(url, "POST", "/api/answer", body, headers)
    assert status == 400
    assert f"{name!r} is there twice" in said["error"] or "Too many files" in said["error"]


@pytest.mark.parametrize("encoding", ["cp949", "cp1252", "shift_jis", "utf-16"])
@pytest.mark.parametrize("field", ["question", "choices"])
@pytest.mark.parametrize("charset", ["", "; charset=utf-8", '; charset="UTF-8"'])
def test_text_that_is_not_in_utf_8_is_refused(url, photograph, encoding, field, charset):
    parts = [("image", photograph.read_bytes()), ("question", "What?"), *(("choices", choice) for choice in CHOICES)]
    text = {"cp1252": "café ’", "shift_jis": "赤い車"}.get(encoding, "고양이")
    body, headers = form([(name, "MARK" if name == field else value) for name, value in parts])
    headers["Content-Type"] += charset
    status, said = send(url, "POST", "/api/answer", body.replace(b"MARK", text.encode(encoding)), headers)
    assert (status, said) == (415, {"error": "text must be UTF-8."})


def test_utf_8_text_of_latin_1_letters_is_unchanged(url, photograph):
    choices = ("café", "Ä", "Ã©", "고양이")
    for headers in ({}, {"Content-Type": "multipart/form-data; charset=utf-8; boundary="}):
        body, kind = form(
            [("image", photograph.read_bytes()), ("question", "où?"), *(("choices", choice) for choice in choices)]
        )
        if headers:  # the character set before the boundary
            kind = {"Content-Type": headers["Content-Type"] + kind["Content-Type"].partition("boundary=")[2]}
        status, said = send(url, "POST", "/api/answer", body, kind)
        assert status == 200
        assert [option["text"] for option in said["options"]] == list(choices)


def test_markup_and_control_characters_stay_text(url, photograph):
    choices = ("<img src=x onerror=alert(1)>", '"; drop', "\x1b[2J", "한국어 🙂")
    status, said = ask(url, photograph, "<b>What?</b>", choices)
    assert status == 200
    assert [option["text"] for option in said["options"]] == list(choices)


def test_an_upload_that_is_too_large_is_refused_by_its_bytes(url):
    """Whatever the request says about its length."""
    status, said = send(url, "POST", "/api/answer", b"", {"Content-Length": str(MAX_BODY_BYTES + 1)})
    assert (status, "scale the image down" in said["error"]) == (413, True)
    body, headers = form([("image", b"\0" * (MAX_UPLOAD_BYTES + 1)), ("question", "What?")])
    assert send(url, "POST", "/api/answer", body, headers)[0] == 413

    def pieces():
        yield form([("image", b"\0" * 100)])[0].rsplit(b"\r\n--", 1)[0]
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b"\0" * 2**20

    kind = {"Content-Type": headers["Content-Type"]}
    try:
        status, said = send(url, "POST", "/api/answer", pieces(), kind)
    except (BrokenPipeError, ConnectionResetError):
        return  # it hung up on us, which is as good
    assert status in (400, 413)


def test_a_request_that_never_ends_is_ended_with_408(url, monkeypatch):
    monkeypatch.setattr(guard, "MAX_BODY_SECONDS", 0.2)
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        head = "POST /api/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def raw(url, *lines):
    """The reply to a request of these lines, until the server hangs up."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return b"".join(iter(lambda: connection.recv(1000), b""))


@pytest.mark.parametrize("header", ["Content-Type: multipart/form-data; boundary=x", "Sec-Fetch-Site: none"])
def test_a_header_sent_twice_is_refused(url, header):
    """The first one is what others read: `charset=punycode`, a page of another site."""
    first = {"C": "Content-Type: multipart/form-data; boundary=x; charset=punycode", "S": "Sec-Fetch-Site: cross-site"}
    lines = ["POST /api/answer HTTP/1.1", "Host: localhost", "Content-Length: 0", first[header[0]], header]
    kind = [] if header.startswith("C") else ["Content-Type: multipart/form-data; boundary=x"]
    said = raw(url, *lines, *kind, "Connection: close", "", "")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"is there twice" in said


def test_a_missing_field_is_named(url, photograph):
    body, headers = form([("image", photograph.read_bytes())])
    status, said = send(url, "POST", "/api/answer", body, headers)
    assert (status, said["error"]) == (422, "question: Field required")


@pytest.mark.parametrize("length", ["0", "5", "999"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_content_length_together_with_transfer_encoding_is_refused(url, length, version):
    """A proxy may believe the other one, and take what follows for somebody else's request."""
    lines = [f"POST /api/answer HTTP/{version}", "Host: localhost", "Content-Type: multipart/form-data; boundary=x"]
    lines += [f"Content-Length: {length}", "Transfer-Encoding: chunked", "", "0", "", "GET /api/model HTTP/1.1"]
    said = raw(url, *lines, "Host: localhost", "", "")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1") == 1  # the second request isn't answered
    assert b"Content-Length and Transfer-Encoding" in said


@pytest.mark.parametrize(
    ("header", "status"),
    [("Transfer-Encoding: chunked", 400), ("Transfer-Encoding: gzip, chunked", 400), ("Content-Length: 5, 6", 400)],
)
def test_a_body_of_unclear_length_is_refused(url, header, status):
    said = raw(url, "POST /api/answer HTTP/1.0", "Host: localhost", header, "", "")
    assert said.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    "kind", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; x", ""]
)
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("POST", "/api/model", 405),
        ("PUT", "/api/answer", 405),
        ("GET", "/api/answer", 405),
        ("POST", "/nothing", 404),
    ],
)
def test_a_wrong_path_or_method_is_reported_before_a_bad_form(url, kind, method, path, status):
    assert send(url, method, path, b"{}", {"Content-Type": kind})[0] == status


def test_too_many_connections_get_503(url, photograph, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(connections, "MAX_SOCKETS", 5)
    place = urlsplit(url)
    held = [socket.create_connection((place.hostname, place.port)) for _ in range(3)]
    with closing(http.client.HTTPConnection(place.netloc, timeout=20)) as connection:
        connection.request("GET", "/api/model")
        reply = connection.getresponse()
        assert reply.status == 503
        assert reply.getheader("retry-after") == "1"
        assert "ask again" in json.loads(reply.read())["error"]
    held += [socket.create_connection((place.hostname, place.port), timeout=20) for _ in range(3)]
    assert held[-1].recv(1) == b""  # the sixth is closed before it says anything
    for one in held:
        one.close()
    for _ in range(100):  # until it has noticed that they are closed
        if ask(url, photograph)[0] == 200:
            break
    assert ask(url, photograph)[0] == 200


def test_questions_of_clients_that_hung_up_count_as_open_requests(ensemble, photograph, monkeypatch):
    """Else they would pile up before the one thread that reads images, without end."""
    monkeypatch.setattr(guard, "MAX_CONNECTIONS", 3)
    reading, go_on = threading.Event(), threading.Event()

    class Slow(Ensemble):
        def prepare(self, *arguments, **options):
            reading.set()
            assert go_on.wait(20)
            return super().prepare(*arguments, **options)

    with running(Slow(ensemble.predictors)) as url:
        place = urlsplit(url)
        body, headers = form([("image", photograph.read_bytes()), ("question", "What?")])
        head = f"POST /api/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        whole = f"{head}Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body
        for _ in range(3):
            with socket.create_connection((place.hostname, place.port)) as connection:
                connection.sendall(whole)
        assert reading.wait(20)
        for status, then in ((503, go_on.set), (200, lambda: None)):
            for _ in range(100):
                if send(url, "GET", "/api/model")[0] == status:
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(f"never answered with {status}")
            then()
        assert ask(url, photograph)[0] == 200


@pytest.mark.parametrize("lines", [(), ("GET / HTTP/1.1", "Host: loc"), ("GET / HTTP/1.1", "Host: localhost", "X: y")])
def test_an_idle_connection_is_closed(url, photograph, monkeypatch, lines):
    monkeypatch.setattr(connections, "MAX_IDLE_SECONDS", 0.2)
    assert raw(url, *lines) == b""
    assert ask(url, photograph)[0] == 200


def test_a_body_that_is_not_http_is_a_client_error(url):
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    logging.getLogger("uvicorn.error").addHandler(handler)
    try:
        head = [
            "POST /api/answer HTTP/1.1",
            "Host: localhost",
            "Content-Type: text/plain",
            "Transfer-Encoding: chunked",
        ]
        assert raw(url, *head, "", "no length", "").startswith(b"HTTP/1.1 400 ")
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
    assert said == []  # nor of its log's


def test_too_many_fields_are_refused(url):
    body, headers = form([("x", "y")] * 1000)
    assert send(url, "POST", "/api/answer", body, headers)[0] == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "["}, 400),
        ({"Host": "evil.example@localhost"}, 400),
        ({"Host": "localhost@evil.example"}, 400),
        ({"Host": "localhost:0"}, 400),
        ({"Host": "localhost:65536"}, 400),
        ({"Host": "localhost:999999999"}, 400),
        ({"Host": "localhost:80x"}, 400),
        ({"Host": "localhost:-1"}, 400),
        ({"Host": "localhost/x"}, 400),
        ({"Host": "localhost?x"}, 400),
        ({"Host": "localhost#x"}, 400),
        ({"Host": "[::1]x"}, 400),
        ({"Host": "[127.0.0.1]"}, 400),
        ({"Host": "localhost:8000, evil.example"}, 400),
        ({"Host": "localhost:9999"}, 200),  # through a tunnel
        ({"Host": "localhost:65535"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "[::1]"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://localhost"}, 403),  # another server of this machine
        ({"Origin": "app://localhost", "Host": "localhost"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Content-Type": "multipart/form-data; boundary=x; charset=utf-7"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x; charset=utf-8; charset=utf-7"}, 415),
    ],
)
def test_foreign_hosts_and_origins_are_refused(url, photograph, headers, status):
    assert ask(url, photograph, headers=headers)[0] == status


@pytest.mark.parametrize("host", ["evil.example@my.machine", "my.machine:99999", "my.machine/x"])
def test_a_malformed_host_is_refused_even_if_any_name_is_served(host):
    assert refusal("GET", {"host": host}, None)[0] == 400
    assert refusal("GET", {"host": "my.machine:8000"}, None) is None


TOKEN = "a-token_of.24~characters"


@pytest.fixture(scope="module")
def closed_url(ensemble):
    with running(ensemble, token=TOKEN) as address:
        yield address


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN.upper()}", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer ÿ", 401),
    ],
)
def test_only_the_token_opens_the_interface(closed_url, photograph, sent, status):
    headers = {} if sent is None else {"Authorization": sent}
    for path in ("/api/model", f"/api/model?token={TOKEN}"):  # in an address it would be logged
        assert send(closed_url, "GET", path, headers=headers)[0] == status
    answered, said = ask(closed_url, photograph, headers=headers)
    assert answered == status
    assert status == 200 or "asks for a token" in said["error"]


def test_a_refused_client_with_a_large_body_sees_the_reply(closed_url, monkeypatch):
    """And isn't cut off in the middle of it."""
    started = time.monotonic()
    for _ in range(5):
        status, said = ask(closed_url, b"\0" * 2**23)
        assert (status, "asks for a token" in said["error"]) == (401, True)
    assert time.monotonic() - started < 5
    monkeypatch.setattr(guard, "MAX_REFUSED_SECONDS", 0.1)
    place = urlsplit(closed_url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:  # who doesn't go on sending
        connection.sendall(b"POST /api/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_without_the_token_only_the_packages_own_files_are_served(closed_url):
    for path in ("/", "/docs", "/page.js", "/token.js", "/openapi.json"):
        assert send(closed_url, "GET", path)[0] == 200
    for path in ("/nothing", "/api", "/api/", "//api/model", "/./api/model", "/page.js/../api/model", "/%61pi/model"):
        assert send(closed_url, "GET", path)[0] == 401
    with closing(http.client.HTTPConnection(urlsplit(closed_url).netloc)) as connection:
        connection.request("GET", "/api/model")
        assert connection.getresponse().getheader("www-authenticate") == "Bearer"


def test_own_page_may_post(url, photograph):
    assert ask(url, photograph, headers={"Origin": url, "Sec-Fetch-Site": "same-origin"})[0] == 200


@given(st.text(string.printable, max_size=40))
def test_only_loopback_names_count_as_loopback(host):
    if refusal("GET", {"host": host}, LOOPBACK_NAMES) is None:
        name, _, port = host.lower().partition("]:" if host.startswith("[") else ":")
        assert name.rstrip("]") in ("127.0.0.1", "localhost", "[::1"), host
        assert port.isdigit() or port in ("", "]"), host


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from(
        ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/json", "x", ""]
    ),
)
def test_any_form_ends_in_a_clear_error(url, body, kind):
    status, said = send(url, "POST", "/api/answer", b"--x\r\n" + body, {"Content-Type": kind})
    assert status in (400, 415, 422)
    assert list(said) == ["error"]


def test_server_answers_on_after_a_client_hangs_up(url, photograph):
    body, headers = form([("image", photograph.read_bytes()), ("question", "What?")])
    place = urlsplit(url)
    for cut in (10, len(body) // 2, len(body)):
        with socket.create_connection((place.hostname, place.port)) as connection:
            head = f"POST /api/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            head += f"Content-Type: {headers['Content-Type']}\r\n\r\n"
            connection.sendall(head.encode() + body[:cut])
    assert ask(url, photograph)[0] == 200


def test_every_reply_has_the_security_headers(url):
    for path in ("/", "/page.js", "/api/model", "/openapi.json", "/docs", "/nothing"):
        with closing(http.client.HTTPConnection(urlsplit(url).netloc)) as connection:
            connection.request("GET", path)
            reply = connection.getresponse()
            reply.read()
        assert reply.status == (404 if path == "/nothing" else 200)
        policy = reply.getheader("content-security-policy")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.getheader("x-content-type-options") == "nosniff"
        assert reply.getheader("access-control-allow-origin") is None


def test_openapi_describes_the_replies(url, photograph):
    _, described = send(url, "GET", "/openapi.json")
    _, model = send(url, "GET", "/api/model")
    _, said = ask(url, photograph, attention="true")
    schemas = described["components"]["schemas"]
    assert set(described["paths"]) == {"/api/model", "/api/answer"}
    assert set(schemas["Description"]["properties"]) == set(model)
    assert set(schemas["Reply"]["properties"]) == set(said)
    assert set(schemas["AttentionOverlay"]["properties"]) == set(said["attention"][0])
    assert {"403", "413", "421", "422", "503"} <= set(described["paths"]["/api/answer"]["post"]["responses"])
    assert model["fewest_options"] == model["most_options"] == 4
    assert "https://" not in json.dumps(described)
