"""The Open Inference Protocol without its doors: what a model takes and gives, checks of a request, and its run.

Every model has the inputs ``features`` FP32 [B, T, D] and, unless all B videos have T steps, ``lengths`` INT64 [B]; its
output is ``scores`` FP32 [B, T], 0 after the end of a video. What lies in ``features`` after the end is never read.
Features may also come as FP16, in half the bytes, and are scored as FP32.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BusyError, InputError, TooLargeError, brief
from vsum_runtime.runtime.serve.models import Model, Models
from vsum_runtime.runtime.serve.request_queue import ClosedError
from vsum_runtime.runtime.serve.schedule import PRIORITIES, Rows, Ticket
from vsum_runtime.runtime.serve.tracing import record_stages

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
DATATYPES = {"features": ("FP32", "FP16"), "lengths": ("INT64",)}
DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2"), "INT64": np.dtype("<i8")}


@dataclass(frozen=True, eq=False)
class Tensor:
    """One input as it came, its values flat or shaped."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class InferRequest:
    """One request, checked."""

    videos: list[NDArray[np.float32]]
    n_steps: int
    """T of the answer."""
    priority: int
    timeout_s: float | None

    @property
    def answer_bytes(self) -> int:
        return tensor_bytes((len(self.videos), self.n_steps), "FP32")


def server_metadata(*, shared_memory: bool) -> dict[str, Any]:
    extensions = [*EXTENSIONS, "system_shared_memory"] if shared_memory else [*EXTENSIONS]
    return {"name": "vsum", "version": metadata.version("vsum-runtime"), "extensions": extensions}


def model_metadata(model: Model, versions: Sequence[str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": f"vsum_{model.summarizer.backend}",
        "inputs": [
            {"name": "features", "datatype": "FP32", "shape": [-1, -1, model.feature_dim]},
            {"name": "lengths", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, -1]}],
    }


def model_config(model: Model) -> dict[str, Any]:
    """Triton's model configuration, as far as it applies. A request carries its own batch axis: max_batch_size is 0."""
    queue = model.batcher.config
    return {
        "name": model.name,
        "platform": f"vsum_{model.summarizer.backend}",
        "backend": "vsum",
        "max_batch_size": 0,
        "input": [
            {"name": "features", "data_type": "TYPE_FP32", "dims": [-1, -1, model.feature_dim]},
            {"name": "lengths", "data_type": "TYPE_INT64", "dims": [-1], "optional": True},
        ],
        "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [-1, -1]}],
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(queue.max_delay_s * 1e6),
            "priority_levels": PRIORITIES,
            "default_priority_level": PRIORITIES // 2,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round(queue.timeout_s * 1e6),
                "allow_timeout_override": True,
                "max_queue_size": queue.max_requests,
            },
        },
    }


def model_statistics(model: Model) -> dict[str, Any]:
    counts = model.counts

    def duration(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counts.last_ms,
        "inference_count": counts.videos,
        "execution_count": model.batcher.executions,
        "inference_stats": {
            "success": duration(counts.success, counts.request_ns),
            "fail": duration(counts.failure, counts.failure_ns),
            "queue": duration(counts.success, counts.queue_ns),
            "compute_input": duration(counts.success, counts.input_ns),
            "compute_infer": duration(counts.success, counts.infer_ns),
            "compute_output": duration(counts.success, counts.output_ns),
            "cache_hit": duration(0, 0),
            "cache_miss": duration(0, 0),
        },
        "batch_stats": [],
    }


def check_tensor(name: Any, datatype: Any, shape: Any) -> tuple[int, ...]:
    """The shape of an input, if its name, type and shape are those a model may be given."""
    if not isinstance(name, str) or name not in DATATYPES:
        raise InputError(f"input: expected {' and '.join(DATATYPES)}, got {brief(name)}")
    if datatype not in DATATYPES[name]:
        raise InputError(f"{name}: expected datatype {' or '.join(DATATYPES[name])}, got {brief(datatype)}")
    rank = 3 if name == "features" else 1
    whole = isinstance(shape, (list, tuple)) and all(type(n) is int and 0 < n < 1 << 40 for n in shape)
    if not whole or len(shape) != rank:
        expected = "[B, T, D]" if rank == 3 else "[B]"
        raise InputError(f"{name}: expected a shape {expected} of integers above zero, got {brief(shape)}")
    return tuple(shape)


def check_outputs(outputs: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    """Refuse what cannot be had, of the name and parameters of each output asked for."""
    for name, parameters in outputs:
        if name != "scores":
            raise InputError(f"output: expected scores, got {brief(name)}")
        if parameters.get("classification"):
            raise InputError("output: this server knows no classification; leave the parameter out for the scores")


def check_request(
    model: Model, tensors: Sequence[Tensor], parameters: Mapping[str, Any], *, max_steps: int
) -> InferRequest:
    """Turn the tensors and parameters of one request into videos and a place in the queue.

    Raises
    ------
    InputError
        what does not fit the model: names, shapes, lengths, parameters
    TooLargeError
        a video of more than ``max_steps`` steps
    """
    named = {tensor.name: tensor for tensor in tensors}
    if "features" not in named or len(named) < len(tensors):
        raise InputError(f"inputs: expected features, and lengths, once each, got {brief([t.name for t in tensors])}")
    features = named["features"]
    n_videos, n_steps, dim = features.shape
    if dim != model.feature_dim:
        raise InputError(f"features: model {model.name} takes [B, T, {model.feature_dim}], got {list(features.shape)}")
    if n_steps > max_steps:
        raise TooLargeError(f"features: expected at most {max_steps} steps, got {n_steps}")
    rows = features.values.reshape(features.shape).astype(np.float32, copy=False)
    lengths = [n_steps] * n_videos
    if "lengths" in named:
        given = named["lengths"].values.reshape(-1)
        if given.shape != (n_videos,) or (given < 1).any() or (given > n_steps).any():
            raise InputError(f"lengths: expected {n_videos} values of 1 to {n_steps}, got {given[:8].tolist()}")
        lengths = [int(n) for n in given]
    return InferRequest([rows[b, :n] for b, n in enumerate(lengths)], n_steps, *_scheduling(parameters))


def _scheduling(parameters: Mapping[str, Any]) -> tuple[int, float | None]:
    """Priority, and the timeout in seconds; the protocol has microseconds, of which 0 stands for none."""
    priority, timeout = (_whole(parameters, name) for name in ("priority", "timeout"))
    return priority, timeout / 1e6 if timeout else None


def _whole(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InputError(f"parameter {name}: expected an integer, got {brief(value)}")
    return value


async def infer(
    models: Models, name: str, version: str, request: InferRequest, *, began: float
) -> tuple[Model, NDArray[np.float32]]:
    """Run a request in its model's queue and count it. Cancelling the task gives back the place in the queue.

    Parameters
    ----------
    began
        when the request was complete, on the clock of ``time.monotonic``

    Returns
    -------
    the model that ran, float32 [B, T]

    Raises
    ------
    BusyError
        the queue is full, or the timeout cannot be met or has passed
    VsumError
        what the model raised
    """
    while True:
        model = models.get(name, version)
        try:
            ticket = model.batcher.submit(request.videos, priority=request.priority, timeout_s=request.timeout_s)
            break
        except ClosedError:  # it was replaced between the two lines: ask for its successor
            await asyncio.sleep(0.001)
        except BaseException:
            _count_failure(model, began)
            raise
    try:
        scores = await _answer(ticket)
    except BaseException:
        _count_failure(model, began)
        raise
    if len(scores) == 1 and len(scores[0]) == request.n_steps:
        answer = scores[0][None]
    else:
        answer = np.zeros((len(scores), request.n_steps), dtype=np.float32)
        for row, values in zip(answer, scores, strict=True):
            row[: len(values)] = values
    _count_success(model, ticket, began, len(scores))
    record_stages(ticket)
    return model, answer


async def _answer(ticket: Ticket) -> list[Rows]:
    """The scores of a ticket; its place is given back when its time is over or this is cancelled.

    What ``asyncio.wait_for`` and ``wrap_future`` do together, with three turns of the event loop less.
    """
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()

    def settled(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(wake.set)

    ticket.future.add_done_callback(settled)
    timer = loop.call_later(ticket.deadline - time.monotonic(), wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()
        ticket.future.cancel()  # without effect on one that is done
    if ticket.future.cancelled() or not ticket.future.done():
        raise BusyError("the answer was not ready within the timeout")
    return ticket.future.result()


def _count_failure(model: Model, began: float) -> None:
    model.counts.failure += 1
    model.counts.failure_ns += round((time.monotonic() - began) * 1e9)


def _count_success(model: Model, ticket: Ticket, began: float, n_videos: int) -> None:
    now = time.monotonic()
    counts = model.counts
    counts.success += 1
    counts.videos += n_videos
    counts.request_ns += round((now - began) * 1e9)
    counts.input_ns += round((ticket.arrived - began) * 1e9)
    counts.queue_ns += round((ticket.started - ticket.arrived) * 1e9)
    counts.infer_ns += round((ticket.finished - ticket.started) * 1e9)
    counts.output_ns += round((now - ticket.finished) * 1e9)
    counts.last_ms = round(time.time() * 1e3)


def tensor_bytes(shape: Sequence[int], datatype: str) -> int:
    return math.prod(shape) * DTYPES[datatype].itemsize


def converted_bytes(shape: Sequence[int], datatype: str) -> int:
    """What an input takes beside the bytes that came, once it is of the type that models read."""
    return tensor_bytes(shape, "FP32") if datatype == "FP16" else 0
