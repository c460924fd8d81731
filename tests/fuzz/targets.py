"""Readers of foreign bytes: each takes any bytes, and raises nothing but the errors that it documents."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from python_multipart.multipart import parse_options_header

from vsum_runtime.runtime import bundle
from vsum_runtime.runtime.choice import budget_in_frames
from vsum_runtime.runtime.errors import VsumError
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE
from vsum_runtime.runtime.serve import job_store
from vsum_runtime.runtime.serve.job_store import Record
from vsum_runtime.runtime.serve.rest.features import check_size, read_features, unpacked_bytes
from vsum_runtime.runtime.serve.rest.form import Form

LIMIT = 1 << 20
_FOLDER = Path(tempfile.mkdtemp(prefix="vsum-fuzz-"))


@dataclass(frozen=True)
class Target:
    """A reader, and valid inputs from which others are made."""

    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = (VsumError,)
    seeds: list[bytes] = field(default_factory=list)

    def try_it(self, data: bytes) -> None:
        with suppress(*self.errors):
            self.read(data)


def _features(data: bytes) -> None:
    unpacked_bytes(io.BytesIO(data))
    arguments = read_features(io.BytesIO(data), LIMIT)
    assert sum(value.nbytes for value in arguments.values() if isinstance(value, np.ndarray)) <= LIMIT
    assert 0 <= check_size(arguments, max_steps=1000, max_frames=10_000) <= 10_000


def _form(data: bytes) -> None:
    kind, options = parse_options_header(data[:80])
    form = Form({"video": LIMIT, "features": LIMIT})
    parser = form.parser(options.get(b"boundary", b"x"))
    for start in range(80, len(data), 7):  # in odd pieces, as they may come
        parser.write(data[start : start + 7])
    assert form.kind in ("", "video", "features")
    assert len(form.take()) <= LIMIT
    assert isinstance(kind, bytes)


def _record(data: bytes) -> None:
    (_FOLDER / "job.json").write_bytes(data)
    record = job_store._record(_FOLDER)
    assert record.state in ("uploading", "queued", "running", "done", "failed")


def _manifest(data: bytes) -> None:
    (_FOLDER / bundle.MANIFEST).write_bytes(data)
    bundle.read(_FOLDER)


def _budget(data: bytes) -> None:
    assert 0 <= budget_in_frames(data.decode("utf-8", "surrogateescape"), 900, 30.0) <= 900


def _npy(array: object) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(array))
    return out.getvalue()


def _npz(method: int) -> bytes:
    arrays = {"features": np.ones((3, 2), np.float32), "picks": np.arange(3), "n_frames": 9, "fps": 30.0}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, array in (arrays | {"shots": np.array([[0, 4], [4, 9]])}).items():
            archive.writestr(f"{name}.npy", _npy(array))
    return out.getvalue()


_PART = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.mp4"\r\n\r\n%s\r\n'
_HEAD = b"multipart/form-data; boundary=x".ljust(80)

TARGETS = {
    "features": Target(_features, seeds=[_npy(np.ones((3, 2), np.float32)), *map(_npz, (0, 8, 12, 14))]),
    "form": Target(
        _form,
        errors=(VsumError, ValueError),  # the parser's own, which the server translates
        seeds=[_HEAD + _PART % (b"video", b"abc") + _PART % (b"budget", b"15%") + b"--x--\r\n"],
    ),
    "record": Target(
        _record,
        errors=(),
        seeds=[json.dumps(vars(Record("done"))).encode(), json.dumps(vars(Record("queued"))).encode()],
    ),
    "manifest": Target(_manifest, seeds=[(DEFAULT_BUNDLE / bundle.MANIFEST).read_bytes()]),
    "budget": Target(_budget, seeds=[b"15%", b"0.15", b"90s", b"9" * 308 + b"s"]),
}
