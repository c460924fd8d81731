"""Summaries over plain HTTP: features at hand are answered at once, a video becomes a job."""

from __future__ import annotations

import asyncio
import re
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import anyio
import numpy as np
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from vsum_runtime.runtime.backends.ort import cpu_count
from vsum_runtime.runtime.choice import choose
from vsum_runtime.runtime.errors import BusyError, InputError, NotFoundError, TooLargeError
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.jobs import Job, Jobs
from vsum_runtime.runtime.serve.metrics import Metrics
from vsum_runtime.runtime.serve.models import Model, Models
from vsum_runtime.runtime.serve.rest.v2 import Bodies, unless_gone
from vsum_runtime.runtime.summary import Summary, parse_budget

_FIELDS = ("model", "budget")
_FIELD_BYTES = 200
_FEATURE_WAITERS = 64
_NPZ_KEYS = ("features", "picks", "n_frames", "shots", "fps")


def routes(config: ServeConfig, models: Models, bodies: Bodies, jobs: Jobs, metrics: Metrics) -> list[Route]:
    """``POST /v1/summarize`` and what a job answers to."""
    computing = asyncio.Semaphore(config.workers or cpu_count())
    waiting = 0

    async def summarize(request: Request) -> Response:
        job, keep = jobs.new(), False
        try:
            form = await _receive(request, job, config)
            if form.kind == "features":
                return await unless_gone(request, of_features(job, form))
            model = _model(models, form.fields, videos=True)
            job.model, job.bundle = model.name, str(model.summarizer.bundle.path.absolute())
            job.name, job.budget = form.name, form.fields.get("budget", "15%")
            jobs.submit(job)
            if "respond-async" not in request.headers.get("prefer", ""):
                await unless_gone(request, _ended(job, config.wait_s))
            keep = not job.ended.is_set()
            if keep:
                headers = {"Location": f"{request.scope.get('root_path', '')}/v1/jobs/{job.id}"}
                return JSONResponse(_shown(job), 202, headers)
            if "video/" not in request.headers.get("accept", ""):
                return JSONResponse(job.summary().to_dict())
            film = await unless_gone(request, jobs.film(job, job.summary()))
            keep = True  # until it is sent
            return FileResponse(film, media_type="video/mp4", background=BackgroundTask(jobs.remove, job))
        finally:
            if not keep:
                jobs.remove(job)

    async def of_features(job: Job, form: _Form) -> Response:
        nonlocal waiting
        arrays = await asyncio.to_thread(read_features, job.upload, int(config.max_body_mb * 1e6))
        if len(np.atleast_1d(arrays["features"])) > config.max_steps:
            raise TooLargeError(f"features: expected at most {config.max_steps} steps, got {len(arrays['features'])}")
        model = _model(models, form.fields, videos=False)
        if waiting >= _FEATURE_WAITERS:
            raise BusyError(f"{waiting} requests wait; try again")
        waiting += 1
        try:
            async with computing:
                began = time.perf_counter()
                with model.in_use():
                    call = model.summarizer.summarize_features
                    budget = form.fields.get("budget", "15%")
                    summary = await asyncio.to_thread(lambda: call(**arrays, budget=budget))
                metrics.stage_s.labels("summarize_features").observe(time.perf_counter() - began)
        finally:
            waiting -= 1
        return JSONResponse(summary.to_dict())

    async def state(request: Request) -> Response:
        return JSONResponse(_shown(jobs.get(request.path_params["job"])))

    async def cancel(request: Request) -> Response:
        jobs.remove(jobs.get(request.path_params["job"]))
        return Response(status_code=204)

    async def result(request: Request) -> Response:
        summary = _at_budget(jobs.get(request.path_params["job"]), request)
        return JSONResponse(summary.to_dict())

    async def video(request: Request) -> Response:
        job = jobs.get(request.path_params["job"])
        path = await jobs.film(job, _at_budget(job, request))
        return FileResponse(path, media_type="video/mp4", filename="summary.mp4")

    return [
        Route("/v1/summarize", summarize, methods=["POST"]),
        Route("/v1/jobs/{job}", state, methods=["GET"]),
        Route("/v1/jobs/{job}", cancel, methods=["DELETE"]),
        Route("/v1/jobs/{job}/summary", result),
        Route("/v1/jobs/{job}/video", video),
    ]


def with_budget(summary: Summary, budget: float | str) -> Summary:
    """The same video, scores and shots, chosen anew for another budget."""
    choice = choose(summary.scores, summary.picks, summary.shots, summary.n_frames, budget, summary.frame_times_s)
    return replace(summary, **vars(choice))


def read_features(file: Path, limit: int) -> dict[str, Any]:
    """Arguments of ``summarize_features`` from an npy (features) or npz file, at most ``limit`` bytes unpacked.

    Raises
    ------
    InputError      neither format, an array of objects, cut off, or a key that is not an argument
    TooLargeError   an array says it is larger than the limit
    """
    with file.open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            stream.seek(0)
            return {"features": _read_array(stream, "features", limit)}
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            unknown = sorted(set(names) - set(_NPZ_KEYS))
            if unknown or "features" not in names or len(set(names)) < len(names):
                raise InputError(f"npz: expected features and at most {', '.join(_NPZ_KEYS[1:])}, got {names[:8]}")
            arrays: dict[str, Any] = {}
            for name, member in zip(names, archive.namelist(), strict=True):
                with archive.open(member) as part:
                    arrays[name] = _read_array(part, name, limit)
                limit -= arrays[name].nbytes
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"features: expected an npy or npz file: {error}") from error
    for name, kind in (("n_frames", int), ("fps", float)):
        if name in arrays:
            if arrays[name].size != 1 or arrays[name].dtype.kind not in "iuf":
                raise InputError(f"{name}: expected one number, got {arrays[name].dtype} {arrays[name].shape}")
            arrays[name] = kind(arrays[name].item())
    return arrays


def _read_array(stream: IO[bytes], name: str, limit: int) -> np.ndarray[Any, Any]:
    """One array of npy format; what its header claims is checked before memory is taken, nothing is unpickled."""
    try:
        version = np.lib.format.read_magic(stream)
        reader: Callable[[IO[bytes]], Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(stream)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{name}: expected an array in npy format: {error}") from error
    if dtype.hasobject or dtype.kind not in "fiu":
        raise InputError(f"{name}: expected numbers, got {dtype}")
    size = dtype.itemsize
    for n in shape:
        size *= n
    if size > limit:
        raise TooLargeError(f"{name}: expected at most {limit} bytes, its header claims {size}")
    data = stream.read(size + 1)
    if len(data) != size:
        raise InputError(f"{name}: the header claims {size} bytes, {len(data)} came")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


class _Form:
    """The parts of one multipart body: small fields in memory, the one file on disk."""

    def __init__(self, out: IO[bytes], limits: dict[str, int]) -> None:
        self.fields: dict[str, str] = {}
        self.kind = ""
        self.name = ""
        self.complete = False
        self._out, self._limits = out, limits
        self._size = 0
        self._begin()

    def parser(self, boundary: bytes) -> MultipartParser:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, a, b: self._collect(0, data[a:b]),
                "on_header_value": lambda data, a, b: self._collect(1, data[a:b]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._named,
                "on_part_data": lambda data, a, b: self._data(data[a:b]),
                "on_part_end": self._end,
                "on_end": lambda: setattr(self, "complete", True),
            },
        )

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header = [b"", b""]
        self._part, self._value = "", b""

    def _collect(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _named(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        if self._part in self._limits:
            if self.kind:
                raise InputError("form: expected one file, video or features, got several")
            self.kind = self._part
            given = options.get(b"filename", b"").decode("utf-8", "replace")
            last = re.split(r"[/\\]", given)[-1]
            self.name = "".join(c for c in last if c.isprintable())[-100:] or "video"
        elif self._part not in _FIELDS or self._part in self.fields:
            raise InputError(f"form: expected video or features, model, budget, once each, got {self._part[:40]!r}")

    def _data(self, data: bytes) -> None:
        if self._part not in self._limits:
            self._value += data
            if len(self._value) > _FIELD_BYTES:
                raise InputError(f"form: {self._part} is longer than {_FIELD_BYTES} bytes")
            return
        self._size += len(data)
        if self._size > self._limits[self._part]:
            raise TooLargeError(f"{self._part}: expected at most {self._limits[self._part]} bytes, got more")
        self._out.write(data)

    def _end(self) -> None:
        if self._part not in self._limits:
            self.fields[self._part] = self._value.decode("utf-8", "replace")


async def _receive(request: Request, job: Job, config: ServeConfig) -> _Form:
    """Write the upload of a multipart body to the job's folder."""
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type != b"multipart/form-data" or b"boundary" not in options:
        raise HTTPException(415, "expected multipart/form-data with the file as video or features")
    limits = {"video": int(config.max_upload_mb * 1e6), "features": int(config.max_body_mb * 1e6)}
    claimed = request.headers.get("content-length", "0")
    if claimed.isdecimal() and int(claimed) > max(limits.values()) + 10_000:
        raise TooLargeError(f"upload: expected at most {max(limits.values())} bytes, got Content-Length {claimed}")
    try:
        with job.upload.open("wb") as out:
            form = _Form(out, limits)
            parser = form.parser(options[b"boundary"])
            with anyio.fail_after(config.upload_timeout_s):
                async for part in request.stream():
                    parser.write(part)
                    if len(part) > 1 << 20:
                        await asyncio.sleep(0)
    except TimeoutError:
        raise HTTPException(408, f"the upload was not here after {config.upload_timeout_s:g} s") from None
    except ClientDisconnect:
        raise
    except OSError as error:
        raise HTTPException(507, f"the upload cannot be kept: {error.strerror}") from error
    except ValueError as error:  # the parser's own errors are of this kind, and so is InputError
        raise error if isinstance(error, InputError) else InputError(f"form: {error}") from error
    if not form.complete or not form.kind:
        raise InputError("form: expected a complete multipart body with the file video or features")
    parse_budget(form.fields.get("budget", "15%"))
    return form


def _model(models: Models, fields: dict[str, str], *, videos: bool) -> Model:
    """The model a form names, else the first that can do it."""
    if name := fields.get("model"):
        model = models.get(name)
        if videos and not model.takes_videos:
            raise InputError(f"model {name!r} has no feature network; send features, or name another model")
        return model
    for model in models:
        if model.takes_videos or not videos:
            return models.get(model.name)
    raise NotFoundError("no model here takes videos; send features")


def _at_budget(job: Job, request: Request) -> Summary:
    summary = job.summary()
    budget = request.query_params.get("budget")
    return summary if budget is None else with_budget(summary, budget)


async def _ended(job: Job, at_most_s: float) -> None:
    with anyio.move_on_after(at_most_s):
        await job.ended.wait()


def _shown(job: Job) -> dict[str, Any]:
    shown = {"id": job.id, "state": job.state, "progress": round(job.progress, 3), "name": job.name, "model": job.model}
    return shown | ({"error": job.error, "status": job.status} if job.error else {})
