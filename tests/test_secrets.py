"""Which texts and file names are taken for secrets. All keys here are put together as the tests run, and none is real."""

from __future__ import annotations

import base64
import itertools
import random
import string
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import secrets

chance = random.Random(7)
LETTERS = string.ascii_letters + string.digits


def letters(count: int, among: str = LETTERS) -> str:
    return "".join(chance.choices(among, k=count))


def pem(kind: str, body: str = "", newline: str = "\n") -> str:
    body = body or newline.join(letters(64) for _ in range(4))
    return f"-----{'BEGIN'} {kind}-----{newline}{body}{newline}-----END {kind}-----{newline}"


UPPER = string.ascii_uppercase + "234567"
HEX = "0123456789abcdef"
PLANTED = [
    ("AWS access key", "AKI" + "A" + letters(16, UPPER)),
    ("AWS access key", "ASI" + "A" + letters(16, UPPER)),
    ("AWS access key", f"X-Amz-Credential={'AKI'}A{letters(16, UPPER)}%2F20260101"),
    ("AWS access key", f"?c%3D{'AKI'}A{letters(16, UPPER)}/20260101"),
    ("AWS access key", f'{{"cell": "key:\\n{"AKI"}A{letters(16, UPPER)}\\n"}}'),
    ("AWS secret key", f"aws_secret_access_key = {letters(20)}/{letters(9)}+{letters(9)}"),
    ("AWS secret key", f"export AWS_SECRET_ACCESS_KEY={letters(40)}"),
    ("AWS secret key", f'os.environ["AWS_SECRET_ACCESS_KEY"] = "{letters(40)}"'),
    ("AWS secret key", f'"aws_secret_access_key": "{letters(40)}"'),
    ("Google API key", "AIz" + "aSy" + letters(33, LETTERS + "-_")),
    ("Google API key", f"https://maps/api?key={'AIz'}aSy{letters(33)}&x=1"),
    ("Google OAuth secret", "GOCSP" + "X-" + letters(28, LETTERS + "-_")),
    ("Google refresh token", f'"refresh_token": "1//0{letters(60)}"'),
    ("Hugging Face token", "hf" + "_" + letters(34, string.ascii_letters)),
    ("Hugging Face token", f"https://{'hf'}_{letters(34)}@huggingface.co/me/model"),
    ("Hugging Face token", f"HF_TOKEN={'hf'}_{letters(34)}"),
    ("GitHub token", "gh" + "p_" + letters(36)),
    ("GitHub token", f"git+https://{'gh'}s_{letters(36)}@github.com/me/it"),
    ("GitHub token", "github_" + "pat_" + letters(22) + "_" + letters(59)),
    ("Slack token", "xox" + "b-" + letters(12, string.digits) + "-" + letters(24)),
    ("PyPI token", "pypi-" + "AgEIcHlwaS5vcmc" + letters(120)),
    ("OpenAI key", "sk-" + "proj-" + letters(80, LETTERS + "-_")),
    ("Anthropic key", "sk-" + "ant-api03-" + letters(90, LETTERS + "-_")),
    ("Weights and Biases key", f"WANDB_API_KEY={letters(40, HEX)}"),
    ("Weights and Biases key", f'wandb.login(key="{letters(40, HEX)}")'),
    ("Weights and Biases key", f"wandb login {letters(40, HEX)}"),
    ("Weights and Biases key", f'os.environ["WANDB_API_KEY"] = "{letters(40, HEX)}"'),
    ("Weights and Biases key", "wandb_" + "v1_" + letters(60)),
    ("private key", pem("RSA PRIVATE KEY")),
    ("private key", pem("PRIVATE KEY")),
    ("private key", pem("EC PRIVATE KEY", newline="\r\n")),
    ("private key", pem("OPENSSH PRIVATE KEY")),
    ("private key", pem("ENCRYPTED PRIVATE KEY")),
    ("private key", pem("PGP PRIVATE KEY BLOCK", "Version: GnuPG v2\n\n" + letters(64))),
    ("private key", pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n" + letters(64))),
    ("private key", '{"type": "service_account", "private_key": "' + pem("PRIVATE KEY", newline="\\n") + '"}'),
    ("private key", 'KEY = (\n    "' + pem("PRIVATE KEY", newline='\\n"\n    "') + '")'),
    ("private key", "  key: |\n" + pem("PRIVATE KEY", newline="\n    ")),
    ("private key", pem("PRIVATE KEY", "MIIE...")),
]

HARMLESS = [
    "AKI" + "AIOSFODNN7EXAMPLE",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "aws_secret_access_key = os.environ['AWS_SECRET_ACCESS_KEY']",
    "AKI" + "A" + "X" * 16,
    "hf" + "_" + "x" * 34,
    "HF_TOKEN=hf" + "_your_token_goes_right_here_please",
    "hf" + "_hub_download(repo_id='gpt2', filename='config.json')",
    "AIz" + "aSy" + "X" * 33,
    "AIz" + "a" + letters(60),
    "gh" + "p_" + letters(10),
    "commit = '" + letters(40, HEX) + "'",
    "wandb @ git+https://github.com/wandb/wandb@" + letters(40, HEX),
    "sha256:" + letters(64, HEX),
    "xoxo-love-and-kisses",
    "an_identifier_that_merely_goes_on_for_quite_a_while",
    'if "-----BEGIN PRIVATE KEY-----" in text:\n    raise ValueError',
    'header = "-----BEGIN PRIVATE KEY-----\\n" + base64.encodebytes(key) + "-----END PRIVATE KEY-----"',
    pem("PUBLIC KEY"),
    pem("CERTIFICATE"),
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + letters(43) + " me@laptop",
    "data:image/png;base64," + base64.b64encode(random.Random(1).randbytes(30_000)).decode(),
]


@pytest.mark.parametrize(("kind", "text"), PLANTED, ids=lambda value: value[:25])
def test_a_key_is_found_and_its_kind_told(kind: str, text: str) -> None:
    assert secrets.looks_like_secret(text) == kind
    assert secrets.looks_like_secret(f'import torch\n\nvalue = "{text}"  # mine\n') == kind


@pytest.mark.parametrize("text", HARMLESS, ids=lambda value: value[:25])
def test_what_only_resembles_a_key_is_let_through(text: str) -> None:
    assert secrets.looks_like_secret(text) is None
    assert secrets.looks_like_secret(f'import torch\n\nvalue = "{text}"\n') is None


def test_no_key_is_seen_in_noise() -> None:
    noise = random.Random(3)
    assert list(secrets.find(noise.randbytes(1 << 16) for _ in range(64))) == []
    assert list(secrets.find(base64.encodebytes(noise.randbytes(1 << 20)) for _ in range(2))) == []


@settings(deadline=None, max_examples=150)
@given(
    planted=st.sampled_from(PLANTED),
    before=st.integers(0, 3000),
    after=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 8000), max_size=12),
    filler=st.sampled_from([b" ", b"\n", b"=", b"\x00", b"some_identifier that_is_long_enough_to_be_a_run "]),
)
def test_a_key_is_found_once_wherever_it_lies_across_blocks(
    planted: tuple[str, str], before: int, after: int, cuts: list[int], filler: bytes
) -> None:
    kind, text = planted
    lead = (filler * before)[:before] + b" "
    data = lead + text.encode() + b" " + (filler * after)[:after]
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    blocks = [data[low:high] for low, high in itertools.pairwise(places)]
    whole = list(secrets.find([data]))
    assert [found.kind for found in whole] == [kind]
    assert len(lead) <= whole[0].offset < len(lead) + len(text)
    assert list(secrets.find(blocks)) == whole


def test_a_line_longer_than_any_block_is_searched_in_constant_memory() -> None:
    block = bytes(range(97, 123)) * 10_000  # one run without an end
    tracemalloc.start()
    list(secrets.find(block for _ in range(100)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * len(block)


def test_the_line_of_a_key_is_counted_from_one(tmp_path: Path) -> None:
    file = tmp_path / "settings.py"
    file.write_bytes(b"a\n" * 200_000 + b"key\n")
    assert secrets.line_of(file, 0) == 1
    assert secrets.line_of(file, 2) == 2
    assert secrets.line_of(file, 400_002) == 200_001


TELLING = """
    id_rsa keys/id_ed25519 .env conf/.env.local .env.production .ENV .netrc _netrc .pypirc kaggle.json
    x/application_default_credentials.json home/.aws/credentials me.p12 me.PFX putty.ppk .git-credentials
    .docker/config.json .kube/config .cache/huggingface/token gcloud/credentials.db
"""
NOT_TELLING = """
    id_rsa.pub .env.example .env.template .env.local.sample .env.dist env.py environment.yml .envrc credentials.py
    credentials aws/config token kaggle.py config.json netrc.py x.p12.py
"""


@pytest.mark.parametrize("path", TELLING.split())
def test_a_name_that_tells_of_a_secret_is_enough(path: str) -> None:
    assert secrets.named_like_secret(path)


@pytest.mark.parametrize("path", NOT_TELLING.split())
def test_a_name_that_merely_resembles_one_is_let_through(path: str) -> None:
    assert secrets.named_like_secret(path) is None
