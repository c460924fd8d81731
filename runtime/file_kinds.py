"""What a file is, by its first bytes alone."""

from __future__ import annotations

import re
from pathlib import Path

_BEGINNINGS = {
    "a film": rb".{4}(ftyp|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|RIFF.{4}AVI |FLV|\0\0\x01[\xba\xb3\xb0]|"
    rb"\0{2,3}\x01[\x06\x09\x27\x40\x46\x67]|G.{187}G.{187}G|.{4}G.{191}G.{191}G|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\x06\x0e\x2b\x34|\x1f\x07\0|DKIF|nut/multimedia|YUV4MPEG2|\.RMF",
    "a recording": rb"RIFF.{4}WAVE|RF64|fLaC|OggS|ID3|\xff[\xf1\xf9\xfa\xfb\xf2\xf3]|FORM.{4}AIF|\.snd|caff|#!AMR",
    "an animation": rb"GIF8[79]a|\x89PNG\r\n.{0,3000}acTL",
    "a picture": rb"\xff\xd8\xff|\x89PNG\r\n|II\*\0|MM\0\*|BM.{4}\0{4}|RIFF.{4}WEBP|\0\0\0\x0cJXL |8BPS",
    "a drawing": rb"%PDF-|%!PS|(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]",
    "an HDF5 file": rb"(.{512}|.{1024}|.{2048}|)\x89HDF\r\n",
    "an archive of NumPy arrays": rb"PK\x03\x04.{26}[^/]+\.npy|\x93NUMPY",
}
_KINDS = {kind: re.compile(pattern, re.DOTALL) for kind, pattern in _BEGINNINGS.items()}


def kind_of(file: Path) -> str | None:
    """What a file is by its first bytes, such as "a film" or "a picture"; None: nothing that is known here."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return None
    return next((kind for kind, pattern in _KINDS.items() if pattern.match(head)), None)
