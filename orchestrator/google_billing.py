"""Google's billing catalog over REST: every SKU of Vertex AI, page by page, with an API key or a login of gcloud's."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput, CloudRefused, LoginNeeded, OrchestrateError, shown

VERTEX_AI = "C7E2-9256-1C43"
ADDRESS = "https://cloudbilling.googleapis.com"
PAGE = 5000
MOST_PAGES = 200
MOST_BYTES = 256 << 20
SECONDS = 60.0
PAUSE_SECONDS = 1.0
_LONGEST_KEY = 200
_SCOPE = "https://www.googleapis.com/auth/cloud-billing.readonly"
_OFFLINE = "or without a login: orchestrate prices import FILE, an export of the SKUs"
Fetch = Callable[[str], tuple[int, bytes]]
"""Gets an address; gives the status and the body, also of a refusal."""
Report = Callable[[str, int, int], None]


def api_key(file: Path | None) -> str | None:
    """The key in *file*, else in $GOOGLE_API_KEY. It is neither kept nor shown. Raises BadInput if it cannot be one."""
    if file is None:
        key, place = os.environ.get("GOOGLE_API_KEY", ""), "$GOOGLE_API_KEY"
        if not key:
            return None
    else:
        place = shown(file, 300)
        try:
            with file.expanduser().open("rb") as opened:
                key = opened.read(4096).decode("ascii", "replace")
        except OSError as error:
            hint = "--google-api-key-file FILE, a file with the key in its only line"
            raise BadInput(f"cannot read {place}: {error.strerror}", hint=hint) from error
    key = key.strip()
    if not key or len(key) > _LONGEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise BadInput(f"there is no API key in {place}", hint="console.cloud.google.com/apis/credentials makes one")
    return key


def skus(key: str | None, *, address: str | None = None, report: Report | None = None) -> Iterator[dict[str, Any]]:
    """Every SKU of Vertex AI, of all regions.

    key: an API key; None: the application default credentials. address: of the service, Google's own by default.
    Raises LoginNeeded, CloudRefused or BadInput, each with what helps.
    """
    base = _checked(address or os.environ.get("ORCHESTRATE_GOOGLE_BILLING_URL") or ADDRESS)
    fetch = _with_key(key) if key else _with_login()
    token, seen = "", 0
    for _ in range(MOST_PAGES):
        if report is not None:
            report("Google's billing catalog", seen, seen + PAGE)  # how many there are is not told
        query = {"currencyCode": "USD", "pageSize": str(PAGE)} | ({"pageToken": token} if token else {})
        page = _page(fetch, f"{base}/v1/services/{VERTEX_AI}/skus?{urllib.parse.urlencode(query)}", key)
        found = page.get("skus", [])
        if not isinstance(found, list) or not all(isinstance(sku, dict) for sku in found):
            raise CloudRefused("Google's billing catalog answers with something else than SKUs", hint=_AGAIN)
        yield from found
        seen += len(found)
        before, token = token, str(page.get("nextPageToken") or "")
        if not token:
            if report is not None:
                report("Google's billing catalog", seen, seen)
            return
        if token == before:
            break
    raise CloudRefused("Google's billing catalog does not come to an end", hint=_AGAIN)


_AGAIN = "the same command later"


def _page(fetch: Fetch, url: str, key: str | None) -> dict[str, Any]:
    status, body = fetch(url)
    if status in (500, 502, 503, 504):  # seen now and then; the next try gets through
        time.sleep(PAUSE_SECONDS)
        status, body = fetch(url)
    if status != 200:
        raise _refusal(status, body, key)
    try:
        page = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CloudRefused("Google's billing catalog answers with something else than JSON", hint=_AGAIN) from error
    if not isinstance(page, dict):
        raise CloudRefused("Google's billing catalog answers with something else than a page", hint=_AGAIN)
    return page


def _refusal(status: int, body: bytes, key: str | None) -> OrchestrateError:
    words = _words(body) or f"HTTP {status}"
    if key:
        words = words.replace(key, "…")
    what = f"cannot read Google's billing catalog: {words}"
    if status == 401 or (status in (400, 403) and "API key" in words) or "unregistered callers" in words:
        hint = (
            f"--google-api-key-file FILE with a key that is valid, or gcloud auth application-default login; {_OFFLINE}"
        )
        return LoginNeeded(what, hint=hint)
    if status == 403:
        return CloudRefused(what, hint=f"gcloud services enable cloudbilling.googleapis.com; {_OFFLINE}")
    return CloudRefused(what, hint=f"{_AGAIN}; {_OFFLINE}")


def _words(body: bytes) -> str:
    """The service's own words, in one line."""
    try:
        told = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return " ".join(str(told).split())[:300]


def _with_key(key: str) -> Fetch:
    # As a header: addresses are written into logs, also those of proxies.
    return lambda url: _opened(urllib.request.Request(url, headers={"X-Goog-Api-Key": key}))  # noqa: S310 - _checked


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like another: the key is not carried to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opened(request: urllib.request.Request) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            return answer.status, _bounded(answer.read(MOST_BYTES + 1))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(error) from error


def _bounded(body: bytes) -> bytes:
    if len(body) > MOST_BYTES:
        raise CloudRefused(
            f"Google's billing catalog answers with over {MOST_BYTES >> 20} MiB in one page", hint=_AGAIN
        )
    return body


def _unreachable(error: Exception) -> CloudRefused:
    why = getattr(error, "reason", None) or error
    return CloudRefused(
        f"cannot reach Google's billing catalog: {why}", hint=f"look at the network and proxy; {_OFFLINE}"
    )


def _with_login() -> Fetch:
    """Gets addresses as the application default credentials. Raises LoginNeeded where there are none that work."""
    try:
        import google.auth
        import google.auth.exceptions
        import google.auth.transport.requests
    except ImportError as error:
        hint = f"--google-api-key-file FILE, or pip install 'orchestrate-ml[vertex]'; {_OFFLINE}"
        raise LoginNeeded(
            "no Google API key, and google-auth, which would log in, is not installed", hint=hint
        ) from error
    login = f"gcloud auth application-default login, or --google-api-key-file FILE; {_OFFLINE}"
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except google.auth.exceptions.GoogleAuthError as error:
        raise LoginNeeded(f"no Google login: {_first_line(error)}", hint=login) from error

    session_of: Any = google.auth.transport.requests.AuthorizedSession

    def fetch(url: str) -> tuple[int, bytes]:
        import requests

        try:
            with (
                session_of(credentials) as session,
                session.get(url, timeout=SECONDS, allow_redirects=False) as answer,
            ):
                return answer.status_code, _bounded(answer.content)
        except google.auth.exceptions.GoogleAuthError as error:
            raise LoginNeeded(f"the Google login does not work: {_first_line(error)}", hint=login) from error
        except requests.RequestException as error:
            raise _unreachable(error) from error

    return fetch


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _checked(address: str) -> str:
    """*address*, where a key may be sent: encrypted, or to this machine. Raises BadInput."""
    try:
        parts = urllib.parse.urlsplit(address)
        host = parts.hostname or ""
        here = host == "localhost" or (parts.scheme == "http" and ipaddress.ip_address(host).is_loopback)
    except ValueError:
        here, parts = False, urllib.parse.urlsplit("")
    if not (parts.scheme == "https" or (parts.scheme == "http" and here)):
        hint = "unset ORCHESTRATE_GOOGLE_BILLING_URL: Google's own address is used"
        raise BadInput(f"{shown(address)} is not an address to ask for prices", hint=hint)
    return address.rstrip("/")
