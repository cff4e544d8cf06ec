"""The client: prepares bundles with a server and spends them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _inputs, _native
from ._answers import OUT_OF_RANGE, OUT_OF_RANGE_REMEDY, Answer, Cost, answer_of
from ._report import Report
from ._waiting import Progress, wait, wait_async
from .errors import InvalidArgument, OutOfRange, OutOfRangeWarning, PianissimoError


@dataclass(frozen=True)
class Prepared:
    """What preparing bundles cost. What was there already cost nothing."""

    made: int
    #: Fetching the public circuit, once for each model.
    model: Cost
    #: Exchanging keys, once for each server.
    keys: Cost
    bundles: Cost


class ModelInfo(NamedTuple):
    """The server's model, as this client may use it."""

    name: str
    version: str
    digest: str
    #: Channels, rows and columns.
    input_shape: tuple[int, int, int]
    #: Whether it reads real values, not bytes of pictures.
    reads_values: bool
    classes: list[str]
    reveal: str
    #: Bundles ready for it.
    ready: int
    #: Answers that the server still gives this client; ``None`` without a limit.
    answers_left: int | None


class Client:
    """A client of a server: the party that holds the inputs.

    Its calls come one after another; those from several threads wait for each other. The ones that
    begin with ``a`` are for an event loop of asyncio. A call that is interrupted by Ctrl-C, or
    cancelled, ends at the next message; bundles that are complete by then stay.

    Args:
        address: host and port; several with commas between them are of servers that share their
            state. Without it, the only server that is known.
        fingerprint: what the server prints when it starts. It may be left out once bundles were
            prepared with the server.
        model: name of the model, and with a colon its version, if the server has several.
        ca: PEM file of certificate authorities, instead of a fingerprint.
        trust_first_use: trust whoever answers, if nothing is known of this server yet.
        state: directory of keys and bundles; without it, that of ``pi-client``. What is prepared by
            the one can be used by the other, at different times.
        cert: files of a certificate chain and its key, for servers that demand them.
        timeout, connect_timeout: seconds to wait for a silent server, and for a connection.
        wait: seconds to wait for a server that is not up or full; 0 for as long as it takes.
        bound: binds computing threads to processors, which makes answers faster where nothing else
            runs, and slower where something does.

    >>> with Client(server.address, server.fingerprint, state=folder / "client") as client:
    ...     made = client.prepare(2)
    ...     answer = client.infer(rows[0])
    ...     labels = client.predict(rows[1:2])
    >>> made.made, answer.in_range, labels.shape
    (2, True, (1,))
    """

    def __init__(
        self,
        address: str | None = None,
        fingerprint: str | None = None,
        *,
        model: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        trust_first_use: bool = False,
        state: str | os.PathLike[str] | None = None,
        cert: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        timeout: float = 300.0,
        connect_timeout: float = 10.0,
        wait: float | None = None,
        bound: bool = False,
    ) -> None:
        choices = {
            "server": address,
            "fingerprint": fingerprint,
            "model": model,
            "ca": None if ca is None else os.fspath(ca),
            "trust_first_use": trust_first_use,
            "state": None if state is None else os.fspath(state),
            "cert": None if cert is None else [os.fspath(file) for file in cert],
            "timeout": float(timeout),
            "connect_timeout": float(connect_timeout),
            "wait": None if wait is None else float(wait),
            "bound": bound,
        }
        self._native = _native.Client(json.dumps(choices))
        self._closed = False

    @property
    def identity(self) -> str:
        """The fingerprint by which servers know this client."""
        return self._native.identity

    @property
    def state(self) -> str:
        """Directory of keys and bundles. Never restore an old copy of it."""
        return os.fspath(self._native.state)

    def prepare(self, count: int = 1, progress: Progress | None = None) -> Prepared:
        """Prepares bundles, each of which answers one input. This is the slow part, in advance.

        The public circuit and the keys come first, once. As far as the number allows, bundles are
        made in batches of 16 and 4, which share ciphertexts and cost a third each. ``progress`` is
        called with the number made so far.
        """
        return _prepared(wait(self._native.prepare(_count(count)), progress))

    async def aprepare(self, count: int = 1, progress: Progress | None = None) -> Prepared:
        """As :meth:`prepare`, for asyncio."""
        return _prepared(await wait_async(self._native.prepare(_count(count)), progress))

    def infer(
        self,
        inputs: _inputs.Inputs,
        *,
        check: Report | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Answers one input, or several, each with a bundle.

        Args:
            inputs: an array of one example or, with one axis more, of several; the path of a
                picture, of a ``.npy`` or a ``.csv`` file; an image of Pillow; or a list of these.
                Pictures are brought to the model's shape, arrays must have it (bytes for a model of
                pictures, channels first).
            check: the model with its weights, for whoever has both sides: every answer then says
                whether it equals that of the exact interpreter on the client's shares.

        Returns:
            An :class:`Answer` for one input, and a list of them for several.

        Raises:
            InputError: the model cannot take an input. Nothing was spent.
            NotPrepared: there are fewer bundles than inputs. Nothing was spent.
            OutOfRange: the one input is out of the network's range. Of several, those that are have
                an answer that raises, and an ``OutOfRangeWarning`` names them.
            PianissimoError: other errors; ``error.answers`` has the answers until then.
        """
        sent, axes = _inputs.inputs(inputs)
        job = self._native.infer(sent, None if check is None else check._native)
        return _answers(wait(job, progress), axes)

    async def ainfer(
        self,
        inputs: _inputs.Inputs,
        *,
        check: Report | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """As :meth:`infer`, for asyncio."""
        sent, axes = _inputs.inputs(inputs)
        job = self._native.infer(sent, None if check is None else check._native)
        return _answers(await wait_async(job, progress), axes)

    def predict(
        self, inputs: _inputs.Inputs, *, out_of_range: Literal["raise", "mask"] = "raise"
    ) -> npt.NDArray[np.int64]:
        """The labels of several inputs, as an array; the one of scikit-learn's estimators.

        Inputs out of the network's range have no label: by default the call raises
        :class:`~pianissimo.errors.OutOfRange`, whose ``answers`` has all that there are. With
        ``out_of_range="mask"`` the array is a masked one, and theirs are masked.
        """
        sent, _ = _inputs.inputs(inputs)
        answers = _all(wait(self._native.infer(sent, None)))
        return _labels(answers, out_of_range)

    async def apredict(
        self, inputs: _inputs.Inputs, *, out_of_range: Literal["raise", "mask"] = "raise"
    ) -> npt.NDArray[np.int64]:
        """As :meth:`predict`, for asyncio."""
        sent, _ = _inputs.inputs(inputs)
        answers = _all(await wait_async(self._native.infer(sent, None)))
        return _labels(answers, out_of_range)

    def describe(self) -> ModelInfo:
        """What the server's model reads and reveals, and how many bundles are ready for it."""
        said = _said(wait(self._native.describe()))[0]
        return ModelInfo(
            name=said["name"],
            version=said["version"],
            digest=said["digest"],
            input_shape=tuple(said["input"]),
            reads_values=said["reads_values"],
            classes=said["classes"],
            reveal=said["reveal"],
            ready=said["ready"],
            answers_left=said["answers_left"],
        )

    def models(self) -> list[dict[str, Any]]:
        """The models that the server lets this client use, with what each costs and reveals."""
        models: list[dict[str, Any]] = _said(wait(self._native.models()))[0]
        return models

    def status(self) -> list[dict[str, Any]]:
        """The servers that are known, and the bundles ready for each, without a connection."""
        servers: list[dict[str, Any]] = _said(wait(self._native.status()))[0]
        return servers

    def close(self) -> None:
        """Says goodbye to the server, and lets go of the state directory."""
        if not self._closed:
            self._closed = True
            wait(self._native.close())

    async def aclose(self) -> None:
        """As :meth:`close`, for asyncio."""
        if not self._closed:
            self._closed = True
            await wait_async(self._native.close())

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Client {self.identity[:8]} in {self.state}>"


def _count(count: int) -> int:
    if not 0 < count < 2**32:
        raise InvalidArgument(f"a number of bundles is at least 1, not {count}")
    return int(count)


def _said(result: tuple[str, PianissimoError | None]) -> tuple[Any, PianissimoError | None]:
    text, error = result
    return json.loads(text), error


def _prepared(result: tuple[str, PianissimoError | None]) -> Prepared:
    said, _ = _said(result)
    costs = {name: Cost(**said[name]) for name in ("model", "keys", "bundles")}
    return Prepared(made=said["made"], **costs)


def _all(result: tuple[str, PianissimoError | None]) -> list[Answer]:
    """All answers, or the error with those that there are."""
    return _with_shape(result)[0]


def _with_shape(
    result: tuple[str, PianissimoError | None],
) -> tuple[list[Answer], list[int]]:
    said, error = _said(result)
    answers = [answer_of(answer, said) for answer in said["answers"]]
    if error is not None:
        error.answers = answers
        raise error
    return answers, said["input"]


def _answers(result: tuple[str, PianissimoError | None], axes: int | None) -> Any:
    answers, shape = _with_shape(result)
    out = _out_of_range(answers)
    if not _inputs.is_batch(axes, shape, len(answers)):
        if out:
            raise _no_answer(answers, out)
        return answers[0]
    if out:
        warnings.warn(
            f"{_numbers(out)} of {len(answers)} inputs: {OUT_OF_RANGE}",
            OutOfRangeWarning,
            stacklevel=3,
        )
    return answers


def _labels(answers: Sequence[Answer], out_of_range: str) -> npt.NDArray[np.int64]:
    out = _out_of_range(answers)
    if out_of_range == "mask":
        labels = [answer.label if answer.in_range else 0 for answer in answers]
        mask = [not answer.in_range for answer in answers]
        return np.ma.MaskedArray(np.array(labels, dtype=np.int64), mask=mask)
    if out:
        raise _no_answer(answers, out)
    return np.array([answer.label for answer in answers], dtype=np.int64)


def _out_of_range(answers: Sequence[Answer]) -> list[int]:
    return [index for index, answer in enumerate(answers) if not answer.in_range]


def _no_answer(answers: Sequence[Answer], out: list[int]) -> OutOfRange:
    of = f"{_numbers(out)} of {len(answers)} inputs: " if len(answers) > 1 else ""
    error = OutOfRange(of + OUT_OF_RANGE, indices=out, remedy=OUT_OF_RANGE_REMEDY)
    error.answers = answers
    return error


def _numbers(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:10]))
    return f"numbers {shown}, ..." if len(indices) > 10 else f"number {shown}"
