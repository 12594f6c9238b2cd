"""Keys and passwords that must not leave this machine, told by a file's name or found in a text.

A name that says so (`.env`, `id_rsa`, `.netrc`) is enough. In a text, only keys whose form gives them away are looked for:
their issuers mark them (`AKIA…`, `AIza…`, `hf_…`, `ghp_…`), or the words before them do. Examples (`AKIA…EXAMPLE`,
`hf_xxxxxxxx…`) and public keys are none.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_NAMES = {
    **dict.fromkeys(
        ("id_rsa", "id_dsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"), "a private SSH key"
    ),
    ".netrc": "logins and passwords",
    "_netrc": "logins and passwords",
    ".git-credentials": "logins and passwords",
    ".pypirc": "a PyPI login",
    "kaggle.json": "a Kaggle key",
    "application_default_credentials.json": "Google credentials",
}
_NAMES_IN_FOLDER = {  # the last two parts of a path
    ".aws/credentials": "AWS credentials",
    ".docker/config.json": "Docker logins",
    ".kube/config": "Kubernetes credentials",
    "gcloud/access_tokens.db": "Google credentials",
    "gcloud/credentials.db": "Google credentials",
    "huggingface/token": "a Hugging Face token",
}
_SUFFIXES = {".p12": "a private key", ".pfx": "a private key", ".ppk": "a private SSH key"}
_TEMPLATES = (".example", ".sample", ".template", ".dist")  # .env.example shows which names to fill in

# Every key but a PEM begins a run of at least so many characters of [A-Za-z0-9_-]. Runs are found in two fast passes
# (a table look-up, a search), and only where one begins are the forms below tried: 5 to 10 times as fast as looking for
# a dozen prefixes.
_RUN_LENGTH = 20
_RUN_BYTE, _BREAK_BYTE = b"T", b" "
_RUN = _RUN_BYTE * _RUN_LENGTH
_CLASSES = bytes(
    (_RUN_BYTE if byte < 128 and (chr(byte).isalnum() or byte in b"_-") else _BREAK_BYTE)[0] for byte in range(256)
)

# The characters before are for keys in a string of JSON or source, after `\n`, `\u003d` or a URL's `%3D`.
_TOKEN = re.compile(
    rb"""(?: (?<=\\)(?:[nrt]|u[0-9a-fA-F]{4}) | (?<=%)[0-9A-F]{2} )?
    (?: (?P<AWS_access_key>         (?:AKIA|ASIA)[A-Z0-9]{16} )
      | (?P<AWS_secret_key>         (?i:aws_secret_access_key)["'\]]{0,2}\s{0,4}[=:]\s{0,4}["']?[A-Za-z0-9/+]{40}(?![/+]) )
      | (?P<Google_API_key>         AIza[A-Za-z0-9_-]{35} )
      | (?P<Google_OAuth_secret>    GOCSPX-[A-Za-z0-9_-]{28} )
      | (?P<Google_refresh_token>   (?<=1//)0[A-Za-z0-9_-]{40,} )
      | (?P<Hugging_Face_token>     (?:hf_|api_org_)[A-Za-z0-9]{30,} )
      | (?P<GitHub_token>           gh[pousr]_[A-Za-z0-9]{36,} | github_pat_[A-Za-z0-9_]{50,} )
      | (?P<Slack_token>            xox[abeoprs]-[0-9][A-Za-z0-9-]{14,} | xapp-[0-9]-[A-Za-z0-9-]{15,} )
      | (?P<PyPI_token>             pypi-AgE[A-Za-z0-9_-]{50,} )
      | (?P<OpenAI_key>             sk-proj-[A-Za-z0-9_-]{20,} )
      | (?P<Anthropic_key>          sk-ant-[A-Za-z0-9_-]{20,} )
      | (?P<Weights_and_Biases_key> wandb_v[0-9]_[A-Za-z0-9_]{40,} | [0-9a-f]{40} )
    ) (?![A-Za-z0-9_-])""",
    re.VERBOSE,
)
_FIRST_BYTES = frozenset(b"AaGghxpsw0")  # of the forms above: a cheap test that most runs of a text fail
_BEFORE_AN_ESCAPE = frozenset(b"\\%")
_WANDB_LENGTH = 40  # hex digits, which alone may be a commit
_WANDB_BEFORE = re.compile(rb"wandb[^\n]{0,60}?(?:key|token|login|password)[^\n]{0,10}\Z", re.IGNORECASE)
_EXAMPLE = re.compile(rb"example|([x0])\1{7}", re.IGNORECASE)

_PEM_MARK = b"PRIVATE KEY"
_PEM = re.compile(
    rb"""-----BEGIN[ ](?:[A-Z0-9]+[ ]){0,3}PRIVATE[ ]KEY(?:[ ]BLOCK)?-----
    (?:\\[rn]|[\s"'+>|]){1,64}  # a line's end, also as written in a string
    (?: [A-Za-z0-9+/]{16} | Proc-Type: | DEK-Info: | Version: | Comment: | [A-Za-z0-9+/=.\s\\]{0,300}-----END )""",
    re.VERBOSE,
)
FORMS = f"{zlib.crc32(_TOKEN.pattern + _PEM.pattern + _WANDB_BEFORE.pattern + _EXAMPLE.pattern):08x}"
"""Tells these forms from other versions' ones: what was searched for others has to be searched again."""
_MARGIN_BYTES = 512  # no form above is longer, nor looks further back
_BLOCK_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Found:
    """A key in a text: its kind ("AWS access key") and the byte at which it begins. Never the key."""

    kind: str
    offset: int


def looks_like_secret(text: str) -> str | None:
    """The kind of the first key in *text* ("Hugging Face token"), or None.

    Give a variable as `NAME=value`: some keys, such as W&B's, are known by the name before them only.
    """
    found = next(find([text.encode("utf-8", "surrogatepass")]), None)
    return found.kind if found else None


def named_like_secret(path: str) -> str | None:
    """What a file of this POSIX path holds by its name ("a private SSH key"), or None."""
    parts = path.lower().split("/")
    name = parts[-1]
    if (name == ".env" or name.startswith(".env.")) and not name.endswith(_TEMPLATES):
        return "environment variables, often with passwords"
    return _NAMES.get(name) or _NAMES_IN_FOLDER.get("/".join(parts[-2:])) or _SUFFIXES.get(name[-4:])


def find(blocks: Iterable[bytes]) -> Iterator[Found]:
    """The keys in a text given in blocks of any size, in constant memory; a key may lie across blocks."""
    window, start, low = b"", 0, 0
    for block in blocks:
        window += block
        high = len(window) - _MARGIN_BYTES
        if high > low:
            yield from _in_window(window, start, low, high)
            cut = max(high - _MARGIN_BYTES, 0)
            window, start, low = window[cut:], start + cut, high - cut
    yield from _in_window(window, start, low, len(window))


def _in_window(window: bytes, start: int, low: int, high: int) -> Iterator[Found]:
    """The keys that begin at window[low:high]; *start* is the window's own place in the text."""
    if window.find(_PEM_MARK, low) >= 0:
        for pem in _PEM.finditer(window, low):
            if pem.start() < high:
                yield Found("private key", start + pem.start())
    runs = window.translate(_CLASSES)
    at = runs.find(_RUN, low)
    if at == low > 0 and runs[low - 1 : low] == _RUN_BYTE:
        at = runs.find(_RUN, _end_of_run(runs, at))  # it began in the part that has been searched
    while 0 <= at < high:
        end = _end_of_run(runs, at)
        if window[at] in _FIRST_BYTES or window[at - 1] in _BEFORE_AN_ESCAPE or end - at == _WANDB_LENGTH:
            kind = _kind_at(window, at)
            if kind:
                yield Found(kind, start + at)
        at = runs.find(_RUN, end)


def _end_of_run(runs: bytes, at: int) -> int:
    end = runs.find(_BREAK_BYTE, at + _RUN_LENGTH)
    return end if end >= 0 else len(runs)


def _kind_at(window: bytes, at: int) -> str | None:
    token = _TOKEN.match(window, at)
    if token is None or token.lastgroup is None or _EXAMPLE.search(token.group()):
        return None
    kind = token.lastgroup
    if kind == "Weights_and_Biases_key" and b"_" not in token.group():
        before = window[max(at - 100, 0) : at]
        if not _WANDB_BEFORE.search(before):
            return None
    return kind.replace("_", " ")


def line_of(path: Path, offset: int) -> int:
    """The number, from 1, of the line in which the byte at *offset* of *path* lies. Raises OSError."""
    line, left = 1, offset
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
            line += block.count(b"\n")
            left -= len(block)
    return line
