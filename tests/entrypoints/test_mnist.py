"""The real MNIST: what is fetched is what torchvision knows, and both settings reach what they promise."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from tests.entrypoints.conftest import SAMPLES, run

pytestmark = [pytest.mark.sampledata, pytest.mark.slow]


@pytest.fixture(scope="session")
def mnist() -> Path:
    done = subprocess.run([sys.executable, str(SAMPLES), "mnist"], capture_output=True, text=True, timeout=280)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-2:]
        if os.environ.get("ORCHESTRATE_REQUIRE_SAMPLES"):
            pytest.fail(f"sample data cannot be had: {reason}")
        pytest.skip(f"sample data cannot be had: {reason}")
    return Path(done.stdout.strip())


def test_torchvision_verifies_the_sample_and_downloads_nothing(mnist: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for file in (mnist / "MNIST/raw").iterdir():
        (raw / file.name).symlink_to(file)
    offline = (
        "import socket, sys\n"
        "def no(*_): raise OSError('the network was asked')\n"
        "socket.socket.connect = no\n"
        "from torchvision.datasets import MNIST\n"
        "print(len(MNIST(sys.argv[1], train=True, download=True)), len(MNIST(sys.argv[1], train=False, download=True)))"
    )
    done = subprocess.run([sys.executable, "-c", offline, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-2:] == ["60000", "10000"], done.stderr


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(mnist: Path) -> Iterator[str]:
    """A server on this machine that holds what torchvision downloads."""
    handler = partial(Silent, directory=str(mnist / "MNIST/raw"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_torchvision_downloads_into_the_cache_and_is_read_as_the_sample_is(
    mlp: ModuleType, mnist: Path, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [mirror])
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path))
    folder = mlp.find_data("torchvision:mnist")
    assert folder == tmp_path / "torchvision"
    downloaded, sample = (mlp.load_data(place, mlp.torch.device("cpu")) for place in (folder, mnist))
    for part, same in zip(downloaded, sample, strict=True):
        assert mlp.torch.equal(part.images, same.images)
        assert mlp.torch.equal(part.labels, same.labels)
    assert [len(part.labels) for part in sample] == [55_000, 5_000, 10_000]


@pytest.mark.parametrize(("preset", "least"), [("article", 0.955), ("ours", 0.98)])
def test_the_settings_reach_what_they_promise(mnist: Path, tmp_path: Path, preset: str, least: float) -> None:
    done = run(tmp_path, "--data", "sample:mnist", "--preset", preset, timeout=290)
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "output/metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_accuracy"] >= least
    assert (tmp_path / "model/model.pt2").stat().st_size < 1_000_000  # 101,770 weights, and nothing of the data
