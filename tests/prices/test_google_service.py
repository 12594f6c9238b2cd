"""What Google's billing catalog is asked, page by page, with which login, and what its refusals mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import google_billing
from orchestrator.errors import BadInput, CloudRefused, LoginNeeded, OrchestrateError
from tests.prices.listings import a3, fees, n1
from tests.prices.services import API_KEY, Service, google_fault

LISTED = [*a3(), *n1()]


def refused(key: str | None = API_KEY) -> OrchestrateError:
    with pytest.raises(OrchestrateError) as caught:
        list(google_billing.skus(key))
    return caught.value


def test_every_page_is_read(billing: Service) -> None:
    billing.entries = LISTED
    assert list(google_billing.skus(API_KEY)) == LISTED
    assert [asked.get("pageToken") for asked in billing.heard] == [None, "page-2", "page-4"]
    assert {asked["pageSize"] for asked in billing.heard} == {"5000"}


def test_the_key_goes_into_a_header_and_into_no_address(billing: Service) -> None:
    billing.entries = LISTED
    list(google_billing.skus(API_KEY))
    assert {headers["x-goog-api-key"] for headers in billing.headers} == {API_KEY}
    assert not any(API_KEY in path for path in billing.paths)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_page_that_fails_once_is_asked_for_again(billing: Service, status: int) -> None:
    billing.entries = LISTED
    billing.faults = {1: (status, b"<html>bad gateway</html>")}
    assert list(google_billing.skus(API_KEY)) == LISTED
    assert billing.requests == 4


def test_a_page_that_fails_twice_is_an_error(billing: Service) -> None:
    billing.entries = LISTED
    billing.faults = {1: (502, b"<html>"), 2: (502, b"<html>")}
    error = refused()
    assert isinstance(error, CloudRefused)
    assert "HTTP 502" in error.what
    assert "prices import FILE" in str(error.hint)


def test_a_key_that_is_not_valid_is_said_and_not_shown(billing: Service) -> None:
    wrong = "a-wrong-key-that-is-nobodys"
    error = refused(wrong)
    assert isinstance(error, LoginNeeded)
    assert "API key not valid" in error.what
    assert wrong not in error.what
    assert "--google-api-key-file" in str(error.hint)


@pytest.mark.parametrize(
    ("status", "message", "kind", "hint"),
    [
        (403, "Cloud Billing API has not been used in project 7 before", CloudRefused, "gcloud services enable"),
        (403, "Requests from this IP are blocked by API key restrictions", LoginNeeded, "--google-api-key-file"),
        (401, "Request had invalid authentication credentials.", LoginNeeded, "application-default login"),
        (429, "Quota exceeded", CloudRefused, "later"),
        (404, "Requested entity was not found.", CloudRefused, "later"),
    ],
)
def test_a_refusal_is_told_with_what_helps(
    billing: Service, status: int, message: str, kind: type[OrchestrateError], hint: str
) -> None:
    billing.faults = {0: google_fault(status, message, "X")}
    error = refused()
    assert type(error) is kind
    assert message in error.what
    assert hint in str(error.hint)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "something else than JSON"),
        (b"[]", "something else than a page"),
        (b'{"skus": {}}', "something else than SKUs"),
        (b'{"skus": [1]}', "something else than SKUs"),
        (b"[" * 100_000, "something else than JSON"),
    ],
)
def test_an_answer_that_is_no_page_is_an_error(billing: Service, body: bytes, words: str) -> None:
    billing.faults = {0: (200, body)}
    error = refused()
    assert isinstance(error, CloudRefused)
    assert words in error.what


def test_a_redirect_is_not_followed_and_the_key_stays_here(billing: Service) -> None:
    billing.faults = {0: (302, b"")}
    assert "HTTP 302" in refused().what
    assert billing.requests == 1


def test_a_list_that_does_not_end_is_given_up(billing: Service) -> None:
    billing.entries, billing.forever = LISTED, True
    assert "does not come to an end" in refused().what


def test_a_service_that_cannot_be_reached_is_told_in_one_line(
    billing: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_GOOGLE_BILLING_URL", "http://127.0.0.1:1")
    error = refused()
    assert isinstance(error, CloudRefused)
    assert error.what.startswith("cannot reach Google's billing catalog: ")
    assert "\n" not in error.what


@pytest.mark.parametrize(
    "address",
    ["http://example.com", "ftp://127.0.0.1", "file:///etc/passwd", "127.0.0.1", "http://127.0.0.1.example.com"],
)
def test_a_key_is_sent_to_no_address_where_others_could_read_it(
    address: str, billing: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_GOOGLE_BILLING_URL", address)
    error = refused()
    assert isinstance(error, BadInput)
    assert address in error.what


# Keys and logins


def test_the_file_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert google_billing.api_key(None) is None
    monkeypatch.setenv("GOOGLE_API_KEY", "from-the-shell")
    assert google_billing.api_key(None) == "from-the-shell"
    file = tmp_path / "key"
    file.write_text("  from-the-file\n")
    assert google_billing.api_key(file) == "from-the-file"


@pytest.mark.parametrize(
    "content", ["", "\n", "two\nlines", "one two", "k" * 201, "schlüssel", "\x00\x01", '{"a": "key"}\n{}']
)
def test_a_file_without_a_key_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match="there is no API key in") as caught:
        google_billing.api_key(file)
    assert len(content) < 3 or content not in caught.value.what


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read '.*nowhere': No such file"):
        google_billing.api_key(tmp_path / "nowhere")


def test_without_key_and_login_both_ways_are_named(billing: Service) -> None:
    pytest.importorskip("google.auth")
    error = refused(None)
    assert isinstance(error, LoginNeeded)
    assert "gcloud auth application-default login" in str(error.hint)
    assert "--google-api-key-file FILE" in str(error.hint)
    assert billing.requests == 0


def test_a_login_of_googles_own_library_reads_the_catalog(
    billing: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("google.auth")
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "a-project",
        "private_key_id": "1",
        "private_key": private.decode(),
        "client_email": "test@a-project.iam.gserviceaccount.com",
        "token_uri": f"{billing.url}/token",
    }
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    billing.entries = [*LISTED, *fees()]
    assert list(google_billing.skus(None)) == [*LISTED, *fees()]
    assert "/token" in billing.paths
    assert not any("x-goog-api-key" in headers for headers in billing.headers)
