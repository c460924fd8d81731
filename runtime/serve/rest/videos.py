"""Summaries over plain HTTP: features at hand are answered at once, a video becomes a job."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vsum_runtime.runtime.backends.ort import cpu_count
from vsum_runtime.runtime.errors import BusyError, DiskError, InputError, NotFoundError, TooLargeError
from vsum_runtime.runtime.serve.bodies import Bodies, unless_gone
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.jobs import Job, Jobs
from vsum_runtime.runtime.serve.metrics import Metrics
from vsum_runtime.runtime.serve.models import Model, Models
from vsum_runtime.runtime.serve.rest.features import check_size, read_features, unpacked_bytes
from vsum_runtime.runtime.serve.rest.form import Form
from vsum_runtime.runtime.serve.video_worker import MOST_FRAMES_PER_S
from vsum_runtime.runtime.summary import Summary, parse_budget

_FEATURE_WAITERS = 64
_PIECE_BYTES = 1 << 20  # of an upload, kept at a time
_FRAME_BYTES = 64  # that a summary takes for every frame whose time is known
_SHOWN = 200  # characters of what came, in an error


def routes(config: ServeConfig, models: Models, bodies: Bodies, jobs: Jobs, metrics: Metrics) -> list[Route]:
    """``POST /v1/summarize`` and what a job answers to."""
    computing = asyncio.Semaphore(config.workers or cpu_count())
    waiting = 0
    max_frames = int(config.max_video_s * MOST_FRAMES_PER_S)

    async def summarize(request: Request) -> Response:
        async with AsyncExitStack() as leaving:  # what the upload takes is given back at the end, whatever that is
            form, place = await _receive(request, leaving, config, bodies, jobs)
            if not isinstance(place, Job):
                return await unless_gone(request, of_features(place, form.fields))
            job = place
            model = _model(models, form.fields, videos=True)
            job.model, job.bundle = model.name, str(model.summarizer.bundle.path.absolute())
            job.name, job.budget = form.name, form.fields.get("budget", "15%")
            await jobs.submit(job)
            if "respond-async" not in request.headers.get("prefer", ""):
                await unless_gone(request, _settled(job, config.wait_s))
            if not job.ended.is_set():
                leaving.pop_all()
                headers = {"Location": f"{request.scope.get('root_path', '')}/v1/jobs/{job.id}"}
                return JSONResponse(_shown(job), 202, headers)
            summary = await asyncio.to_thread(job.summary)
            if "video/" not in request.headers.get("accept", ""):
                return JSONResponse(summary.to_dict())
            film = await unless_gone(request, jobs.film(job, summary))
            leaving.pop_all()
            return _Film(film, job, last=partial(jobs.remove, job))

    async def of_features(content: io.BytesIO, fields: dict[str, str]) -> Response:
        nonlocal waiting
        model, budget = _model(models, fields, videos=False), fields.get("budget", "15%")
        if waiting >= _FEATURE_WAITERS:
            raise BusyError(f"{waiting} requests wait; try again")
        waiting += 1
        try:
            async with computing:
                began = time.perf_counter()
                with bodies.hold(await asyncio.to_thread(unpacked_bytes, content)):
                    arguments = await asyncio.to_thread(read_features, content, int(config.max_body_mb * 1e6))
                    content.close()
                    n_frames = check_size(arguments, max_steps=config.max_steps, max_frames=max_frames)
                    with bodies.hold(n_frames * _FRAME_BYTES), model.in_use():
                        call = partial(model.summarizer.summarize_features, **arguments, budget=budget)
                        summary = await asyncio.to_thread(call)
                metrics.stage_s.labels("summarize_features").observe(time.perf_counter() - began)
        finally:
            waiting -= 1
        return JSONResponse(summary.to_dict())

    async def state(request: Request) -> Response:
        job = jobs.get(request.path_params["job"])
        if job.state == "failed":
            job.told.set()
        return JSONResponse(_shown(job))

    async def cancel(request: Request) -> Response:
        await jobs.remove(jobs.get(request.path_params["job"]))
        return Response(status_code=204)

    async def result(request: Request) -> Response:
        job = jobs.get(request.path_params["job"])
        summary = await asyncio.to_thread(_at_budget, job, request)
        job.told.set()
        return JSONResponse(summary.to_dict())

    async def video(request: Request) -> Response:
        job = jobs.get(request.path_params["job"])
        film = await jobs.film(job, await asyncio.to_thread(_at_budget, job, request))
        job.told.set()
        return _Film(film, job, filename="summary.mp4")

    return [
        Route("/v1/summarize", summarize, methods=["POST"]),
        Route("/v1/jobs/{job}", state, methods=["GET"]),
        Route("/v1/jobs/{job}", cancel, methods=["DELETE"]),
        Route("/v1/jobs/{job}/summary", result),
        Route("/v1/jobs/{job}/video", video),
    ]


class _Film(FileResponse):
    """A film of a job, and what is to be done when it was sent or could not be."""

    def __init__(
        self, film: Path, job: Job, *, filename: str | None = None, last: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        super().__init__(film, media_type="video/mp4", filename=filename)
        self._job, self._last = job, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except (RuntimeError, FileNotFoundError):
            if not self._job.is_removed:
                raise
            raise NotFoundError("the job was removed") from None
        finally:
            if self._last is not None:
                await self._last()


async def _receive(
    request: Request, leaving: AsyncExitStack, config: ServeConfig, bodies: Bodies, jobs: Jobs
) -> tuple[Form, Job | io.BytesIO]:
    """Read a form: its video into the folder of a new job, its features into memory; `leaving` gives both back."""
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type != b"multipart/form-data" or b"boundary" not in options:
        raise HTTPException(415, "expected multipart/form-data with the file as video or features")
    limits = {"video": int(config.max_upload_mb * 1e6), "features": int(config.max_body_mb * 1e6)}
    most = max(limits.values()) + 10_000
    claimed = request.headers.get("content-length", "0")
    if claimed.isdecimal() and int(claimed) > most:
        raise TooLargeError(f"upload: expected at most {most} bytes, got Content-Length {claimed[:20]}")
    form, size, allowed_s = Form(limits), 0, config.body_timeout_s
    place: Job | io.BytesIO = io.BytesIO()
    try:
        parser = form.parser(options[b"boundary"])
        with anyio.fail_after(allowed_s) as scope:
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise TooLargeError(f"upload: expected at most {most} bytes, got more")
                parser.write(part)
                if form.kind == "video" and not isinstance(place, Job):
                    scope.deadline += config.upload_timeout_s - allowed_s
                    allowed_s = config.upload_timeout_s
                    place = await jobs.new()
                    leaving.push_async_callback(jobs.remove, place)
                await _keep(form.take(_PIECE_BYTES), place, leaving, bodies)
            await _keep(form.take(), place, leaving, bodies)
    except TimeoutError:
        raise HTTPException(408, f"the upload was not here after {allowed_s:g} s") from None
    except OSError as error:
        raise DiskError(f"the upload cannot be kept: {error.strerror}") from error
    except ValueError as error:  # the parser's own errors are of this kind, and so is InputError
        raise error if isinstance(error, InputError) else InputError(f"form: {str(error)[:_SHOWN]}") from error
    if not form.complete or not form.kind:
        raise InputError("form: expected a complete multipart body with the file video or features")
    parse_budget(form.fields.get("budget", "15%"))
    return form, place


async def _keep(data: bytes, place: Job | io.BytesIO, leaving: AsyncExitStack, bodies: Bodies) -> None:
    if not data:
        return
    if isinstance(place, Job):
        await asyncio.to_thread(_append, place.upload, data)
    else:
        leaving.enter_context(bodies.hold(len(data)))
        place.write(data)


def _append(file: Path, data: bytes) -> None:
    with file.open("ab") as out:
        out.write(data)


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
    return summary if budget is None else summary.with_budget(budget)


async def _settled(job: Job, at_most_s: float) -> None:
    with anyio.move_on_after(at_most_s):
        await job.settled.wait()


def _shown(job: Job) -> dict[str, Any]:
    shown = {"id": job.id, "state": job.state, "progress": round(job.progress, 3), "name": job.name, "model": job.model}
    return shown | ({"error": job.error, "status": job.status} if job.error else {})
