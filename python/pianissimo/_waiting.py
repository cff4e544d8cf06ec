"""Waiting for jobs of the native half: without Python's lock, and open to interrupts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from . import _native

# Python handles signals between its own instructions, so a wait ends now and then.
_MOMENT = 0.1

Progress = Callable[[int], object]


def wait(job: _native.Job, progress: Progress | None = None) -> Any:
    """The result of a job. If the wait is interrupted, the job is asked to end."""
    told = 0
    try:
        done = False
        while not done:
            done = job.wait(_MOMENT)
            if progress is not None and job.progress > told:
                told = job.progress
                progress(told)
    except BaseException:
        job.cancel()
        raise
    return job.result()


async def wait_async(job: _native.Job, progress: Progress | None = None) -> Any:
    """The result of a job, for an event loop. If the task is cancelled, so is the job."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def wake() -> None:
        # The loop may be closed by now, and then nobody waits.
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    told = 0
    try:
        job.on_done(wake)
        while not done.is_set():
            try:
                await asyncio.wait_for(done.wait(), None if progress is None else _MOMENT)
            except asyncio.TimeoutError:
                pass
            if progress is not None and job.progress > told:
                told = job.progress
                progress(told)
    except BaseException:
        job.cancel()
        raise
    return job.result()
