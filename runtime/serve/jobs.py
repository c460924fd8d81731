"""Videos being summarized, each in a process that may be killed.

A job is queued, running, done, failed or cancelled. With a ``state_dir`` jobs survive a restart: what was queued or
running then starts again. A finished job goes, with its upload, after ``keep_s``. The id of a job is a secret of 128
bits; nothing lists them, and logs call it by `job_store.label`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio

from vsum_runtime.runtime.errors import BusyError, DiskError, NotFoundError, VsumError
from vsum_runtime.runtime.serve.child import Child
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.job_store import JobStore, Record, label
from vsum_runtime.runtime.serve.metrics import Metrics
from vsum_runtime.runtime.serve.video_worker import FILM, RESULT, load
from vsum_runtime.runtime.summary import Summary

log = logging.getLogger(__name__)

_STARTS = 3  # of a process that dies before its first line: a fork under load may fail
_MOST_FILMS = 8  # kept of one job, for as many budgets; the oldest go
_SWEEP_S = 60.0


class JobError(VsumError):
    """A job ended without a summary; the status is that of its cause."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.http_status = status


class _NeverBegan(Exception):
    """A process died before it read its task."""


@dataclass(eq=False)
class Job(Record):
    """One video on its way to a summary."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    folder: Path = Path()
    upload: Path = Path()
    progress: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once there is nothing to wait for: it has ended, or it will start with the next server."""
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once somebody was told how it ended."""
    is_removed: bool = False
    is_saved: bool = True
    expires: float = 0.0
    """On the clock of ``time.monotonic``, which nobody sets; of a job that has ended."""
    processes: set[Child] = field(default_factory=set)
    disk: asyncio.Lock = field(default_factory=asyncio.Lock)

    def summary(self) -> Summary:
        """The result; it is read from the disk.

        Raises
        ------
        JobError
            409 before the end, else what went wrong
        """
        if self.state in ("queued", "running"):
            raise JobError(f"job {self.id} is {self.state}", 409)
        if self.state != "done":
            raise JobError(self.error or f"job {self.id} was {self.state}", self.status)
        try:
            return load(self.folder, self.name, self.model)
        except ValueError as error:
            raise JobError("the result was damaged on the server's disk; send the video again", 500) from error


class Jobs:
    """All jobs of one server; used from one event loop.

    Parameters
    ----------
    broken
        called when a task that works on jobs ends before the server does, which none should
    """

    def __init__(self, config: ServeConfig, metrics: Metrics, broken: Callable[[], None]) -> None:
        self._config, self._metrics, self._broken = config, metrics, broken
        self._jobs: dict[str, Job] = {}
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._removals: set[asyncio.Task[None]] = set()
        self._films: dict[Path, asyncio.Task[None]] = {}
        self._free = asyncio.Semaphore(config.video_workers)
        self._store: JobStore | None = None
        self._stopping = False

    async def start(self) -> None:
        """Take the folder of jobs, and go on with those that are in it.

        Raises
        ------
        VsumError
            another server uses the folder, or the disk refuses
        """
        self._store = await asyncio.to_thread(JobStore, self._config.state_dir)
        records = await asyncio.to_thread(self._store.read)
        for job_id, record in records.items():
            job = self._job(Job(**vars(record), id=job_id))
            if job.state in ("queued", "running"):
                job.state = "queued"
                self._queue.put_nowait(job)
            else:
                self._end(job, age_s=time.time() - job.changed)
        self._tasks = [self._supervised(self._work()) for _ in range(self._config.video_workers)]
        self._tasks.append(self._supervised(self._sweep()))

    async def drain(self, grace_s: float) -> None:
        """Take no more, and wait for what was taken, at most the grace time.

        With a ``state_dir`` for what runs; the rest starts again with the next server. Without one for all, until
        somebody has asked how it ended: later nobody can.
        """
        self._stopping = True
        taken = [job for job in self._jobs.values() if job.state in ("queued", "running")]
        if self._config.state_dir is None:
            events = [job.told for job in taken]
        else:
            events = [job.ended for job in taken if job.state == "running"]
            for job in taken:
                if job.state == "queued":
                    job.settled.set()
        with anyio.move_on_after(grace_s):
            for event in events:
                await event.wait()

    async def stop(self) -> None:
        self._stopping = True
        for task in [*self._tasks, *self._films.values()]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._films.values(), *self._removals, return_exceptions=True)
        self._tasks = []
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
            self._store = None

    async def new(self) -> Job:
        """A place for an upload; submit it, or remove it.

        Raises
        ------
        BusyError
            there are as many as may be, or the server starts or stops
        DiskError
        """
        if self._store is None or self._stopping:
            raise BusyError("the server starts or stops; try again", retry_after_s=5)
        busy = sum(job.state in ("uploading", "queued", "running") for job in self._jobs.values())
        if busy >= self._config.max_jobs:
            raise BusyError(f"{busy} videos are uploading, waiting or running; try again", retry_after_s=10)
        job = self._job(Job())
        try:
            await asyncio.to_thread(self._store.make, job.id, job)
        except BaseException:
            await self.remove(job)
            raise
        return job

    async def submit(self, job: Job) -> None:
        """Queue a job whose upload is here.

        Raises
        ------
        DiskError
            it cannot be kept
        """
        job.upload_bytes = job.upload.stat().st_size
        job.state, job.changed = "queued", time.time()
        await self._save(job)
        self._queue.put_nowait(job)

    def get(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or job.state == "uploading":
            raise NotFoundError(f"no job {job_id[:32]!r}; finished ones are kept for {self._config.keep_s:g} s")
        return job

    async def remove(self, job: Job) -> None:
        """Cancel the job if it runs, and remove all that is left of it, even if the caller is cancelled meanwhile."""
        if job.is_removed:
            return
        job.is_removed = True
        self._jobs.pop(job.id, None)
        if job.state in ("queued", "running"):
            self._metrics.jobs.labels("cancelled").inc()
        if job.state in ("uploading", "queued", "running"):
            job.state, job.error, job.status = "cancelled", "the job was cancelled", 409
        job.ended.set()
        job.settled.set()
        job.told.set()
        removal = asyncio.create_task(self._remove(job))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.shield(removal)

    async def film(self, job: Job, summary: Summary) -> Path:
        """The film of a summary of this job; made once for the same choice, whoever asks and however often."""
        ranges = summary.ranges.tolist()
        out = job.folder / f"{sha256(json.dumps(ranges).encode()).hexdigest()[:16]}.mp4"
        if not out.exists():
            if out not in self._films:
                if len(self._films) >= self._config.max_jobs:
                    raise BusyError(f"{len(self._films)} films are being cut; try again", retry_after_s=10)
                self._films[out] = asyncio.create_task(self._cut(job, ranges, out))
                self._films[out].add_done_callback(lambda task: self._cut_ended(out, task))
            await asyncio.shield(self._films[out])
        return out

    async def _cut(self, job: Job, ranges: list[list[int]], out: Path) -> None:
        async with self._free:
            for old in sorted(job.folder.glob("*.mp4"), key=lambda film: film.stat().st_mtime)[: 1 - _MOST_FILMS]:
                old.unlink(missing_ok=True)
            await self._run(job, {"task": "cut", "ranges": ranges}, FILM, out)

    def _cut_ended(self, out: Path, task: asyncio.Task[None]) -> None:
        del self._films[out]
        if not task.cancelled():
            task.exception()  # whoever waits for the film is told; nobody may be left

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            async with self._free:
                if job.state == "queued" and not (self._stopping and self._config.state_dir is not None):
                    await self._summarize(job)

    async def _summarize(self, job: Job) -> None:
        job.state = "running"
        outcome = "failed"
        try:
            await self._run(job, {"task": "summarize"}, RESULT, job.folder / RESULT)
            outcome = "done"
        except VsumError as error:
            job.error, job.status = str(error), error.http_status
        except Exception:
            log.exception("job %s", label(job.id))
            job.error, job.status = "internal error; the server's log says more", 500
        if job.is_removed:
            return
        job.state, job.changed, job.progress = outcome, time.time(), 1.0
        self._metrics.jobs.labels(outcome).inc()
        try:
            await self._save(job)
        except DiskError as error:  # its result counts; after a restart it would run again
            log.warning("job %s: %s; trying again", label(job.id), error)
            job.is_saved = False
        self._end(job)

    async def _run(self, job: Job, task: dict[str, Any], product: str, out: Path) -> None:
        """Run one task in a fresh process, and take what it made; it is killed when its time is over, or this is
        cancelled."""
        for remaining in reversed(range(_STARTS)):
            if job.is_removed:
                raise JobError("the job was cancelled", 409)
            work = job.folder / f"work-{secrets.token_hex(4)}"
            try:
                work.mkdir()
                await self._run_once(job, {**self._task(job), **task, "work": str(work)})
                if not job.is_removed:
                    (work / product).replace(out)
                return
            except _NeverBegan:
                if not remaining:
                    raise JobError(f"{job.name}: no process to read it could be started; try again", 503) from None
            except OSError as error:
                if job.is_removed:  # and its folder with it
                    raise JobError("the job was cancelled", 409) from None
                raise DiskError(f"{job.name}: the result cannot be kept: {error.strerror or error}") from error
            finally:
                shutil.rmtree(work, ignore_errors=True)

    async def _run_once(self, job: Job, task: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "vsum_runtime.runtime.serve.video_worker"]
        try:
            process = await Child.start(command)
        except OSError as error:
            log.warning("job %s: no process could be started: %s", label(job.id), error.strerror or error)
            raise _NeverBegan from error
        job.processes.add(process)
        try:
            if job.is_removed:
                raise JobError("the job was cancelled", 409)
            await asyncio.wait_for(self._follow(job, process, task), self._config.job_timeout_s)
        except TimeoutError:
            raise JobError(f"{job.name}: took longer than {self._config.job_timeout_s:g} s", 413) from None
        finally:
            await process.end()
            job.processes.discard(process)

    async def _follow(self, job: Job, process: Child, task: dict[str, Any]) -> None:
        process.write(json.dumps(task).encode() + b"\n")  # it stays open: its end is that of this server
        began = False
        while line := await process.stdout.readline():
            began, message = True, json.loads(line)
            if "progress" in message:
                job.progress = message["progress"]
            elif "stage" in message:
                self._metrics.stage_s.labels(message["stage"]).observe(message["seconds"])
            elif "error" in message:
                if trace := message.get("trace"):
                    log.error("job %s: the process that read it failed\n%s", label(job.id), trace)
                raise JobError(message["error"], message["status"])
            elif "done" in message:
                return
        code = await process.wait()
        if job.is_removed:
            raise JobError("the job was cancelled", 409)
        if not began:
            raise _NeverBegan
        raise JobError(f"{job.name}: the process that read it died (exit code {code}); is the file damaged?", 500)

    def _task(self, job: Job) -> dict[str, Any]:
        config = self._config
        return {
            "video": str(job.upload),
            "name": job.name,
            "folder": str(job.folder),
            "bundle": job.bundle,
            "budget": job.budget,
            "backend": config.backend,
            "threads": None,  # a film has the machine's processors to itself, at lower priority
            "memory_mb": config.job_memory_mb,
            "max_pixels": config.max_video_pixels,
            "max_seconds": config.max_video_s,
        }

    def _job(self, job: Job) -> Job:
        assert self._store is not None
        job.folder, job.upload = self._store.folder(job.id), self._store.upload(job.id)
        self._jobs[job.id] = job
        return job

    def _end(self, job: Job, age_s: float = 0.0) -> None:
        job.expires = time.monotonic() + self._config.keep_s - max(0.0, age_s)
        job.ended.set()
        job.settled.set()

    async def _save(self, job: Job) -> None:
        assert self._store is not None
        async with job.disk:
            if not job.is_removed:
                await asyncio.to_thread(self._store.write, job.id, job)
                job.is_saved = True

    async def _remove(self, job: Job) -> None:
        store = self._store
        for process in list(job.processes):
            await process.end()
        async with job.disk:
            if store is not None:
                await asyncio.to_thread(store.remove, job.id)

    async def _sweep(self) -> None:
        while True:
            for job in list(self._jobs.values()):
                try:
                    if job.ended.is_set() and job.expires < time.monotonic():
                        await self.remove(job)
                    elif not job.is_saved:
                        await self._save(job)
                except DiskError as error:
                    log.warning("job %s: %s; trying again", label(job.id), error)
            await asyncio.sleep(min(_SWEEP_S, self._config.keep_s / 4))

    def _supervised(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is to run until the server stops; if it ends before, that is said."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("a task that works on jobs ended; the server is not ready", exc_info=task.exception())
            self._broken()
