"""The form that carries one file, video or features, and a few short fields: multipart, piece by piece."""

from __future__ import annotations

import re

from python_multipart.multipart import MultipartParser, parse_options_header

from vsum_runtime.runtime.errors import InputError, TooLargeError

FIELDS = ("model", "budget")
_FIELD_BYTES = 200
_HEAD_BYTES = 8192  # of one part


class Form:
    """The parts of one multipart body: fields in memory, the file handed on piece by piece by `take`."""

    def __init__(self, limits: dict[str, int]) -> None:
        self.fields: dict[str, str] = {}
        self.kind = ""
        self.name = ""
        self.complete = False
        self._waiting: list[bytes] = []
        self._n_waiting = 0
        self._limits = limits
        self._size = 0
        self._begin()

    def take(self, at_least: int = 0) -> bytes:
        """What has come of the file since the last time; nothing if that is less."""
        if self._n_waiting < at_least:
            return b""
        data, self._waiting, self._n_waiting = b"".join(self._waiting), [], 0
        return data

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
        self._head_bytes = 0
        self._part, self._value = "", b""

    def _collect(self, which: int, data: bytes) -> None:
        self._header[which] += data
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES:
            raise InputError(f"form: the head of a part is longer than {_HEAD_BYTES} bytes")

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
        elif self._part not in FIELDS or self._part in self.fields:
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
        self._waiting.append(data)
        self._n_waiting += len(data)

    def _end(self) -> None:
        if self._part not in self._limits:
            self.fields[self._part] = self._value.decode("utf-8", "replace")
