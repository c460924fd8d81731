"""Some 120 small clips, containers by codecs by clocks by shapes by sounds, and what reading and the cuts make of them.

    python -m tests.media.corpus --json newest.json              all clips, with the PyAV that is installed
    python -m tests.media.corpus --table oldest.json newest.json    their table, as docs/corpus.md

To add a clip, add a line to `CLIPS`: its file name and what `clips.write_clip` is to be told, or what makes it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import av
import numpy as np

from tests.media.clips import check_film, joined, trimmed, two_programs, write_clip
from vsum_runtime.runtime.errors import VsumError
from vsum_runtime.runtime.media.film import write_summary
from vsum_runtime.runtime.media.film_copy import copy_summary
from vsum_runtime.runtime.media.film_smart import Unsuited, smart_summary
from vsum_runtime.runtime.media.frames import read_frames
from vsum_runtime.runtime.media.rational import fraction
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0

N_PICTURES = 75
SIZE = (128, 72)
ASKED = [[8, 40], [46, 70]]
CHECKS = ("read", "exact", "smart", "copy")
_LOOK = replace(EFFICIENTNET_LITE0, width=16, height=16)

_B = {"bf": "3", "g": "30"}
_X265 = "keyint=30:min-keyint=30:scenecut=0:log-level=none:pools=1:bframes=3:b-adapt=0:open-gop="
_OPEN_264 = {"bf": "3", "x264-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0"}
_REFRESH = {"x264-params": "intra-refresh=1:keyint=30:scenecut=0"}
_VFR = [0.0, *np.cumsum(np.tile([0.02, 0.05, 0.1, 0.03], 20)).tolist()][:N_PICTURES]

Clip = dict[str, Any]

CLIPS: dict[str, Clip | Callable[[Path], Path]] = {
    # containers by codecs
    **{f"h264.{c}": {} for c in ("mp4", "mov", "mkv", "ts", "flv", "avi", "m4v")},
    **{f"h264-b.{c}": {"options": _B} for c in ("mp4", "mov", "mkv", "ts", "flv", "m2ts")},
    **{
        f"{name}-pcm.avi": {"codec": codec, "options": options, "sound": "pcm_s16le"}
        for name, codec, options in (
            ("h264", "libx264", {}),
            ("h264-b", "libx264", _B),
            ("mpeg4", "mpeg4", {}),
            ("mpeg4-b", "mpeg4", {"g": "30", "bf": "2"}),
        )
    },
    **{f"h264-pyramid.{c}": {"options": _B | {"b-pyramid": "normal", "refs": "4"}} for c in ("mp4", "mkv", "ts")},
    **{f"h264-open-groups.{c}": {"options": _OPEN_264} for c in ("mp4", "mkv", "ts")},
    **{f"h264-refresh.{c}": {"options": _REFRESH} for c in ("mp4", "mkv", "ts")},
    **{f"h264-long-group.{c}": {"options": {"g": "250"}} for c in ("mp4", "mkv")},
    **{f"h264-short-groups.{c}": {"options": {"g": "5"}} for c in ("mp4", "mkv")},
    **{f"h264-intra.{c}": {"options": {"g": "1"}} for c in ("mp4", "mkv")},
    **{f"h264-10-bit.{c}": {"pix_fmt": "yuv420p10le"} for c in ("mp4", "mkv")},
    **{f"h264-444.{c}": {"pix_fmt": "yuv444p"} for c in ("mp4", "mkv")},
    **{f"hevc.{c}": {"codec": "libx265", "options": {"x265-params": _X265 + "0"}} for c in ("mp4", "mov", "mkv", "ts")},
    **{
        f"hevc-open-groups.{c}": {"codec": "libx265", "options": {"x265-params": _X265 + "1"}, "tag": tag}
        for c, tag in (("mp4", "hvc1"), ("mov", "hvc1"), ("mkv", None), ("ts", None))
    },
    **{
        f"mpeg2.{c}": {"codec": "mpeg2video", "options": {"g": "15"}, "sound": "mp2"}
        for c in ("ts", "mkv", "mpg", "avi")
    },
    **{
        f"mpeg2-b.{c}": {"codec": "mpeg2video", "options": {"g": "15", "bf": "2"}, "sound": "mp2"}
        for c in ("ts", "mkv", "mpg", "mp4")
    },
    **{f"mpeg4.{c}": {"codec": "mpeg4"} for c in ("mp4", "mkv", "avi", "mov")},
    **{f"mpeg4-b.{c}": {"codec": "mpeg4", "options": {"g": "30", "bf": "2"}} for c in ("mp4", "mkv")},
    **{f"vp8.{c}": {"codec": "libvpx", "sound": "libopus"} for c in ("webm", "mkv")},
    **{f"vp9.{c}": {"codec": "libvpx-vp9", "sound": "libopus"} for c in ("webm", "mkv", "mp4")},
    **{f"av1.{c}": {"codec": "av1", "sound": "libopus", "size": (256, 144)} for c in ("mp4", "mkv", "webm")},
    **{f"mjpeg.{c}": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "sound": "pcm_s16le"} for c in ("avi", "mov", "mkv")},
    **{f"prores.{c}": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "sound": "pcm_s16le"} for c in ("mov", "mkv")},
    "ffv1.mkv": {"codec": "ffv1", "sound": "flac"},
    # sounds
    **{
        f"sound-{s}-{layout}.{c}": {"sound": s, "layout": layout, "options": {"g": "12"}}
        for c, names in (
            ("mp4", ("aac", "libmp3lame", "ac3", "eac3", "alac", "flac", "libopus")),
            ("mkv", ("aac", "libmp3lame", "ac3", "eac3", "alac", "flac", "libopus", "vorbis", "mp2")),
        )
        for s in names
        for layout in ("stereo",)
    },
    **{f"sound-{s}.mov": {"sound": s} for s in ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le", "pcm_u8")},
    **{f"sound-{s}-8k.mov": {"sound": s, "sound_rate": 8000} for s in ("pcm_mulaw", "pcm_alaw", "pcm_s16le")},
    **{f"sound-{s}.mkv": {"sound": s} for s in ("pcm_s16le", "pcm_s24le", "pcm_f32le")},
    **{f"sound-aac-{r}.{c}": {"sound_rate": r} for r in (8000, 22050, 44100, 96000) for c in ("mp4", "mkv")},
    **{f"sound-{s}-5.1.mkv": {"sound": s, "layout": "5.1", "sound_bit_rate": 448_000} for s in ("aac", "ac3", "flac")},
    "sound-mp3-32k.mkv": {"sound": "libmp3lame", "sound_bit_rate": 32000},
    "sound-mp3-22050.mp4": {"sound": "libmp3lame", "sound_rate": 22050},
    "silent.mp4": {"sound": None},
    "silent.mkv": {"sound": None, "options": _B},
    # clocks
    **{f"starts-late.{c}": {"start_s": 3.7, "options": _B} for c in ("mp4", "mkv", "ts", "mov")},
    **{f"sound-late.{c}": {"sound_from_s": 0.7} for c in ("mp4", "mkv", "ts")},
    **{f"sound-ends-early.{c}": {"sound_until_s": 1.7} for c in ("mp4", "mkv", "ts")},
    **{f"sound-behind.{c}": {"video_first": True} for c in ("mp4", "mkv")},
    "chunks.mp4": {"container": {"chunk_duration": "1000000"}, "options": _B},
    **{f"vfr.{c}": {"times_s": _VFR, "sound": None, "options": _B} for c in ("mp4", "mkv", "ts")},
    "ntsc.mp4": {"rate": Fraction(30000, 1001), "options": _B},
    "ntsc.mkv": {"rate": Fraction(30000, 1001), "options": _B},
    "60-a-second.mkv": {"rate": 60, "options": _B},
    "wraps.ts": {"start_s": 95442.5, "options": _B},
    "clock-back.ts": lambda f: _joined(f, 0.0),
    "clock-ahead.ts": lambda f: _joined(f, 5000.0),
    "programmes.ts": lambda f: _programmes(f),
    "trimmed.mp4": lambda f: _trimmed(f),
    "mid-group.ts": lambda f: _mid_group(f),
    # shapes
    **{f"shape-4-3.{c}": {"shape": Fraction(4, 3)} for c in ("mp4", "mkv", "ts", "mov")},
    "narrow.mp4": {"size": (64, 128)},
}

REASONS = {
    "sound-aac-8000.mp4": "a packet lasts 128 ms, and a copy joins whole packets: up to four pictures are silent there",
    "sound-aac-8000.mkv": "as above",
}
"""Why clips stay wrong."""


def _made(folder: Path, name: str, clip: Clip) -> Path:
    arguments: Clip = {"size": SIZE} | clip
    return write_clip(folder / name, N_PICTURES, **arguments)


def _joined(folder: Path, start_s: float) -> Path:
    half = N_PICTURES // 2
    one = write_clip(folder / "one.ts", half, size=SIZE, sound_until_s=half / 30 + 0.5)
    two = write_clip(
        folder / "two.ts", N_PICTURES - half, size=SIZE, first_number=half, sound_ahead_s=half / 30, start_s=start_s
    )
    return joined([one, two], folder / "joined.ts")


def _programmes(folder: Path) -> Path:
    one = write_clip(folder / "one.ts", N_PICTURES, size=SIZE, sound_bit_rate=64000)
    two = write_clip(folder / "two.ts", N_PICTURES, size=(64, 64), sound_ahead_s=5, sound_bit_rate=192000)
    return two_programs(one, two, folder / "programmes.ts")


def _trimmed(folder: Path) -> Path:
    whole = write_clip(folder / "whole.mp4", 90, size=SIZE, options={"g": "40", "bf": "2"})
    return trimmed(whole, folder / "trimmed.mp4", 0.4)


def _mid_group(folder: Path) -> Path:
    data = write_clip(folder / "whole.ts", 90, size=SIZE, options={"g": "12", "bf": "2"}).read_bytes()
    cut = folder / "cut.ts"
    cut.write_bytes(data[: 188 * 3] + data[188 * (len(data) // 188 // 12) :])
    return cut


def outcomes(name: str) -> dict[str, str]:
    """Check -> "right", "refused: why" or "WRONG: what"."""
    clip = CLIPS[name]
    result = {}
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        try:
            source = clip(folder) if callable(clip) else _made(folder, name, clip)
        except (ValueError, OSError) as error:
            return dict.fromkeys(CHECKS, f"not made: {error}"[:60])
        rate = clip.get("rate", 30) if isinstance(clip, dict) else 30
        truth = check_film(source, [], rate=rate)
        numbers = truth.numbers
        own = {n: ms for n, ms in zip(truth.heard, truth.av_ms.tolist(), strict=True) if abs(ms) < 50}  # not at seams
        if source.suffix == ".avi":  # the reader makes its times up, and all of these begin at 0
            own = {}
        try:
            with read_frames(source, _LOOK) as reader:
                for _ in reader:
                    pass
                times = reader.frame_times_s
        except VsumError as error:
            return dict.fromkeys(CHECKS, f"WRONG: {error}"[:80])
        result["read"] = (
            "right" if len(times) == len(numbers) + 1 else f"WRONG: {len(times) - 1} of {len(numbers)} pictures"
        )
        has_sound = not isinstance(clip, dict) or clip.get("sound", "aac") is not None
        quiet = {n for n in range(N_PICTURES) if not callable(clip) and _is_quiet(clip, n, float(rate))}
        for check in CHECKS[1:]:
            out = folder / f"film{_suffix(source, check)}"
            try:
                if check == "exact":
                    write_summary(source, ASKED, out, frame_times_s=times)
                elif check == "smart":
                    smart_summary(source, ASKED, times, out)
                else:
                    copy_summary(source, ASKED, times, out)
            except Unsuited as reason:
                result[check] = f"exact: {reason}"
            except VsumError as error:
                result[check] = f"refused: {str(error).split(': ', 1)[-1]}"
            else:
                sound = own if has_sound else None
                asked_s = sum(float(times[b] - times[a]) for a, b in ASKED)
                result[check] = _judged(out, numbers, rate, check, sound, quiet, asked_s)
                if fault := _shape_fault(source, out):
                    result[check] = f"WRONG: {fault}"
    return result


def outcomes_and_memory(name: str) -> tuple[dict[str, str], int]:
    """`outcomes`, and the most memory that a process of their own took, the making of the clip included; bytes."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(_outcomes_and_memory, name).result()


def _outcomes_and_memory(name: str) -> tuple[dict[str, str], int]:
    return outcomes(name), 1024 * getrusage(RUSAGE_SELF).ru_maxrss


def _shape_fault(source: Path, out: Path) -> str | None:
    """How the shape in which a film is shown differs from the source's; None where it does not."""
    shapes = []
    for path in (source, out):
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            shapes.append(Fraction(video.width, video.height) * (fraction(video.sample_aspect_ratio) or 1))
    return None if shapes[0] == shapes[1] else f"shown {float(shapes[1]):.3f} wide to high, not {float(shapes[0]):.3f}"


def _is_quiet(clip: Clip, number: int, rate: float) -> bool:
    at = number / rate
    return at < clip.get("sound_from_s", 0) or at + 1 / rate > clip.get("sound_until_s", 1e9)


def _suffix(source: Path, check: str) -> str:
    """A copy keeps its container where it can be one of the film's."""
    return source.suffix if source.suffix in (".mp4", ".mov", ".m4v", ".mkv") else ".mkv" if check == "copy" else ".mp4"


def _judged(
    out: Path,
    numbers: list[int],
    rate: Any,
    check: str,
    own: dict[int, float] | None,
    quiet: set[int],
    asked_s: float,
) -> str:
    """`own`: by how much the sound of each picture is off in the source itself, or None for no sound."""
    asked = [[numbers[a], numbers[b - 1] + 1] for a, b in ASKED]
    seen = check_film(out, asked, rate=rate)
    shown = np.array(seen.numbers)
    starts = np.append(True, np.diff(shown) != 1)
    ends = np.append(starts[1:], True)
    beside = {int(n) + k for n in shown[starts] for k in (0, 1)} | set(shown[ends].tolist())
    faults = []
    if seen.missing:
        faults.append(f"{len(seen.missing)} missing")
    if seen.steps_back:
        faults.append(f"{seen.steps_back} steps back")
    if check != "copy" and seen.extra:
        faults.append(f"{seen.extra} not asked for")
    if check != "copy" and abs(seen.duration_s - asked_s) > 1.01 / float(rate):
        faults.append(f"lasts {seen.duration_s:.2f} s, not {asked_s:.2f}")
    if own is not None:
        silent = set(seen.silent) - beside - quiet
        heard = zip(seen.heard, (seen.av_ms - [own.get(n, 0.0) for n in seen.heard]).tolist(), strict=True)
        late = [ms for n, ms in heard if abs(ms) > 34 and n not in beside | quiet]
        if silent:
            faults.append(f"{len(silent)} silent")
        if late:
            faults.append(f"{len(late)} with other sound, {max(late, key=abs):+.0f} ms")
    return "WRONG: " + ", ".join(faults) if faults else "right"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row per clip, a cell per check and PyAV."""
    heads = [f"{check}, {result['pyav']}" for check in CHECKS for result in results]
    versions = [f"PyAV {r['pyav']} ({r['ffmpeg']}), Python {r['python']}, {r['date']}" for r in results]
    heads += [f"MB, {result['pyav']}" for result in results]
    lines = [
        "# Corpus",
        "",
        "Small clips of many kinds, made by PyAV, with numbered pictures and a sound that tells its time; what reading",
        "and the three cuts make of them; films are read back by PyAV alone. `make corpus` writes this page.",
        "",
        "- *right*: every picture asked for is shown, in order, with its own sound within one picture; next to a join",
        "  a picture may hear both sides or be silent. Exact and smart films show nothing else and last as long as was",
        "  asked for; a copy shows what lies back to a key frame. Pictures keep the shape in which they are shown.",
        "- *exact*: the smart cut leaves the clip to the exact one. *refused*: the cut says that it cannot be right.",
        "- **wrong**: not as it should be; the reason is below the table.",
        "- *MB*: the most memory of the process that made the clip and all its films, Python and NumPy included.",
        "",
        "Colours, interlacing, HDR and changes of size midway are tested in `tests/media/test_shape_and_colour.py`.",
        "Crop marks of the container (PixelCrop of Matroska, clap of QuickTime) are not applied.",
        "",
        f"Versions: {'; '.join(versions)}.",
        "",
        "| clip | " + " | ".join(heads) + " |",
        "| --- |" + " --- |" * len(heads),
    ]
    notes: dict[str, None] = {}
    for name in results[0]["clips"]:
        cells = []
        for check in CHECKS:
            for result in results:
                outcome = result["clips"].get(name, {}).get(check, "not run")
                kind, _, reason = outcome.partition(": ")
                if kind in ("WRONG", "not made"):
                    notes[f"{name}, {check}, {result['pyav']}: {reason}"] = None
                cells.append({"WRONG": "**wrong**"}.get(kind, kind))
        cells += [f"{result['memory_bytes'][name] / 1e6:.0f}" for result in results]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    total = sum(len(r["clips"]) * len(CHECKS) for r in results)
    lines += ["", f"{len(results[0]['clips'])} clips, {total} cells.", ""]
    lines += [f"- {note}" for note in notes]
    lines += ["", *(f"- `{name}`: {reason}." for name, reason in REASONS.items())]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the corpus and judge every cut of it.")
    parser.add_argument("--json", type=Path, help="write the outcomes with the installed PyAV")
    parser.add_argument("--table", type=Path, nargs="+", help="outcomes of several runs: write their table")
    parser.add_argument(
        "--only", default="", help="clips whose name holds one of these, with commas between; added to --json"
    )
    args = parser.parse_args(argv)
    if args.table:
        sys.stdout.write(table([json.loads(path.read_text()) for path in args.table]))
        return 0
    ffmpeg = "libavformat " + ".".join(map(str, av.library_versions["libavformat"]))
    result: dict[str, Any] = {
        "pyav": av.__version__,
        "ffmpeg": ffmpeg,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "clips": {},
        "memory_bytes": {},
    }
    clips: dict[str, dict[str, str]] = result["clips"]
    memory: dict[str, int] = result["memory_bytes"]
    if args.json and args.json.exists() and args.only:
        before = json.loads(args.json.read_text())
        clips.update(before["clips"])
        memory.update(before["memory_bytes"])
    for name in CLIPS:
        if any(part in name for part in args.only.split(",")):
            clips[name], memory[name] = outcomes_and_memory(name)
            sys.stderr.write(f"{name}: {clips[name]}, {memory[name] / 1e6:.0f} MB\n")
            if args.json:
                args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any("WRONG" in outcome for each in clips.values() for outcome in each.values()))


if __name__ == "__main__":
    sys.exit(main())
