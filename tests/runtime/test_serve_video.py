"""Features and whole videos over HTTP: jobs, films, and files that are not what they claim."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import shutil
import signal
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.serve import Server
from vsum_runtime.runtime.serve.job_store import FOLDER, label

DIM = 1280


@pytest.fixture(scope="module")
def film(changing_film: Callable[..., Path]) -> Path:
    return changing_film(n_seconds=6, block=8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("state")
    with Server(port=0, state_dir=state, max_upload_mb=2, max_body_mb=20, max_jobs=3, max_video_s=600) as found:
        yield found


def post(server: Server, film: Path, **options: Any) -> httpx.Response:
    files = {"video": (options.pop("name", "film.mp4"), film.read_bytes())}
    url = server.url + "/v1/summarize"
    return httpx.post(url, files=files, data=options.pop("data", {}), timeout=60, **options)


def start(server: Server, film: Path) -> str:
    answer = post(server, film, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
    return server.url + answer.headers["Location"]


def finished(job: str) -> Any:
    for _ in range(600):
        state = httpx.get(job).json()
        if state["state"] not in ("queued", "running"):
            return state
        time.sleep(0.05)
    raise AssertionError(f"{job} does not end")


@pytest.fixture(scope="module")
def job(server: Server, film: Path) -> str:
    found = start(server, film)
    assert finished(found)["state"] == "done"
    return found


def jobs_of(server: Server) -> list[str]:
    """Names of the folders of jobs."""
    assert server.config.state_dir is not None
    return [path.name for path in (server.config.state_dir / FOLDER).iterdir() if path.is_dir()]


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def post_features(server: Server, data: bytes, **fields: str) -> httpx.Response:
    return httpx.post(server.url + "/v1/summarize", files={"features": ("f", data)}, data=fields, timeout=30)


def test_features_are_summarized_as_the_runtime_does(server: Server, rng: np.random.Generator) -> None:
    features = rng.random((60, DIM), dtype=np.float32)
    picks = np.arange(60) * 15
    data = npz(features=features, picks=picks, n_frames=900, fps=30.0)
    answer = post_features(server, data, budget="20%")
    with Summarizer() as summarizer:
        expected = summarizer.summarize_features(features, picks=picks, n_frames=900, fps=30.0, budget="20%")
    assert answer.json() == expected.to_dict()
    assert post_features(server, npy(features)).json()["n_frames"] == 60


def claim(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def zipped(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def many_files(n_files: int) -> bytes:
    """A zip file whose directory is larger than all else in it."""
    entry = (
        struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0) + b"features"
    )
    directory = entry * n_files
    return directory + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 65535, 65535, len(directory), 0, 0)


BAD_FEATURES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "text": (b"features", 400),
    "a claim of 2 TB": (claim((1 << 29, DIM)), 413),
    "cut off": (npy(np.ones((4, DIM), np.float32))[:-1], 400),
    "too much": (npy(np.ones((4, DIM), np.float32)) + b"x", 400),
    "pickled": (npy(np.array([{"a": 1}], dtype=object)), 400),
    "strings": (npy(np.array(["a"])), 400),
    "a scalar": (npy(np.float32(3)), 400),
    "other width": (npy(np.ones((4, 5), np.float32)), 400),
    "NaN": (npy(np.full((4, DIM), np.nan, np.float32)), 400),
    "too many steps": (npy(np.ones((10_001, 1), np.float32)), 413),
    "a zip bomb": (zipped("features.npy", claim((1 << 20, DIM)) + bytes(50_000_000)), 413),
    "a zip bomb that lies": (zipped("features.npy", claim((2, DIM)) + bytes(50_000_000)), 400),
    "a zip of something else": (zipped("../../etc/passwd", b"x"), 400),
    "unknown array": (npz(features=np.ones((2, DIM), np.float32), engine=np.ones(1)), 400),
    "frames of text": (npz(features=np.ones((2, DIM), np.float32), n_frames=np.array("9")), 400),
    "a negative size": (claim((-1, DIM)) + bytes(64), 400),
    "a negative size in a zip": (zipped("features.npy", claim((-4, DIM)) + bytes(50_000)), 400),
    "a size beyond all": (claim((0, 1 << 62)), 400),
    "a header without end": (claim((1, 1)).replace(b"{", b"(" * 60), 400),
    "NaN frames": (npz(features=np.ones((2, DIM), np.float32), n_frames=np.nan), 400),
    "endless frames": (npz(features=np.ones((2, DIM), np.float32), n_frames=np.inf), 400),
    "half a frame": (npz(features=np.ones((2, DIM), np.float32), n_frames=2.5), 400),
    "2^63 frames": (npz(features=np.ones((2, DIM), np.float32), n_frames=np.uint64(1 << 63)), 413),
    "-2^63 frames": (npz(features=np.ones((2, DIM), np.float32), n_frames=np.int64(-(1 << 63))), 400),
    "frames that fill the memory": (npz(features=np.ones((2, DIM), np.float32), n_frames=1 << 40, fps=30.0), 413),
    "picks of such frames": (npz(features=np.ones((2, DIM), np.float32), picks=np.array([0, 1 << 62])), 413),
    "the smallest rate": (npz(features=np.ones((2, DIM), np.float32), fps=5e-324), 400),
    "no rate": (npz(features=np.ones((2, DIM), np.float32), fps=np.nan), 400),
    "shots that fill the memory": (
        npz(features=np.ones((2, DIM), np.float32), shots=np.ones((20_000, 2), np.int64)),
        413,
    ),
    "a bzip2 bomb": (zipped("features.npy", claim((2, DIM)) + bytes(50_000_000), zipfile.ZIP_BZIP2), 400),
    "LZMA": (zipped("features.npy", npy(np.ones((2, DIM), np.float32)), zipfile.ZIP_LZMA), 400),
    "a directory of a hundred thousand files": (many_files(100_000), 400),
    "picks that fall": (npz(features=np.ones((2, DIM), np.float32), picks=np.array([3, 1])), 400),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_bad_features_are_refused(server: Server, name: str) -> None:
    data, status = BAD_FEATURES[name]
    answer = post_features(server, data)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert len(jobs_of(server)) <= 1  # nothing was kept


def test_a_short_video_is_answered_at_once(server: Server, film: Path) -> None:
    answer = post(server, film, data={"budget": "50%"})
    assert answer.status_code == 200, answer.text
    with Summarizer() as summarizer:
        expected = summarizer.summarize(film, budget="50%").to_dict()
    found = answer.json()
    assert found["segments"] == expected["segments"]
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-6)


def test_a_film_is_what_is_accepted_as_video(server: Server, film: Path) -> None:
    before = jobs_of(server)
    answer = post(server, film, data={"budget": "50%"}, headers={"Accept": "video/mp4"})
    assert answer.headers["content-type"] == "video/mp4"
    for _ in range(100):
        if jobs_of(server) == before:
            break
        time.sleep(0.02)
    assert jobs_of(server) == before  # the upload went with the answer
    with av.open(io.BytesIO(answer.content)) as container:
        assert len(list(container.decode(video=0))) == 30


def test_a_job_changes_its_choice_with_the_budget_at_once(job: str) -> None:
    began = time.monotonic()
    small, large = (httpx.get(job + "/summary", params={"budget": b}).json() for b in ("20%", "70%"))
    assert time.monotonic() - began < 2
    assert 0 < small["summary_frames"] <= 12 < large["summary_frames"] <= 42
    film = httpx.get(job + "/video", params={"budget": "70%"}, timeout=30)
    with av.open(io.BytesIO(film.content)) as container:
        assert len(list(container.decode(video=0))) == large["summary_frames"]
    part = httpx.get(job + "/video", params={"budget": "70%"}, headers={"Range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)
    assert httpx.get(job + "/summary", params={"budget": "all"}).status_code == 400
    all_of_it = httpx.get(job + "/summary", params={"budget": "9" * 308 + "s"})  # close to the largest number
    assert (all_of_it.status_code, all_of_it.json()["summary_frames"]) == (200, 60)
    assert httpx.get(job + "/summary", params={"budget": "9" * 400 + "s"}).status_code == 400


@pytest.mark.parametrize("path", ["/v1/jobs/nobody", "/v1/jobs/nobody/summary", "/v1/jobs/..%2F..%2Fetc/video"])
def test_unknown_jobs_are_404(server: Server, path: str) -> None:
    assert httpx.get(server.url + path).status_code == 404


def test_a_cancelled_job_leaves_nothing(server: Server, film: Path) -> None:
    job = start(server, film)
    assert httpx.delete(job).status_code == 204
    assert httpx.get(job).status_code == 404
    assert job.rsplit("/", 1)[1] not in jobs_of(server)


def test_what_is_no_video_is_422_and_paths_of_the_server_stay_secret(server: Server, tmp_path: Path) -> None:
    (tmp_path / "fake.mp4").write_bytes(b"not a video" * 100)
    answer = post(server, tmp_path / "fake.mp4", name="../../../etc/evil\x00.mp4")
    assert answer.status_code == 422
    assert str(server.config.state_dir) not in answer.text
    assert "/etc" not in answer.text


def test_a_video_larger_than_allowed_is_413(server: Server, tmp_path: Path) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes(2_100_000))
    answer = post(server, tmp_path / "large.mp4")
    assert answer.status_code == 413


def test_a_small_file_that_claims_a_thousand_million_frames_is_413(server: Server, film: Path, tmp_path: Path) -> None:
    data = bytearray(film.read_bytes())
    at = data.index(b"stts") + 12
    data[at : at + 4] = (1_000_000_000).to_bytes(4, "big")  # frames of one duration
    (tmp_path / "claim.mp4").write_bytes(data)
    answer = post(server, tmp_path / "claim.mp4")
    assert answer.status_code == 413, answer.text
    assert "it claims" in answer.text


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data; boundary=x", 400),
        (b'--x\r\nContent-Disposition: form-data; name="video"\r\n\r\ncut off', "multipart/form-data; boundary=x", 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="path"\r\n\r\n/etc\r\n--x--',
            "multipart/form-data; boundary=x",
            400,
        ),
        (b"nonsense" * 9, "multipart/form-data; boundary=x", 400),
    ],
)
def test_bad_forms_are_refused(server: Server, content: bytes, kind: str, status: int) -> None:
    answer = httpx.post(server.url + "/v1/summarize", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]


def test_no_more_videos_than_allowed(server: Server, film: Path) -> None:
    jobs = []
    refused = None
    for _ in range(6):
        answer = post(server, film, headers={"Prefer": "respond-async"})
        if answer.status_code == 503:
            refused = answer
            break
        jobs.append(server.url + answer.headers["Location"])
    assert refused is not None
    assert "Retry-After" in refused.headers
    for job in jobs:
        httpx.delete(job)


def test_a_process_that_dies_fails_its_job_and_the_next_one_runs(server: Server, film: Path) -> None:
    job = start(server, film)
    running = server.app.state.service.jobs.get(job.rsplit("/", 1)[1])
    while not running.progress and not running.ended.is_set():  # one that dies before is started again
        time.sleep(0.02)
    os.kill(next(iter(running.processes)).pid, signal.SIGKILL)
    state = finished(job)
    assert (state["state"], state["status"]) == ("failed", 500)
    assert "died" in state["error"]
    assert httpx.get(job + "/summary").status_code == 500
    assert post(server, film).status_code == 200


def test_jobs_survive_a_restart(film: Path, tmp_path: Path) -> None:
    with Server(port=0, state_dir=tmp_path / "state", grace_s=0.3) as server:
        done = start(server, film)
        assert finished(done)["state"] == "done"
        cut_off = start(server, film)
        running = server.app.state.service.jobs.get(cut_off.rsplit("/", 1)[1])
        while not running.processes:
            time.sleep(0.005)
        os.kill(next(iter(running.processes)).pid, signal.SIGSTOP)  # so that it cannot finish in time
    record = json.loads((tmp_path / "state" / FOLDER / cut_off.rsplit("/", 1)[1] / "job.json").read_text())
    assert record["state"] == "queued"
    with Server(port=0, state_dir=tmp_path / "state") as server:
        for job in (done, cut_off):
            again = server.url + job.removeprefix(job.split("/v1")[0])
            assert finished(again)["state"] == "done"
            assert httpx.get(again + "/summary").json()["n_frames"] == 60


def test_a_stopping_server_keeps_its_word(film: Path) -> None:
    """An accepted job is finished, and can be asked for until it was; nothing more is accepted."""
    with ThreadPoolExecutor(1) as pool:
        server = Server(port=0, grace_s=120)
        server.__enter__()
        job = start(server, film)
        stopped = pool.submit(server.__exit__, None, None, None)
        while httpx.get(server.url + "/v2/health/ready").status_code == 200:
            time.sleep(0.02)
        assert post(server, film).status_code == 503
        assert finished(job)["state"] == "done"
        assert not stopped.done()
        assert httpx.get(job + "/summary").json()["n_frames"] == 60
        stopped.result(30)
    with pytest.raises(httpx.ConnectError):
        httpx.get(job)


def test_no_line_of_the_log_holds_the_id_of_a_job(server: Server, film: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "vsum_runtime"):
        job = start(server, film)
        name = job.rsplit("/", 1)[1]
        httpx.get(job)
        httpx.get(server.url + f"/v1/job/{name}/summary")
        httpx.delete(job)
        until = time.monotonic() + 10
        while not any('"DELETE"' in message for message in caplog.messages) and time.monotonic() < until:
            time.sleep(0.02)  # a line is written once its answer has been sent
    lines = caplog.messages
    assert sum(label(name) in line for line in lines) >= 3
    assert not any(name in line for line in lines)


def test_a_finished_job_goes_after_its_time(film: Path, tmp_path: Path) -> None:
    with Server(port=0, state_dir=tmp_path / "state", keep_s=0.4) as server:
        job = start(server, film)
        for _ in range(200):
            if httpx.get(job).status_code == 404 and not jobs_of(server):  # its folder goes after it
                break
            time.sleep(0.05)
        assert httpx.get(job).status_code == 404
        assert jobs_of(server) == []


def test_a_disk_that_is_really_full_is_507_and_the_next_video_fits(film: Path, tmp_path: Path) -> None:
    """A file system of 512 KB in memory; making one takes root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        (tmp_path / "large.mp4").write_bytes(bytes(1_000_000))
        with Server(port=0, state_dir=disk / "state") as server:
            answer = post(server, tmp_path / "large.mp4")
            assert answer.status_code == 507
            assert "No space left on device" in answer.json()["error"]
            assert post(server, film).status_code == 200
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_507(server: Server, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no file system can be made: the file refuses as a full disk does."""
    import errno

    from vsum_runtime.runtime.serve.rest import videos as summarize

    def full(file: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(summarize, "_append", full)
    answer = post(server, film)
    assert answer.status_code == 507
    assert json.loads(answer.text)["error"].endswith("No space left on device")


def test_curl_lines_of_the_documentation_work_as_written(server: Server, film: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shutil.copy(film, tmp_path / "holiday.mp4")
    text = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("curl ")]
    assert len(lines) == 3
    for line in lines:
        command = shlex.split(line.replace("http://127.0.0.1:8000", server.url))
        out = subprocess.run([command[0], "-sS", "-f", *command[1:]], cwd=tmp_path, capture_output=True, check=True)
        assert "-o" in command or json.loads(out.stdout)
    with av.open(str(tmp_path / "summary.mp4")) as container:
        assert container.streams.video
