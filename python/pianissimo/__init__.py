"""Private neural-network inference: the server never sees the input, the client never the weights.

- :func:`compile` turns a trained network into a :class:`Report` with a model.
- :class:`Server` serves models; :class:`Client` prepares bundles with a server and spends them.
- :func:`simulate` runs both parties in this process beside the two interpreters.
- :mod:`pianissimo.nn` has activations for PyTorch that this computation can afford.
- :mod:`pianissimo.errors` has what can go wrong.

Both parties are assumed to follow the protocol (semi-honest security): read
``docs/threat-model.md`` before you rely on it.
"""

from . import errors
from ._answers import Answer, Cost
from ._client import Client, ModelInfo, Prepared
from ._compile import compile
from ._native import version as _version
from ._report import Report, inspect
from ._server import Server
from ._simulate import Results, Simulation, simulate
from .errors import OutOfRange, OutOfRangeWarning, PianissimoError

__version__ = _version()

__all__ = [
    "Answer",
    "Client",
    "Cost",
    "ModelInfo",
    "OutOfRange",
    "OutOfRangeWarning",
    "PianissimoError",
    "Prepared",
    "Report",
    "Results",
    "Server",
    "Simulation",
    "compile",
    "errors",
    "inspect",
    "simulate",
]
