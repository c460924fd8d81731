"""Videos being summarized: a folder and a row of SQLite each, run in processes that may be killed.

A job is queued, running, done, failed or cancelled. With a ``state_dir`` jobs survive a restart: what was queued or
running then starts again. A finished job goes, with its upload, after ``keep_s``. The id of a job is a secret of 128
bits; nothing lists them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.errors import BusyError, NotFoundError, VsumError
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.metrics import Metrics
from vsum_runtime.runtime.serve.video_worker import load
from vsum_runtime.runtime.summary import Summary

log = logging.getLogger(__name__)

_TABLE = """CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, name TEXT NOT NULL, model TEXT NOT NULL, bundle TEXT NOT NULL,
    budget TEXT NOT NULL, changed REAL NOT NULL, error TEXT NOT NULL, status INTEGER NOT NULL)"""


class JobError(VsumError):
    """A job ended without a summary; the status is that of its cause."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.http_status = status


@dataclass(eq=False)
class Job:
    """One video on its way to a summary."""

    id: str
    folder: Path
    state: str = "uploading"
    name: str = "video"
    """What the client calls the file; shown, never opened."""
    model: str = ""
    bundle: str = ""
    budget: str = "15%"
    changed: float = field(default_factory=time.time)
    error: str = ""
    status: int = 200
    progress: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None

    @property
    def upload(self) -> Path:
        return self.folder / "upload"

    def summary(self) -> Summary:
        """The result.

        Raises
        ------
        JobError   409 before the end, else what went wrong
        """
        if self.state in ("queued", "running"):
            raise JobError(f"job {self.id} is {self.state}", 409)
        if self.state != "done":
            raise JobError(self.error or f"job {self.id} was {self.state}", self.status)
        return load(self.folder, self.name, self.model)


class Jobs:
    """All jobs of one server; used from one event loop."""

    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._jobs: dict[str, Job] = {}
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._films: dict[Path, asyncio.Task[None]] = {}
        self._free = asyncio.Semaphore(config.video_workers)
        self._root: Path | None = None
        self._database: sqlite3.Connection | None = None

    async def start(self) -> None:
        kept = self._config.state_dir
        self._root = Path(tempfile.mkdtemp(prefix="vsum-")) if kept is None else kept.absolute()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)
        self._database = sqlite3.connect(self._root / "jobs.sqlite", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(_TABLE)
        self._database.row_factory = sqlite3.Row
        for row in self._database.execute("SELECT * FROM jobs ORDER BY changed"):
            job = Job(**dict(row), folder=self._root / row["id"])
            self._jobs[job.id] = job
            if job.state in ("queued", "running"):
                self.submit(job)
            else:
                job.ended.set()
        for folder in self._root.iterdir():
            if folder.is_dir() and folder.name not in self._jobs:  # an upload that a stop cut off
                shutil.rmtree(folder, ignore_errors=True)
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._config.video_workers)]
        self._tasks.append(asyncio.create_task(self._sweep()))

    async def stop(self) -> None:
        for task in [*self._tasks, *self._films.values()]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._films.values(), return_exceptions=True)
        if self._database is not None:
            self._database.close()
        if self._root is not None and self._config.state_dir is None:
            shutil.rmtree(self._root, ignore_errors=True)

    def new(self) -> Job:
        """A place for an upload; submit it, or remove it."""
        if self._root is None:
            raise BusyError("the server is starting")
        busy = sum(job.state in ("uploading", "queued", "running") for job in self._jobs.values())
        if busy >= self._config.max_jobs:
            raise BusyError(f"{busy} videos are uploading, waiting or running; try again", retry_after_s=10)
        job = Job(secrets.token_hex(16), Path())
        job.folder = self._root / job.id
        job.folder.mkdir(mode=0o700)
        self._jobs[job.id] = job
        return job

    def submit(self, job: Job) -> None:
        self._change(job, "queued")
        self._queue.put_nowait(job)

    def get(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or job.state == "uploading":
            raise NotFoundError(f"no job {job_id[:32]!r}; finished ones are kept for {self._config.keep_s:g} s")
        return job

    def remove(self, job: Job) -> None:
        """Cancel the job if it runs, and remove all that is left of it."""
        self._jobs.pop(job.id, None)
        if job.state in ("uploading", "queued", "running"):
            job.state, job.error, job.status = "cancelled", "the job was cancelled", 409
            self._metrics.jobs.labels("cancelled").inc()
        if job.process is not None:
            job.process.kill()
        if self._database is not None:
            self._database.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        job.ended.set()
        shutil.rmtree(job.folder, ignore_errors=True)

    async def film(self, job: Job, summary: Summary) -> Path:
        """The film of a summary of this job; made once for the same choice, whoever asks and however often."""
        ranges = summary.ranges.tolist()
        out = job.folder / f"{sha256(json.dumps(ranges).encode()).hexdigest()[:16]}.mp4"
        if not out.exists():
            if out not in self._films:
                task = {**self._task(job), "task": "cut", "ranges": ranges, "out": str(out)}
                self._films[out] = asyncio.create_task(self._cut(job, task))
                self._films[out].add_done_callback(lambda _: self._films.pop(out, None))
            await asyncio.shield(self._films[out])
        return out

    async def _cut(self, job: Job, task: dict[str, Any]) -> None:
        async with self._free:
            await self._run(job, task)

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            if job.state != "queued":
                continue
            async with self._free:
                self._change(job, "running")
                try:
                    await self._run(job, {**self._task(job), "task": "summarize"})
                except VsumError as error:
                    job.error, job.status = str(error), error.http_status
                    outcome = "failed"
                except Exception:
                    log.exception("job %s", job.id)
                    job.error, job.status = "internal error; the server's log says more", 500
                    outcome = "failed"
                else:
                    outcome = "done"
            if job.state == "running":
                job.progress = 1.0
                self._change(job, outcome)
                self._metrics.jobs.labels(outcome).inc()
                job.ended.set()

    async def _run(self, job: Job, task: dict[str, Any]) -> None:
        """Run one task in a fresh process; it is killed when the time is over or this task is cancelled."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vsum_runtime.runtime.serve.video_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        job.process = process
        try:
            if job.state == "cancelled":
                raise JobError("the job was cancelled", 409)
            await asyncio.wait_for(self._follow(job, process, task), self._config.job_timeout_s)
        except asyncio.TimeoutError:
            raise JobError(f"{job.name}: took longer than {self._config.job_timeout_s:g} s", 413) from None
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            job.process = None

    async def _follow(self, job: Job, process: asyncio.subprocess.Process, task: dict[str, Any]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(task).encode() + b"\n")
        while line := await process.stdout.readline():
            said = json.loads(line)
            if "progress" in said:
                job.progress = said["progress"]
            elif "stage" in said:
                self._metrics.stage_s.labels(said["stage"]).observe(said["seconds"])
            elif "error" in said:
                raise JobError(said["error"], said["status"])
            elif "done" in said:
                return
        code = await process.wait()
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

    def _change(self, job: Job, state: str) -> None:
        assert self._database is not None
        job.state, job.changed = state, time.time()
        values = (job.id, state, job.name, job.model, job.bundle, job.budget, job.changed, job.error, job.status)
        self._database.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    async def _sweep(self) -> None:
        while True:
            old = time.time() - self._config.keep_s
            for job in list(self._jobs.values()):
                if job.ended.is_set() and job.changed < old:
                    self.remove(job)
            await asyncio.sleep(min(60.0, self._config.keep_s / 4))
