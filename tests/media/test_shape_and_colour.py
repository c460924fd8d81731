"""Shape, colour and loudness: what the film shows and lets hear is what the source does."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.media.clips import write_clip
from vsum_runtime.runtime.media.film import write_summary
from vsum_runtime.runtime.media.frames import read_frames
from vsum_runtime.runtime.media.picture import hdr_parameters
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0

BT709, BT2020, SMPTE170M, PQ, HLG = 1, 9, 6, 16, 18


def write_film(
    path: Path,
    pictures: list[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rate: int = 25,
    **context: Any,
) -> Path:
    """A film of pictures [H, W, 3], red, green, blue; `context` sets fields of the encoder."""
    with av.open(str(path), "w") as film:
        stream: Any = film.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.options = {"crf": "4", "preset": "ultrafast"} | (options or {}) if codec == "libx264" else options or {}
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            if "colorspace" in context:
                frame.colorspace = context["colorspace"]
            frame.pts, frame.time_base = index, Fraction(1, rate)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return path


def shown(path: Path) -> list[float]:
    """The colour of the middle of the first picture, red, green, blue, read as its label says."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.format.name, frame.color_range) == ("yuv420p", 1)
    red_weight, blue_weight = {BT709: (0.2126, 0.0722), SMPTE170M: (0.299, 0.114)}[int(frame.colorspace)]
    planes = frame.to_ndarray().astype(float)
    height, width = frame.height, frame.width
    luma = (planes[8 : height - 8, 8 : width - 8].mean() - 16) / 219
    blue, red = (planes[height:].reshape(2, height // 2, width // 2)[:, 4:-4, 4:-4].mean((1, 2)) - 128) / 224
    red, blue = luma + 2 * (1 - red_weight) * red, luma + 2 * (1 - blue_weight) * blue
    green = (luma - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return [255 * red, 255 * green, 255 * blue]


def disk(width: int, height: int, diameter: int) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    inside = np.hypot(columns - (width - 1) / 2, rows - (height - 1) / 2) < diameter / 2
    return np.repeat(np.where(inside, 235, 16).astype(np.uint8)[:, :, None], 3, axis=2)


def test_circles_stay_round_where_the_size_changes(tmp_path: Path) -> None:
    parts = [
        write_film(tmp_path / f"{width}.ts", [disk(width, height, 119)] * 6)
        for width, height in ((320, 180), (180, 320), (240, 180))
    ]
    path = tmp_path / "sizes.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    film = write_summary(path, [[0, 18]], tmp_path / "film.mp4")
    with av.open(str(film)) as container:
        pictures = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert {picture.shape for picture in pictures} == {(180, 320)}
    for number, diameter in ((2, 119), (8, 119 * 180 / 320), (14, 119)):
        bright = pictures[number] > 128
        width, height = bright.any(axis=0).sum(), bright.any(axis=1).sum()
        assert width == pytest.approx(height, rel=0.02)
        assert height == pytest.approx(diameter, rel=0.02)


def _set_display_width(path: Path, width: int) -> None:
    """Put DisplayWidth in the place of DisplayUnit, and take the byte it needs from the padding behind."""
    whole = path.read_bytes()
    unit, n_blocks, padding = b"\x54\xb2\x81\x04", b"\x55\xee\x81\x00", b"\xec\x01\0\0\0\0\0\0"
    at = whole.index(unit + n_blocks + padding + b"\x02\0\0")
    start = whole.rindex(b"\xe0\x8b", 0, at)
    video = b"\xe0\x8c" + whole[start + 2 : at] + b"\x54\xb0\x82" + width.to_bytes(2)
    end = at + len(unit + n_blocks + padding) + 3
    path.write_bytes(whole[:start] + video + n_blocks + padding + b"\x01\0" + whole[end:])


@pytest.mark.parametrize("name", ["source.mp4", "source.mkv"])
def test_the_container_says_the_shape_of_pixels(tmp_path: Path, name: str) -> None:
    options = {"x264-params": "sar=1/1"}  # what the codec says
    path = write_clip(tmp_path / name, 10, sound=None, shape=Fraction(3, 4), options=options)
    if path.suffix == ".mkv":  # whose writer is told by no stream of PyAV's
        _set_display_width(path, 192)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio) == (Fraction(3, 4), 1)
    with av.open(str(write_summary(path, [[2, 8]], tmp_path / "film.mp4"))) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 4)


def test_raw_dv_has_the_rate_of_its_pictures(tmp_path: Path) -> None:
    """Its container says 60,000 a second."""
    path, rate = tmp_path / "capture.dv", Fraction(30000, 1001)
    with av.open(str(path), "w", format="dv") as tape:
        video: Any = tape.add_stream("dvvideo", rate=rate)
        video.width, video.height, video.pix_fmt = 720, 480, "yuv411p"
        sound: Any = tape.add_stream("pcm_s16le", rate=48000)
        sound.layout = "stereo"
        n_samples = 0
        for number in range(30):
            picture = np.full((480, 720, 3), 8 * number, dtype=np.uint8)
            tape.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            while n_samples < 48000 * (number + 1) / rate:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="stereo")
                silence.sample_rate, silence.pts = 48000, n_samples
                n_samples += 800
                tape.mux(sound.encode(silence))
    with read_frames(path, EFFICIENTNET_LITE0) as reader:
        assert sum(len(block) for block in reader) == 2
    np.testing.assert_allclose(reader.frame_times_s, np.arange(31) / float(rate), atol=1e-4)
    write_summary(path, [[5, 25]], tmp_path / "film.mp4", frame_times_s=reader.frame_times_s)
    with av.open(str(tmp_path / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.average_rate, stream.frames) == (rate, 20)
        assert stream.codec_context.extradata[3] == 30  # the level of H.264, in tenths


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "context"),
    [
        ("source.mkv", "ffv1", "bgr0", {"colorspace": BT709}),
        ("source.mkv", "ffv1", "bgr0", {}),
        ("source.mkv", "libx264rgb", "rgb24", {"colorspace": 0}),
        ("source.mov", "png", "rgb24", {"colorspace": BT709}),
        ("source.mov", "qtrle", "rgb24", {}),
        ("source.gif", "gif", "rgb8", {}),
    ],
)
def test_colours_of_rgb_and_palettes_are_kept(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, context: dict[str, Any]
) -> None:
    colour = (182, 36, 85) if pix_fmt == "rgb8" else (200, 40, 60)
    picture = np.broadcast_to(np.array(colour, np.uint8), (48, 64, 3))
    options = {"qp": "0"} if codec == "libx264rgb" else {}
    source = write_film(
        tmp_path / name, [picture] * 5, codec=codec, pix_fmt=pix_fmt, options=options, rate=10, **context
    )
    film = write_summary(source, [[0, 5]], tmp_path / "film.mp4")
    np.testing.assert_allclose(shown(film), colour, atol=2)
    with read_frames(source, EFFICIENTNET_LITE0) as reader:
        seen = np.concatenate(list(reader))
    np.testing.assert_allclose(seen[0, 100, 100], colour, atol=2)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_stays_in_ten_bits_with_its_labels(tmp_path: Path, transfer: int) -> None:
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    parameters = f"log-level=none:hdr10=1:master-display={display}:max-cll=1000,400"
    labels = {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": transfer, "color_range": 1}
    picture = np.full((64, 64, 3), 120, np.uint8)
    source = write_film(
        tmp_path / "source.mp4",
        [picture] * 6,
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"preset": "ultrafast", "x265-params": parameters},
        **labels,
    )
    film = write_summary(source, [[1, 5]], tmp_path / "film.mp4")
    with av.open(str(film)) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == "yuv420p10le"
        assert (context.colorspace, context.color_primaries, context.color_trc) == (BT2020, BT2020, transfer)
        assert context.codec_tag == "hvc1"
        frame = next(container.decode(video=0))
        assert hdr_parameters(frame) == {"master-display": display, "max-cll": "1000,400"}
        level = frame.to_ndarray(format="gray").mean()
    with av.open(str(source)) as container:
        assert next(container.decode(video=0)).to_ndarray(format="gray").mean() == pytest.approx(level, abs=2)


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p"])
def test_interlaced_pictures_stay_so(tmp_path: Path, order: str, pix_fmt: str) -> None:
    comb = np.zeros((64, 64, 3), np.uint8)
    comb[::2], comb[1::2] = (60, 200, 60), (200, 60, 200)  # one colour in each field
    source = write_film(tmp_path / "source.mp4", [comb] * 6, pix_fmt=pix_fmt, options={"x264-params": f"{order}=1"})
    film = write_summary(source, [[1, 5]], tmp_path / "film.mp4")
    with av.open(str(film)) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    luma = frames[1].to_ndarray()[:64].astype(int)
    assert np.abs(luma[::2].mean() - luma[1::2].mean()) > 20
    if pix_fmt == "yuv422p":  # colour was mixed within a field: lines 0, 2 of one, lines 1, 3 of the other
        chroma = frames[1].to_ndarray()[64:].reshape(2, 32, 32).astype(int)
        assert np.abs(chroma[:, 8:-8:2].mean((1, 2)) - chroma[:, 9:-8:2].mean((1, 2))).min() > 30


@pytest.mark.parametrize("sample_format", ["s16", "fltp"])
@pytest.mark.parametrize(("layout", "channels"), [("4.0", 4), ("5.0", 5), ("6.1", 7), ("7.1", 8), ("quad", 4)])
def test_many_channels_become_two_no_louder_than_full_scale(
    tmp_path: Path, layout: str, channels: int, sample_format: str
) -> None:
    sine = np.sin(2 * np.pi * 440 * np.arange(48000) / 48000).astype(np.float32)
    packed = np.repeat(sine[:, None], channels, axis=1).reshape(1, -1)
    form, codec = ("flt", "pcm_f32le") if sample_format == "fltp" else ("s16", "pcm_s16le")
    samples = packed if form == "flt" else np.round(packed * 32767).astype(np.int16)
    path, film = write_clip(tmp_path / "silent.mkv", 30, sound=None), tmp_path / "loud.mkv"
    with av.open(str(path)) as source, av.open(str(film), "w") as loud:
        video = loud.add_stream_from_template(source.streams.video[0])
        audio = loud.add_stream(codec, rate=48000, layout=layout)
        for packet in source.demux():
            if packet.size:
                packet.stream = video
                loud.mux(packet)
        frame = av.AudioFrame.from_ndarray(samples, format=form, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        loud.mux([*audio.encode(frame), *audio.encode(None)])
    with av.open(str(write_summary(film, [[0, 30]], tmp_path / "film.mkv"))) as container:
        resampler = av.AudioResampler("fltp", "stereo", 48000)
        heard = [out.to_ndarray() for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        assert container.streams.audio[0].layout.name == "stereo"
    assert 0.5 < np.abs(np.concatenate(heard, axis=1)[:, 5000:-5000]).max() < 1.1
