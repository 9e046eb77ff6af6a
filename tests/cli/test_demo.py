"""`refseg demo` starts, says where, and ends."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from refseg.apps.options import DemoOptions
from refseg.cli import main
from tests.warm_python import python


@pytest.mark.slow
def test_the_demo_says_where_it_listens_and_ends_with_ctrl_c(toy_run: Path) -> None:
    command = [python(), "-m", "refseg", "demo", "--checkpoint", str(toy_run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        address = line.split()[1]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            page = answer.read().decode()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)

    assert re.search(r"<dd>toy/refseg train, \d+ steps</dd>", page), re.findall(r"<dd>[^<]*</dd>", page)
    assert "64 × 64 pixels" in page
    assert (running.returncode, out, err) == (0, "", "")


def test_a_port_in_use_is_said_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["demo", "--checkpoint", str(tmp_path), "--port", str(port)]) == 2

    assert f"127.0.0.1 port {port}: cannot listen" in capsys.readouterr().err
    assert main(["demo", "--checkpoint", str(tmp_path), "--port", "99999"]) == 2
    assert "--port 99999: expected 0 to 65535" in capsys.readouterr().err
    assert main(["demo", "--checkpoint", str(tmp_path), "--host", "no.such.host.invalid"]) == 2


def test_a_missing_checkpoint_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--checkpoint", str(tmp_path), "--port", "0"]) == 1

    assert "found no checkpoint" in capsys.readouterr().err


def test_without_its_packages_the_demo_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("demo_server", "demo_run"):
        monkeypatch.delitem(sys.modules, f"refseg.apps.{name}", raising=False)

    assert main(["demo", "--checkpoint", str(tmp_path)]) == 2

    assert "is not installed; pip install 'refseg[demo]'" in capsys.readouterr().err


def _allowed_hosts(host: str) -> list[str]:
    return DemoOptions(checkpoint=Path("runs/toy"), host=host).allowed_hosts


def test_only_own_names_are_answered_unless_all_of_the_network_is_asked_in() -> None:
    assert _allowed_hosts("127.0.0.1") == ["127.0.0.1", "[::1]", "localhost"]
    assert _allowed_hosts("localhost") == ["127.0.0.1", "[::1]", "localhost"]
    assert _allowed_hosts("192.0.2.7") == ["192.0.2.7"]
    assert _allowed_hosts("0.0.0.0") == ["*"]
