"""Jobs without videos: what is kept on the disk, and what becomes of a job when disks, processes and servers fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")

from vsum_runtime.runtime.errors import DiskError, VsumError
from vsum_runtime.runtime.serve import jobs as jobs_module
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.job_store import FOLDER, JobStore, Record, label
from vsum_runtime.runtime.serve.jobs import Job, JobError, Jobs
from vsum_runtime.runtime.serve.metrics import Metrics
from vsum_runtime.runtime.serve.models import Models

ID, OTHER = "0" * 31 + "1", "f" * 32


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path)


def test_only_what_is_marked_as_ours_is_ever_removed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    foreign = [tmp_path / "numba" / "index", tmp_path / ID / "thesis", tmp_path / "jobs.sqlite"]
    foreign += [tmp_path / FOLDER / OTHER / "thesis", tmp_path / FOLDER / "photos" / "1.jpg"]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    store = JobStore(tmp_path)
    store.make(ID, Record())
    assert store.read() == {}  # an upload that was cut off
    assert not store.folder(ID).exists()
    store.close()
    assert all(file.read_text() == "mine" for file in foreign)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_jobs_are_private_and_survive_as_they_were(store: JobStore, tmp_path: Path) -> None:
    record = Record("done", "holiday.mp4", "default", "/models/default", "90s", 1e9, 3)
    store.make(ID, record)
    store.upload(ID).write_bytes(b"abc")
    (store.folder(ID) / "work-12").mkdir()
    (store.folder(ID) / "work-12" / "film.mp4").write_bytes(b"half")
    store.close()
    again = JobStore(tmp_path)
    assert again.read() == {ID: record}
    assert sorted(path.name for path in again.folder(ID).iterdir()) == ["job.json", "upload"]
    assert again.folder(ID).stat().st_mode & 0o777 == 0o700
    again.remove(ID)
    assert not again.folder(ID).exists()
    again.close()


def test_a_second_server_is_refused_until_the_first_ends(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(VsumError, match="another server uses this folder"):
        JobStore(tmp_path)
    store.close()
    JobStore(tmp_path).close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b"[]",
        b"{}",
        json.dumps(vars(Record("dancing"))).encode(),
        json.dumps(vars(Record("done", changed=float("nan")))).encode(),
        json.dumps(vars(Record("done", status=-1))).encode(),
        json.dumps(vars(Record("done")) | {"budget": 1}).encode(),
        json.dumps(vars(Record("queued", upload_bytes=7))).encode(),  # and the upload is shorter
    ],
)
def test_a_damaged_job_is_a_failed_one_and_its_neighbour_lives(store: JobStore, content: bytes) -> None:
    for name in (ID, OTHER):
        store.make(name, Record("done"))
    (store.folder(ID) / "job.json").write_bytes(content)
    records = store.read()
    store.close()
    assert (records[ID].state, records[ID].status) == ("failed", 500)
    assert "damaged" in records[ID].error
    assert records[OTHER].state == "done"


def test_the_folder_of_a_killed_server_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    script = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from vsum_runtime.runtime.serve.job_store import JobStore, Record\n"
        f"store = JobStore(None); store.make('{ID}', Record()); print(store.root, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    left = Path(ended.stdout.strip())
    assert (left / ID / "job.json").exists()
    os.utime(left / "lock", (time.time() - 100, time.time() - 100))
    living = JobStore(None)
    assert not left.exists()
    os.utime(living.root / "lock", (time.time() - 100, time.time() - 100))
    JobStore(None).close()
    assert living.root.exists()
    living.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs the permissions of POSIX")
def test_a_state_dir_that_cannot_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="expected a folder for jobs"):
        JobStore(tmp_path / "file")


Runs = Callable[[Jobs, Job, dict[str, Any]], Awaitable[None]]


def on_server(
    tmp_path: Path | None, monkeypatch: pytest.MonkeyPatch, run: Runs, use: Callable[[Jobs], Awaitable[None]]
) -> list[str]:
    """Use jobs whose processes are a function; how often they were reported broken."""

    async def main() -> None:
        config = ServeConfig(state_dir=tmp_path)
        jobs = Jobs(config, Metrics(Models(config)), broken=lambda: broken.append("broken"))
        await jobs.start()
        try:
            await asyncio.wait_for(use(jobs), 60)
        finally:
            await jobs.stop()

    async def run_once(jobs: Jobs, job: Job, task: dict[str, Any]) -> None:
        await run(jobs, job, task)
        (Path(task["work"]) / "summary.npz").write_bytes(b"result")

    broken: list[str] = []
    monkeypatch.setattr(Jobs, "_run_once", run_once)
    monkeypatch.setattr(jobs_module, "_SWEEP_S", 0.05)
    asyncio.run(main())
    return broken


async def submitted(jobs: Jobs) -> Job:
    job = await jobs.new()
    job.upload.write_bytes(b"video")
    await jobs.submit(job)
    return job


async def well(jobs: Jobs, job: Job, task: dict[str, Any]) -> None:
    pass


def test_a_full_disk_loses_no_result_and_no_later_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = JobStore.write
    full = True

    def refuse(store: JobStore, job_id: str, record: Record) -> None:
        if full and record.state == "done":
            raise DiskError("the job cannot be kept: No space left on device")
        write(store, job_id, record)

    async def use(jobs: Jobs) -> None:
        nonlocal full
        first, second = await submitted(jobs), await submitted(jobs)
        await first.ended.wait()
        await second.ended.wait()
        assert (first.state, second.state) == ("done", "done")
        full = False
        while not (first.is_saved and second.is_saved):
            await asyncio.sleep(0.02)
        for job in (first, second):
            assert json.loads((job.folder / "job.json").read_text())["state"] == "done"
            assert (job.folder / "summary.npz").read_bytes() == b"result"

    monkeypatch.setattr(JobStore, "write", refuse)
    assert on_server(tmp_path, monkeypatch, well, use) == []


def test_what_a_process_says_of_a_full_disk_is_the_jobs_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(jobs: Jobs, job: Job, task: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    async def use(jobs: Jobs) -> None:
        job = await submitted(jobs)
        await job.ended.wait()
        assert (job.state, job.status) == ("failed", 507)
        assert job.error == "video: the result cannot be kept: No space left on device"
        assert sorted(path.name for path in job.folder.iterdir()) == ["job.json", "upload"]

    assert on_server(tmp_path, monkeypatch, full, use) == []


def test_a_process_that_never_began_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_starts = 0

    async def late(jobs: Jobs, job: Job, task: dict[str, Any]) -> None:
        nonlocal n_starts
        n_starts += 1
        if n_starts in (1, 2, 4, 5, 6):
            raise jobs_module._NeverBegan

    async def use(jobs: Jobs) -> None:
        good, bad = await submitted(jobs), await submitted(jobs)
        await bad.ended.wait()
        assert (good.state, bad.state, bad.status, n_starts) == ("done", "failed", 503, 6)

    assert on_server(tmp_path, monkeypatch, late, use) == []


def test_a_task_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dying(jobs: Jobs, job: Job) -> None:
        raise RuntimeError("a bug")

    async def use(jobs: Jobs) -> None:
        await submitted(jobs)
        while not all_done(jobs):
            await asyncio.sleep(0.01)

    def all_done(jobs: Jobs) -> bool:
        return any(task.done() for task in jobs._tasks)

    monkeypatch.setattr(Jobs, "_summarize", dying)
    assert on_server(tmp_path, monkeypatch, well, use) == ["broken"]


def test_a_job_that_is_removed_while_it_runs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(jobs: Jobs, job: Job, task: dict[str, Any]) -> None:
        (Path(task["work"]) / "half").touch()
        await asyncio.sleep(0.1)

    async def use(jobs: Jobs) -> None:
        job = await submitted(jobs)
        while job.state != "running":
            await asyncio.sleep(0.01)
        await jobs.remove(job)
        assert job.state == "cancelled"
        with pytest.raises(JobError, match="cancelled"):
            job.summary()
        await asyncio.sleep(0.15)
        assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["lock"]

    assert on_server(tmp_path, monkeypatch, slow, use) == []


@pytest.mark.parametrize("is_kept", [True, False])
def test_draining_waits_for_what_was_accepted(is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a state directory for what runs; without one for everything, until its end was asked for."""

    async def slow(jobs: Jobs, job: Job, task: dict[str, Any]) -> None:
        await asyncio.sleep(0.2)

    async def use(jobs: Jobs) -> None:
        first, second = await submitted(jobs), await submitted(jobs)
        while first.state != "running":
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(jobs.drain(10))
        await asyncio.sleep(0.01)  # whoever waits for the second need not wait for the first, if it is for later
        assert [job.settled.is_set() for job in (first, second)] == [False, is_kept]
        if is_kept:
            await draining
            assert (first.state, second.state) == ("done", "queued")
        else:
            await second.ended.wait()
            await asyncio.sleep(0.05)
            assert not draining.done()
            for job in (first, second):
                job.told.set()
            await draining
        with pytest.raises(VsumError, match="starts or stops"):
            await jobs.new()

    assert on_server(tmp_path if is_kept else None, monkeypatch, slow, use) == []


def test_draining_ends_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hung(jobs: Jobs, job: Job, task: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    async def use(jobs: Jobs) -> None:
        job = await submitted(jobs)
        while job.state != "running":
            await asyncio.sleep(0.01)
        began = time.monotonic()
        await jobs.drain(0.2)
        assert 0.19 < time.monotonic() - began < 5

    assert on_server(tmp_path, monkeypatch, hung, use) == []


CHILD = (
    "from vsum_runtime.runtime.serve.tether import end_with_parent; end_with_parent()\n"
    "print('up', flush=True); import time; time.sleep(60)"
)
PARENT = (
    "import os, subprocess, sys, time; alive = int(sys.argv[1]); pipe = subprocess.PIPE\n"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[2]], stdin=pipe, stdout=pipe, pass_fds=[alive])\n"
    "child.stdout.readline(); print(child.pid, flush=True); os.close(alive); time.sleep(60)"
)
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes that are stopped")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
@pytest.mark.parametrize("is_stopped", [False, pytest.param(True, marks=only_linux)])
def test_processes_end_with_a_server_that_is_killed(is_stopped: bool) -> None:
    alive, theirs = os.pipe()
    command = [sys.executable, "-c", PARENT, str(theirs), CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[theirs]) as parent:
        os.close(theirs)
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    ended = threading.Event()
    threading.Thread(target=lambda: (os.read(alive, 1), ended.set()), daemon=True).start()  # its end closes the pipe
    assert ended.wait(20)
    os.close(alive)


def test_a_label_gives_no_id_away() -> None:
    assert len(label(ID)) == 8
    assert label(ID) not in ID
    assert label(ID) != label(OTHER)
