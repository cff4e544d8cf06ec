"""The package is typed, and its stubs are those of the native half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pianissimo"


def _run(*arguments: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_stubs_are_those_of_the_native_half() -> None:
    pytest.importorskip("mypy", reason="pip install mypy")
    _run("mypy.stubtest", "pianissimo._native", "--mypy-config-file", "pyproject.toml")


def test_the_package_is_typed() -> None:
    pytest.importorskip("mypy", reason="pip install mypy")
    assert (PACKAGE / "py.typed").exists()
    modules = [str(path) for path in sorted(PACKAGE.glob("*.py")) if path.name != "nn.py"]
    _run("mypy", "--strict", *modules)
