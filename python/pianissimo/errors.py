"""What can go wrong, as a small tree of exceptions that keep the remedy.

Everything that this package raises on purpose is a :class:`PianissimoError`. Its text says what
happened and what to do about it; ``error.remedy`` has the advice alone.

>>> from pianissimo.errors import NotPrepared
>>> error = NotPrepared("no bundle left", remedy="pi-client prepare --server HOST:PORT -n COUNT")
>>> print(error)
no bundle left
what to do: Client(address, fingerprint).prepare(count)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._answers import Answer

__all__ = [
    "CompileError",
    "Incompatible",
    "InputError",
    "InternalError",
    "InvalidArgument",
    "ModelError",
    "NotPrepared",
    "OutOfRange",
    "OutOfRangeWarning",
    "PeerMisbehaved",
    "PianissimoError",
    "Refused",
    "ServerError",
    "ServerUnavailable",
    "StoreError",
    "Unfaithful",
    "UntrustedServer",
]


class PianissimoError(Exception):
    """Any error of this package.

    Attributes:
        message: what happened.
        remedy: what to do about it, if there is advice to give.
        temporary: whether the same call may well succeed in a while, without anybody's doing.
        detail: more about it, such as a table of layers; not part of the text.
        answers: answers that were given before the error, each of which has spent its bundle.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        temporary: bool = False,
        detail: str | None = None,
    ) -> None:
        self.message = in_python(message)
        self.remedy = None if remedy is None else in_python(remedy)
        self.temporary = temporary
        self.detail = detail
        self.answers: Sequence[Answer] = []
        super().__init__(self.message)

    def __str__(self) -> str:
        if self.remedy is None:
            return self.message
        return f"{self.message}\nwhat to do: {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions travel between processes; keyword arguments would be lost.
        return (_restored, (type(self), self.__dict__))


class InvalidArgument(PianissimoError, ValueError):
    """An argument that means nothing, or options that exclude each other."""


class CompileError(PianissimoError):
    """A network that has no private form, or data that do not fit it."""


class Unfaithful(CompileError):
    """A network whose answers in fixed point are not those of the float network.

    ``detail`` is the table of its layers on the examples held back.
    """


class ModelError(PianissimoError):
    """Files that hold no usable model."""


class InputError(PianissimoError, ValueError):
    """An input that the model cannot take. Nothing was spent on it."""


class OutOfRange(PianissimoError):
    """An input is out of the network's range: there is no answer, and its bundle is spent.

    ``answers`` are those of all inputs; ``indices`` says which of them have none.
    """

    def __init__(self, message: str, *, indices: Sequence[int] = (), **more: object) -> None:
        super().__init__(message, **more)  # type: ignore[arg-type]
        self.indices = list(indices)


class NotPrepared(PianissimoError):
    """There are not enough bundles for the server's model."""


class ServerUnavailable(PianissimoError, ConnectionError):
    """No server answers, it has no room, or the connection broke."""


class UntrustedServer(PianissimoError):
    """Another server than the one that was pinned answers, or nothing says which is right."""


class Refused(PianissimoError):
    """The server does not do that for this client."""


class Incompatible(PianissimoError):
    """Client and server do not speak the same version."""


class PeerMisbehaved(PianissimoError):
    """The bytes of the other party break the protocol."""


class StoreError(PianissimoError):
    """The directory of keys and bundles cannot be used."""


class ServerError(PianissimoError):
    """A server that cannot start."""


class InternalError(PianissimoError):
    """A fault of this package."""


class OutOfRangeWarning(UserWarning):
    """Of several inputs, some are out of the network's range and have no answer."""


# The crates speak of the programs' commands and options; here they are methods and arguments.
_COMMANDS = [
    (
        r"(?:run )?pi-client prepare(?: --server HOST:PORT)?(?: --fingerprint HEX)?(?: -n COUNT)?",
        "Client(address, fingerprint).prepare(count)",
    ),
    (r"pi-client models", "client.models()"),
    (r"pi-client status shows", "client.identity and client.status() show"),
    (r"pi-client status", "client.status()"),
    (r"pi-server --([a-z-]+)", r"--\1 of Server"),
    (r"--server HOST:PORT", "an address"),
    (r"--server\b", "address"),
    (r"--fingerprint HEX", "--fingerprint"),
    (r"--state DIR", "--state"),
    (r"--model NAME", "--model"),
    (r"--ca FILE", "--ca"),
    (r"--row N", "--row"),
    (r"; --allow-partial classifies what there is of a picture", ""),
    (r"--reveal (logits|label)", r'reveal="\1"'),
    (r"--outputs (classes|values)", r'outputs="\1"'),
    (r"--input-kind (image|values)", r'input_kind="\1"'),
    (r"--weight-bits (\d+)", r"weight_bits=\1"),
    (r"--wait to queue", "wait= to queue"),
]


def in_python(text: str) -> str:
    """A text for users of the programs, for those of this package.

    >>> in_python("calibrate on more images, or with more --head-room")
    'calibrate on more images, or with more head_room'
    """
    for pattern, replacement in _COMMANDS:
        text = re.sub(pattern, replacement, text)
    return re.sub(r"--([a-z][a-z-]*[a-z])", lambda option: option[1].replace("-", "_"), text)


def _restored(kind: type[PianissimoError], state: dict[str, object]) -> PianissimoError:
    error = kind(str(state["message"]))
    error.__dict__.update(state)
    return error
