"""What others may write of identities: tokens, requests for certificates, answers of servers, files of keys."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.property.foreign import anything, damaged, forged, outcome, texts
from vmkeep.agent.credentials import Credentials
from vmkeep.agent.enrolment import authorities_of, taken
from vmkeep.agent.requests import clock_error_seconds, clock_text, is_time, read_answer
from vmkeep.identity.certificates import (
    Authority,
    certificate_pem,
    draw_key,
    host_of,
    key_of_request,
    key_pem,
    make_request,
    read_certificate,
)
from vmkeep.identity.proofs import check_nonce, make_nonce
from vmkeep.identity.tokens import Token
from vmkeep.keys.authority import Authorities

NOW = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
AT = NOW.isoformat(timespec="microseconds")
AUTHORITY = Authority.draw(NOW)
KEY = draw_key()
ID = "1" * 32
PEM = AUTHORITY.for_host(KEY.public_key(), ID, NOW, 30).pem
TRUSTED = certificate_pem(AUTHORITY.certificate)
HELD = Credentials("h:1", "h:2", ID, "alpha", (TRUSTED,), key_pem(KEY), PEM, "")
ANSWER = {"host": ID, "name": "a", "certificate": PEM, "authorities": [TRUSTED], "agents": "h:2", "server_time": AT}
AGENT = {
    **dict.fromkeys(("next_key", "next_certificate", "invite"), ""),
    "format": "vmkeep agent",
    "version": 1,
    "server": "h:1",
    "agents": "h:2",
    "host": ID,
    "name": "alpha",
    "authorities": [TRUSTED],
    "key": key_pem(KEY),
    "certificate": PEM,
}
SIGNING = {
    "format": "vmkeep authority",
    "version": 1,
    "key": key_pem(AUTHORITY.key),
    "certificate": TRUSTED,
    "former": "",
    "across": "",
}
TOKEN = Token.draw("vmkeep.example:8443", AUTHORITY.fingerprint).text()
tried = settings(max_examples=examples(30), deadline=None)


@tried
@given(st.one_of(texts, damaged(TOKEN.encode()).map(lambda data: data.decode("latin-1"))))
def test_any_token(text: str) -> None:
    outcome(lambda: Token.parse(text))


@tried
@given(damaged(make_request(KEY)), damaged(PEM.encode()), texts)
def test_any_request_and_any_certificate(request: bytes, pem: bytes, text: str) -> None:
    outcome(lambda: key_of_request(request))
    for each in (text, pem.decode("latin-1")):
        read = outcome(lambda each=each: read_certificate(each))  # type: ignore[misc]  # bound where it is made
        if read is not None:
            outcome(lambda read=read: host_of(read))  # type: ignore[misc]
    outcome(lambda: check_nonce(b"secret", text, AT))
    outcome(lambda: check_nonce(b"secret", make_nonce(b"secret", AT)[:-1] + text[:1], AT))


@tried
@given(st.one_of(forged(ANSWER), st.dictionaries(texts, anything, max_size=4)), st.integers(100, 599))
def test_any_answer_of_a_server(answer: Any, status: int) -> None:
    if not isinstance(answer, dict):
        return
    new = outcome(lambda: taken(HELD, answer, HELD.key))
    if new is not None:
        assert new.promoted().described().key == HELD.described().key
        assert new.host == ID
    outcome(lambda: authorities_of(answer))
    assert isinstance(clock_text(clock_error_seconds(answer)), str)
    is_time(answer.get("server_time"))
    try:
        content = json.dumps(answer).encode()
    except ValueError:
        return
    outcome(lambda: read_answer("h:1", status, content))


@tried
@given(damaged(json.dumps(ANSWER).encode()), st.sampled_from([200, 403, 500]))
def test_any_bytes_of_a_server(content: bytes, status: int) -> None:
    outcome(lambda: read_answer("h:1", status, content))


@tried
@given(
    st.one_of(forged(AGENT).map(json.dumps).map(str.encode), damaged(json.dumps(AGENT).encode())),
    st.one_of(forged(SIGNING).map(json.dumps).map(str.encode), damaged(json.dumps(SIGNING).encode())),
)
def test_any_file_of_keys(agent: bytes, signing: bytes) -> None:
    with TemporaryDirectory() as place:
        path = Path(place) / "key"
        path.write_bytes(agent)
        held = outcome(lambda: Credentials.load(path))
        if held is not None:
            assert held.key
        path.write_bytes(signing)
        outcome(lambda: Authorities.load(path))
