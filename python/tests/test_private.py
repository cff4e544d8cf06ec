"""Client and server over loopback: answers, refusals, and waiting."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import MACHINE

import pianissimo
from pianissimo.errors import (
    InputError,
    InvalidArgument,
    ModelError,
    NotPrepared,
    OutOfRange,
    OutOfRangeWarning,
    PianissimoError,
    Refused,
    ServerUnavailable,
    StoreError,
    UntrustedServer,
)


@pytest.fixture
def logits_client(server: pianissimo.Server, tmp_path: Path):
    """A client of the model that reveals logits."""
    state = tmp_path / "logits"
    with pianissimo.Client(
        server.address, server.fingerprint, model="logits", state=state
    ) as client:
        yield client


def test_private_answers_equal_the_exact_interpreters_bit_for_bit(
    client: pianissimo.Client,
    logits_client: pianissimo.Client,
    blobs: pianissimo.Report,
    blobs_logits: pianissimo.Report,
    rows: np.ndarray,
) -> None:
    for party, model in [(client, blobs), (logits_client, blobs_logits)]:
        party.prepare(5)
        answers = party.infer(rows[:5], check=model)
        assert [answer.equal for answer in answers] == [True] * 5


def test_logits_are_those_of_the_network(
    logits_client: pianissimo.Client, blobs_layers: list[np.ndarray], rows: np.ndarray
) -> None:
    logits_client.prepare(4)
    answers = logits_client.infer(rows[:4])
    w1, b1, w2, b2 = blobs_layers
    expected = np.maximum(rows[:4] @ w1 + b1, 0) @ w2 + b2
    found = np.array([answer.logits for answer in answers])
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert [answer.label for answer in answers] == list(found.argmax(1))
    integers = answers[0].integer_logits
    assert integers.dtype == np.int64 and (integers == found[0] * 2**answers[0]._frac_bits).all()


def test_a_label_comes_without_logits(client: pianissimo.Client, rows: np.ndarray) -> None:
    client.prepare()
    answer = client.infer(rows[0])
    assert answer.logits is None and answer.cost.bytes_up > 0
    assert answer.name == f"class {answer.label}"


def test_every_form_of_an_input_gets_the_same_answer(
    client: pianissimo.Client, rows: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "row.npy", rows[0])
    np.savetxt(tmp_path / "row.csv", rows[:1], delimiter=",", fmt="%.9g")
    client.prepare(8)
    wanted = client.infer(rows[0]).label
    one = [tmp_path / "row.npy", str(tmp_path / "row.csv"), list(map(float, rows[0]))]
    assert [client.infer(form).label for form in one] == [wanted] * 3
    many = client.infer([tmp_path / "row.npy", rows[0].astype(">f8"), rows[:1]])
    assert [answer.label for answer in many] == [wanted] * 3
    assert len(client.infer(rows[:1])) == 1


def test_predict_is_that_of_an_estimator(
    client: pianissimo.Client, labelled: tuple[np.ndarray, np.ndarray]
) -> None:
    inputs, labels = labelled
    client.prepare(16)
    found = client.predict(inputs[:16])
    assert found.shape == (16,) and found.dtype == np.int64
    assert (found == labels[:16]).mean() > 0.8


def test_a_bad_input_costs_no_bundle(client: pianissimo.Client, rows: np.ndarray) -> None:
    client.prepare()
    beyond = rows[0] * 1e6
    words = np.array(["a"] * 16)
    for wrong in [rows[0][:15], beyond, np.full(16, np.nan), words, rows.astype(complex)]:
        with pytest.raises(InputError):
            client.infer(wrong)
    # In the middle of others, too.
    with pytest.raises(InputError):
        client.infer([rows[0], beyond])
    assert client.describe().ready == 1


def test_too_few_bundles_are_told_before_any_is_spent(
    client: pianissimo.Client, rows: np.ndarray
) -> None:
    with pytest.raises(NotPrepared, match="prepare"):
        client.infer(rows[0])
    client.prepare(2)
    with pytest.raises(NotPrepared, match=r"client\.prepare\(3\)"):
        client.infer(rows[:5])
    assert client.describe().ready == 2


def test_an_input_out_of_range_has_no_answer(
    server: pianissimo.Server, bundled: Path, ship: np.ndarray, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    with (
        pianissimo.Server(bundled, state=tmp_path / "s") as pictures,
        pianissimo.Client(pictures.address, pictures.fingerprint, state=tmp_path / "c") as client,
    ):
        client.prepare(4)
        with pytest.raises(OutOfRange, match="head_room"):
            client.infer(noise)
        with pytest.warns(OutOfRangeWarning, match="number 1 of 2"):
            first, second = client.infer(np.stack([ship, noise]))
        assert first.in_range and first.name == "ship"
        for ask in (lambda: second.label, lambda: second.name, lambda: second.logits):
            with pytest.raises(OutOfRange):
                ask()
        with pytest.raises(OutOfRange) as raised:
            client.predict(noise)
        assert raised.value.indices == [0] and len(raised.value.answers) == 1


def test_a_picture_is_read_as_pi_client_reads_it(bundled: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    rng = np.random.default_rng(5)
    wide = image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    wide.save(tmp_path / "wide.png")
    clear = image.fromarray(rng.integers(0, 256, (32, 32, 4), dtype=np.uint8), "RGBA")
    clear.save(tmp_path / "clear.png")
    wide.convert("P").save(tmp_path / "palette.png")
    grey = wide.convert("L")
    grey.save(tmp_path / "grey.png")
    from pianissimo import _inputs, _native
    from pianissimo._waiting import wait

    model = wait(_native.open_model(str(bundled), 100.0, MACHINE))
    palette = wide.convert("P")
    pictures = {"wide": wide, "clear": clear, "palette": palette, "grey": grey}
    for name, picture in pictures.items():
        sent = [_inputs.one(tmp_path / f"{name}.png"), _inputs.one(picture)]
        pixels = [model.quantised(one) for one in sent]
        assert pixels[0] == pixels[1], name


def test_several_clients_of_one_state_share_it(
    server: pianissimo.Server, rows: np.ndarray, tmp_path: Path
) -> None:
    def another(**more: object) -> pianissimo.Client:
        return pianissimo.Client(
            server.address, server.fingerprint, state=tmp_path / "shared", **more
        )

    first, second = another(), another()
    assert first.identity == second.identity
    first.prepare(2)
    assert second.infer(rows[0]).in_range
    with pytest.raises(InvalidArgument, match="other options"):
        another(timeout=5.0)
    first.close()
    first.close()
    with pytest.raises(InvalidArgument, match="closed"):
        first.prepare()
    assert second.infer(rows[0]).in_range
    second.close()
    another(timeout=5.0).close()


def test_a_state_in_use_by_another_process_is_not_shared(
    server: pianissimo.Server, tmp_path: Path
) -> None:
    hold = (
        "import pianissimo, sys; c = pianissimo.Client('localhost:1', state=sys.argv[1]);"
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "held")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match="another process"):
            pianissimo.Client(server.address, state=tmp_path / "held")
        assert other.stdin is not None
        other.stdin.close()


def test_the_wrong_server_is_refused(server: pianissimo.Server, tmp_path: Path) -> None:
    with pianissimo.Client(server.address, "ab" * 32, state=tmp_path / "a") as client:
        with pytest.raises(UntrustedServer, match="fingerprint"):
            client.prepare()
    with pianissimo.Client(server.address, state=tmp_path / "b") as client:
        with pytest.raises(UntrustedServer) as raised:
            client.prepare()
        assert raised.value.remedy is not None and "trust_first_use" in raised.value.remedy
        assert "--" not in str(raised.value)
    with pytest.raises(InvalidArgument, match="fingerprint"):
        pianissimo.Client(server.address, "xyz", state=tmp_path / "c")


def test_nobody_there_is_an_error_that_may_pass(tmp_path: Path) -> None:
    with pianissimo.Client("127.0.0.1:9", "ab" * 32, state=tmp_path / "c") as client:
        with pytest.raises(ServerUnavailable) as raised:
            client.prepare()
        assert raised.value.temporary and isinstance(raised.value, ConnectionError)
    with pianissimo.Client("nonsense", "ab" * 32, state=tmp_path / "d") as client:
        with pytest.raises(InvalidArgument, match="HOST:PORT"):
            client.prepare()


def test_a_server_that_comes_back_is_found_again(
    blobs: pianissimo.Report, rows: np.ndarray, tmp_path: Path
) -> None:
    blobs.save(tmp_path / "blobs")
    state = tmp_path / "server"
    server = pianissimo.Server(tmp_path / "blobs", state=state)
    client = pianissimo.Client(server.address, server.fingerprint, state=tmp_path / "c", wait=60)
    client.prepare(2)
    assert client.infer(rows[0]).in_range
    server.stop()
    with pianissimo.Server(tmp_path / "blobs", state=state, listen=server.address):
        assert client.infer(rows[0]).in_range
        client.close()


def test_a_server_says_why_it_cannot_start(
    bundled: Path, server: pianissimo.Server, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="model.pia"):
        pianissimo.Server(tmp_path, state=tmp_path / "s")
    with pytest.raises(PianissimoError, match="listen"):
        pianissimo.Server(bundled, listen=server.address, state=tmp_path / "t")
    with pytest.raises(PianissimoError):
        pianissimo.Server([bundled, bundled], state=tmp_path / "u")


def test_limits_of_the_server_are_kept(
    blobs: pianissimo.Report, rows: np.ndarray, tmp_path: Path
) -> None:
    with (
        pianissimo.Server(blobs, max_answers=1, state=tmp_path / "s") as server,
        pianissimo.Client(server.address, server.fingerprint, state=tmp_path / "c") as client,
    ):
        client.prepare(1)
        assert client.describe().answers_left == 1
        client.infer(rows[0])
        with pytest.raises(PianissimoError) as raised:
            client.prepare(1)
            client.infer(rows[0])
        assert isinstance(raised.value, (Refused, NotPrepared))


def test_both_models_are_listed(client: pianissimo.Client) -> None:
    listed = {model["name"]: model["reveals"] for model in client.models()}
    assert listed == {"labels": "label", "logits": "logits"}
    assert client.status() == []
    client.prepare()
    assert client.status()[0]["ready"] == 1


def test_an_event_loop_goes_on_meanwhile(client: pianissimo.Client, rows: np.ndarray) -> None:
    async def both() -> tuple[int, object]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        told: list[int] = []
        prepared = await client.aprepare(2, progress=told.append)
        answers = await asyncio.gather(client.ainfer(rows[0]), client.apredict(rows[1:2]))
        ticking.cancel()
        assert prepared.made == 2 and (not told or told[-1] <= 2)
        return ticks, answers

    ticks, answers = asyncio.run(both())
    assert ticks > 5 and answers[0].in_range and answers[1].shape == (1,)


def test_a_cancelled_task_leaves_a_client_that_works(
    client: pianissimo.Client, rows: np.ndarray
) -> None:
    async def cancelled() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(client.aprepare(900, progress=lambda made: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    kept = client.describe().ready
    assert 0 < kept < 900
    assert client.infer(rows[0]).in_range
    assert client.describe().ready == kept - 1


def test_an_interrupt_ends_the_wait(server: pianissimo.Server, tmp_path: Path) -> None:
    program = """
import pianissimo, sys, time
client = pianissimo.Client(sys.argv[1], sys.argv[2], state=sys.argv[3])
client.prepare(1)
print("started", flush=True)
try:
    client.prepare(900)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(client.infer([0.0] * 16).in_range, flush=True)
"""
    arguments = [server.address, server.fingerprint, str(tmp_path / "c")]
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "started\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=120)
    assert out.splitlines() == ["interrupted", "True"]


def test_other_threads_run_while_one_waits(client: pianissimo.Client) -> None:
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0.001)

    counting = threading.Thread(target=count)
    counting.start()
    before = counted[0]
    client.prepare(2)
    assert counted[0] > before + 5
    stop.set()
    counting.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_is_told_what_to_do_and_does_not_hang(
    server: pianissimo.Server, tmp_path: Path
) -> None:
    program = """
import os, sys, warnings
warnings.simplefilter("ignore")
import pianissimo
client = pianissimo.Client(sys.argv[1], sys.argv[2], state=sys.argv[3])
child = os.fork()
if child == 0:
    try:
        client.prepare(1)
    except pianissimo.PianissimoError as error:
        print(error.remedy, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    arguments = [server.address, server.fingerprint, str(tmp_path / "c")]
    command = [sys.executable, "-c", program, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "spawn" in found.stdout


def test_errors_travel_between_processes() -> None:
    error = OutOfRange("no", indices=[2], remedy="give --wait")
    again = pickle.loads(pickle.dumps(error))
    assert again.remedy == "give wait" and again.indices == [2] and str(again) == str(error)


def test_answers_before_an_error_are_kept(client: pianissimo.Client, rows: np.ndarray) -> None:
    client.prepare(2)
    bundles = Path(client.state, "bundles")
    before = set(bundles.iterdir())
    client.prepare(1)
    (last,) = set(bundles.iterdir()) - before
    last.write_bytes(bytes(last.stat().st_size))
    with pytest.raises(StoreError, match="damaged") as raised:
        client.infer(rows[:3])
    assert [answer.in_range for answer in raised.value.answers] == [True, True]
