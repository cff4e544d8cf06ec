"""The server: serves models from the background of this process."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Union

from . import _native
from ._report import Report
from ._waiting import wait

Model = Union[str, "os.PathLike[str]", Report]


class Server:
    """A server of one model or several: the party that holds the weights.

    It serves from threads of its own until it is stopped, or its ``with`` block ends.

    Args:
        models: a model directory or a :class:`~pianissimo.Report`; a list of them; or a dictionary
            from names to them. A report that was not saved is served from a temporary directory.
        listen: host and port; port 0 chooses a free one. By default this machine alone can connect.
        default_model: name of the model for clients that ask for none.
        state: directory of keys and bundles; without it, that of ``pi-server``. Both cannot run at
            the same time then.
        allow: file with the fingerprints of the clients to serve, one a line.
        clients: TOML file with the clients to serve, instead (docs/operations.md). Without either,
            everyone who can connect is served.
        client_ca: PEM file of authorities that must have signed the certificates of clients.
        cert: files of a certificate chain and its key, instead of a self-signed certificate.
        max_answers: limit on the answers that one client ever gets of a model; by default 1000 of
            one that reveals logits, and none of one that reveals labels.
        max_clients, max_bundles, memory, timeout, bound: as the options of ``pi-server``.

    >>> with Server(bundled, state=folder / "other server") as other:
    ...     print(other.address.split(":")[0], len(other.fingerprint), other.models[0]["name"])
    127.0.0.1 64 cifar10-small
    """

    def __init__(
        self,
        models: Model | Sequence[Model] | Mapping[str, Model],
        *,
        listen: str = "127.0.0.1:0",
        default_model: str | None = None,
        state: str | os.PathLike[str] | None = None,
        allow: str | os.PathLike[str] | None = None,
        clients: str | os.PathLike[str] | None = None,
        client_ca: str | os.PathLike[str] | None = None,
        cert: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        max_clients: int | None = None,
        max_bundles: int | None = None,
        max_answers: int | None = None,
        memory: str | int | None = None,
        timeout: float | None = None,
        bound: bool = False,
    ) -> None:
        self._unsaved = tempfile.TemporaryDirectory(prefix="pianissimo-")
        named = [(name, self._directory(model)) for name, model in _named(models)]
        choices: dict[str, Any] = {
            "models": named,
            "listen": listen,
            "default_model": default_model,
            "state": _path(state),
            "allow": _path(allow),
            "clients": _path(clients),
            "client_ca": _path(client_ca),
            "cert": None if cert is None else [os.fspath(file) for file in cert],
            "max_clients": max_clients,
            "max_bundles": max_bundles,
            "max_answers": max_answers,
            "memory": None if memory is None else str(memory),
            "timeout": None if timeout is None else float(timeout),
            "bound": bound,
        }
        try:
            self._native: _native.Server = wait(_native.start_server(json.dumps(choices)))
        except BaseException:
            self._unsaved.cleanup()
            raise

    def _directory(self, model: Model) -> str:
        """The directory of a model, which is written if it has none."""
        if not isinstance(model, Report):
            return os.fspath(model)
        # Named for the model, and apart from others of the same name.
        parent = tempfile.mkdtemp(dir=self._unsaved.name)
        directory = Path(parent, _as_name(model.name))
        model.save(directory)
        return str(directory)

    @property
    def address(self) -> str:
        """Host and port at which it listens."""
        return self._native.address

    @property
    def fingerprint(self) -> str:
        """What clients pin, to be sure that it is this server."""
        return self._native.fingerprint

    @property
    def state(self) -> str:
        """Directory of keys and bundles. Never restore an old copy of it."""
        return os.fspath(self._native.state)

    @property
    def models(self) -> list[dict[str, Any]]:
        """The models, with their versions, digests and limits."""
        models: list[dict[str, Any]] = json.loads(self._native.models)
        return models

    def stop(self) -> None:
        """Lets operations under way end, for at most half a minute, and ends the server."""
        wait(self._native.stop())
        self._unsaved.cleanup()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        names = ", ".join(model["name"] for model in self.models)
        return f"<Server of {names} at {self.address}>"


def _path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _named(models: Any) -> list[tuple[str, Model]]:
    """Models with their names, which are empty where the directory's will do."""
    if isinstance(models, Mapping):
        return list(models.items())
    if isinstance(models, (str, os.PathLike, Report)):
        return [("", models)]
    return [("", model) for model in models]


def _as_name(text: str) -> str:
    """A text as a name that a server takes.

    >>> _as_name("my net/2")
    'my-net-2'
    """
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
    return name.strip(".-")[:60] or "model"
