"""Every setting of the server: its name, default and meaning, once.

The field ``max_body_mb`` is the flag ``--max-body-mb``, the environment variable ``VSUM_SERVE_MAX_BODY_MB`` and the key
``max_body_mb`` of a TOML file. A flag beats the environment, the environment beats the file. The table in
``docs/serving.md`` is printed by ``python -m runtime.serve --settings``.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.errors import InputError

ENVIRONMENT = "VSUM_SERVE_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _means(meaning: str) -> dict[str, str]:
    return {"meaning": meaning}


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of one server."""

    bundle: tuple[str, ...] = field(
        default=(), metadata=_means("models to serve, comma-separated: DIR or NAME=DIR; none: the default model")
    )
    model_dir: Path | None = field(
        default=None, metadata=_means("folder whose models the load and unload requests may name")
    )
    host: str = field(default="127.0.0.1", metadata=_means("address to listen on"))
    port: int = field(default=8000, metadata=_means("port of HTTP; 0 takes a free one"))
    grpc_port: int | None = field(default=None, metadata=_means("port of gRPC; 0 takes a free one; unset: no gRPC"))
    api_key: str | None = field(
        default=None, metadata=_means("every request but health checks and the page must carry this key")
    )
    tls_cert: Path | None = field(default=None, metadata=_means("certificate chain (PEM): HTTPS and gRPC over TLS"))
    tls_key: Path | None = field(default=None, metadata=_means("private key of tls_cert (PEM)"))
    tls_client_ca: Path | None = field(
        default=None, metadata=_means("clients must show a certificate of this authority (mTLS)")
    )
    open_to_all: bool = field(
        default=False, metadata=_means("allow another host than loopback without api_key or tls_client_ca")
    )
    allowed_hosts: tuple[str, ...] = field(
        default=(),
        metadata=_means("names requests may be addressed to, comma-separated; unset: on loopback its names, else any"),
    )
    backend: str = field(default="auto", metadata=_means("a backend of this installation, or auto"))
    threads: int = field(default=1, metadata=_means("processor threads of one call of a model"))
    workers: int | None = field(
        default=None,
        metadata=_means("calls of one model at the same time; unset: one for each processor, two where batches pay"),
    )
    isolate: bool = field(default=False, metadata=_means("score in processes of their own, which may crash alone"))
    call_timeout_s: float = field(
        default=120.0, metadata=_means("with isolate: time of one call, after which its process is ended and replaced")
    )
    shared_memory: bool = field(
        default=False, metadata=_means("let clients name shared memory of this machine instead of sending tensors")
    )
    max_queue: int = field(default=256, metadata=_means("requests that may wait for one model"))
    max_queue_steps: int = field(default=500_000, metadata=_means("steps, over all waiting requests of one model"))
    max_queue_delay_ms: float = field(
        default=2.0, metadata=_means("wait for company where the backend gains from batches")
    )
    timeout_s: float = field(default=30.0, metadata=_means("deadline of requests that name none"))
    max_steps: int = field(default=10_000, metadata=_means("steps of one video"))
    max_body_mb: float = field(
        default=256.0, metadata=_means("size of a V2 request or of features, as sent and as unpacked")
    )
    max_reading_mb: float = field(
        default=1024.0, metadata=_means("size of all V2 requests and features being read or waiting")
    )
    body_timeout_s: float = field(default=60.0, metadata=_means("time for a client to send a V2 request or features"))
    header_timeout_s: float = field(default=10.0, metadata=_means("time for a client to send the head of a request"))
    state_dir: Path | None = field(
        default=None, metadata=_means("folder of jobs; they survive a restart. Unset: a temporary one")
    )
    max_upload_mb: float = field(default=4096.0, metadata=_means("size of one video"))
    upload_timeout_s: float = field(default=1800.0, metadata=_means("time for a client to send a video"))
    max_jobs: int = field(default=32, metadata=_means("videos uploading, waiting or running"))
    video_workers: int = field(default=1, metadata=_means("videos running at the same time, each in its own process"))
    max_video_s: float = field(default=4 * 3600.0, metadata=_means("length of a video, in seconds of its time"))
    max_video_pixels: int = field(default=8192 * 4320, metadata=_means("width x height of a video"))
    job_timeout_s: float = field(default=3600.0, metadata=_means("time for one job to run"))
    job_memory_mb: float = field(default=8192.0, metadata=_means("address space of the process of a job"))
    keep_s: float = field(default=3600.0, metadata=_means("time a finished job is kept"))
    wait_s: float = field(
        default=30.0, metadata=_means("time a request for a summary waits before it becomes a job to ask for")
    )
    grace_s: float = field(default=30.0, metadata=_means("time to finish what is running after SIGTERM"))
    log_level: str = field(default="info", metadata=_means("debug, info, warning or error"))

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and each.name not in ("port", "grpc_port") and not 0 < value < math.inf:
                raise InputError(f"{each.name}: expected a number above zero, got {value}")
        for name in ("port", "grpc_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise InputError(f"{name}: expected a port, 0 to 65535, got {value}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("tls: expected tls_cert and tls_key together, got one of them")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InputError("tls_client_ca: needs tls_cert and tls_key")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise InputError(f"log_level: expected debug, info, warning or error, got {self.log_level!r}")
        if self.api_key is not None and not self.api_key.strip():
            raise InputError("api_key: expected a key, got an empty one; leave it out for none")
        guarded = self.api_key or self.tls_client_ca or self.open_to_all
        if self.host not in LOOPBACK and not guarded:
            raise InputError(
                f"host: {self.host} can be reached by others; set api_key or tls_client_ca, or open_to_all to allow "
                "anyone who reaches it"
            )


def read_config(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> ServeConfig:
    """The settings of flags, environment and file.

    Raises
    ------
    InputError
        an unknown key, or a value that cannot be
    SystemExit
        flags that argparse does not understand, ``--help``, ``--settings``
    """
    environment = os.environ if environment is None else environment
    parser = door.make_parser(
        "vsum-serve",
        description="Serve models over the Open Inference Protocol, and whole videos.",
        example="vsum-serve --bundle bundles/csta-split1 --port 8000 --grpc-port 8001",
    )
    parser.usage = "%(prog)s [--config FILE] [--port X] [--bundle X] [--SETTING X ...]"
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of the settings below")
    parser.add_argument("--settings", action="store_true", help="print the table of settings and exit")
    for each in fields(ServeConfig):
        flag = "--" + each.name.replace("_", "-")
        if isinstance(each.default, bool):
            parser.add_argument(flag, action="store_const", const="true", help=each.metadata["meaning"])
        else:
            meaning = each.metadata["meaning"].replace("%", "%%")
            parser.add_argument(flag, metavar="X", help=f"{meaning} (default: {_shown(each.default)})")
    flags = vars(parser.parse_args(argv))
    quiet, verbose = flags.pop("quiet"), flags.pop("verbose")
    if flags["log_level"] is None and (quiet or verbose):
        flags["log_level"] = "error" if quiet else "debug"
    if flags.pop("settings"):
        sys.stdout.write(settings_table())
        raise SystemExit(0)
    file = flags.pop("config") or environment.get(ENVIRONMENT + "CONFIG")
    values: dict[str, Any] = {} if file is None else _from_file(Path(file))
    known = {each.name for each in fields(ServeConfig)}
    for key, value in environment.items():
        name = key.removeprefix(ENVIRONMENT).lower()
        if key.startswith(ENVIRONMENT) and name != "config":
            if name not in known:
                raise InputError(f"environment: {key} is not a setting; vsum-serve --settings lists them")
            values[name] = value
    values.update({name: value for name, value in flags.items() if value is not None})
    kinds = get_type_hints(ServeConfig)
    return ServeConfig(**{name: _parsed(name, value, kinds[name]) for name, value in values.items()})


def settings_table() -> str:
    """All settings as a Markdown table."""
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for each in fields(ServeConfig):
        rows.append(f"| `{each.name}` | {_shown(each.default)} | {each.metadata['meaning']} |")
    return "\n".join(rows) + "\n"


def _shown(default: Any) -> str:
    return "" if default in (None, ()) else f"{default:g}" if isinstance(default, float) else str(default)


def _from_file(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: expected a TOML file with settings: {error}") from error
    unknown = sorted(set(values) - {each.name for each in fields(ServeConfig)})
    if unknown:
        raise InputError(f"{file}: {', '.join(unknown)}: not a setting; vsum-serve --settings lists them")
    return values


def _parsed(name: str, value: Any, kind: Any) -> Any:
    """A value of the field's type from text or TOML."""
    text = str(value).strip()
    try:
        if kind == tuple[str, ...]:
            parts = value if isinstance(value, list) else text.split(",")
            return tuple(str(part).strip() for part in parts if str(part).strip())
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is float:
            return float(text)
        if kind in (int, int | None):
            return int(text)
        return Path(text) if kind == Path | None else text
    except (ValueError, KeyError) as error:
        expected = {bool: "true or false", float: "a number"}.get(kind, "a whole number")
        raise InputError(f"{name}: expected {expected}, got {value!r}") from error
