"""Pictures as decoded -> pictures of a film: upright, of one even size, in YUV 4:2:0, and labelled as what they are.

- *Shape.* Pixels keep their shape, as the container states it, or else the codec. Where size or shape change midway,
  later pictures are scaled to fit the first one's size, with black bars, so that circles stay round.
  Crop marks of the container (PixelCrop of Matroska, clap of QuickTime) are not applied: PyAV does not give them.
- *Colour.* RGB and palette pictures become, and are labelled, SMPTE 170M, limited range; others keep their matrix.
  HDR (the transfers PQ and HLG) stays in 10 bits, never in 8 under an HDR label.
- *Fields.* Interlaced pictures stay interlaced, and flagged so, for the player to deinterlace. HEVC that is coded field
  by field decodes to pictures of half the height; they are shown so, with pixels twice as tall.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from vsum_runtime.runtime.errors import VideoError
from vsum_runtime.runtime.media.decode import Frame, Orientation, Stream
from vsum_runtime.runtime.media.rational import fraction

_log = logging.getLogger(__name__)

_SMPTE170M = 6  # FFmpeg's number of the standard-definition colour matrix
_HDR_TRANSFERS = (16, 18)  # FFmpeg's numbers of SMPTE 2084 (PQ) and ARIB STD-B67 (HLG)


class Fitter:
    """Pictures of one stream -> pictures of one film. What it makes is known with the first picture."""

    size: tuple[int, int]
    """Width and height, even."""
    pixel_shape: Fraction | None
    """Width of a pixel by its height; None where nothing is stated."""
    is_interlaced: bool
    color_range: int
    colorspace: int

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._reformatter = VideoReformatter()
        self._orientation = Orientation()
        self._graphs: tuple[Any, Graph | None] = (None, None)
        self._is_begun = False
        self.is_hdr = stream.codec_context.color_trc in _HDR_TRANSFERS

    def __call__(self, picture: Frame) -> Frame:
        turn = self._orientation(picture)
        if not self._is_begun:
            self.is_interlaced = self._is_interlaced(picture)
        shape = self._shape(picture, is_lying=turn[0])
        picture = self._in_420(picture)
        if not self._is_begun:
            width, height = (picture.height, picture.width) if turn[0] else (picture.width, picture.height)
            if min(width, height) < 2:
                raise VideoError(
                    f"video: expected pictures of at least 2x2 pixels, got {width}x{height}; scale it up first"
                )
            self.size = width // 2 * 2, height // (4 if self.is_interlaced else 2) * (4 if self.is_interlaced else 2)
            self.pixel_shape = shape
            self.color_range, self.colorspace = picture.color_range, picture.colorspace
            self._is_begun = True
        key = (picture.width, picture.height, picture.colorspace, picture.color_range, turn, shape)
        if key != self._graphs[0]:
            self._graphs = key, self._graph(picture, turn, shape)
        graph = self._graphs[1]
        if graph is None:
            return picture
        graph.vpush(picture)
        return graph.vpull()

    def _in_420(self, picture: Frame) -> Frame:
        source = picture.format
        if self.is_hdr:
            target = "yuv420p10le"
        elif source.name == "yuvj420p":
            target = "yuvj420p"
        else:
            target = "yuv420p"
        if source.is_rgb or source.has_palette:
            picture = self._reformatter.reformat(
                picture, format=target, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            picture.color_range, picture.colorspace = ColorRange.MPEG, _SMPTE170M
            return picture
        if self.is_interlaced and source.name != target:
            return self._field_by_field(picture, target)
        return self._reformatter.reformat(picture, format=target)

    def _field_by_field(self, picture: Frame, target: str) -> Frame:
        """Interlaced colour into 4:2:0, which mixes lines: of one field only."""
        graph = _graph(picture, [("scale", "interl=1"), ("format", target)])
        graph.vpush(picture)
        return graph.vpull()

    def _shape(self, picture: Frame, *, is_lying: bool) -> Fraction | None:
        """Width of a pixel by its height, as it is shown."""
        codec = self._stream.codec_context
        shape = fraction(self._stream.sample_aspect_ratio) or fraction(codec.sample_aspect_ratio)
        if codec.name == "hevc" and picture.interlaced_frame:
            shape = (shape or Fraction(1)) / 2
        return 1 / shape if shape is not None and is_lying else shape

    def _is_interlaced(self, picture: Frame) -> bool:
        if not picture.interlaced_frame:
            return False
        if self._stream.codec_context.name == "hevc":
            _log.warning("each picture is a single field, of half the height: coded field by field in HEVC")
            return False
        _log.info("interlaced pictures stay interlaced, flagged so")
        return True

    def _graph(self, picture: Frame, turn: tuple[bool, bool, bool], shape: Fraction | None) -> Graph | None:
        """What turns, crops and fits pictures like this one; None: nothing to do."""
        transpose, flip_rows, flip_columns = turn
        width, height = (picture.height, picture.width) if transpose else (picture.width, picture.height)
        steps = [("transpose", "dir=cclock_flip")] * transpose
        steps += [("vflip", "")] * flip_rows + [("hflip", "")] * flip_columns
        full_width, full_height = self.size
        if (width, height) != self.size or shape != self.pixel_shape:
            if 0 <= width - full_width < 2 and 0 <= height - full_height < 4 and shape == self.pixel_shape:
                steps.append(("crop", f"{full_width}:{full_height}:0:0"))
            else:
                aspect = width * (shape or 1) / (height * (self.pixel_shape or Fraction(1)))
                inner_width = min(full_width, round(full_height * aspect / 2) * 2)
                inner_height = min(full_height, round(full_width / aspect / 2) * 2)
                inner = f"{max(2, inner_width)}:{max(2, inner_height)}"
                steps += [("scale", inner), ("pad", f"{full_width}:{full_height}:-1:-1")]
        return _graph(picture, steps) if steps else None


def _graph(picture: Frame, steps: list[tuple[str, str]]) -> Graph:
    graph = Graph()
    source = graph.add(
        "buffer",
        f"video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:time_base={picture.time_base}"
        f":colorspace={int(picture.colorspace)}:range={int(picture.color_range)}",
    )
    graph.link_nodes(source, *(graph.add(*step) for step in steps), graph.add("buffersink")).configure()
    return graph


def hdr_parameters(picture: Frame) -> dict[str, str]:
    """What a decoded picture says of the display it was made for, in the words of x265; empty where it says nothing.

    Both structures are FFmpeg's: chromaticities of red, green, blue and white, least and greatest luminance as
    fractions of two 32-bit integers; and two integers.
    """
    found = {}
    display = picture.side_data.get(SideDataType.MASTERING_DISPLAY_METADATA)
    if display is not None:
        numbers = np.frombuffer(bytes(display), dtype=np.int32)
        if numbers[20] and numbers[21]:
            pairs = numbers[:20].reshape(10, 2).astype(np.float64)
            values = pairs[:, 0] / np.maximum(pairs[:, 1], 1)
            red, green, blue, white = (np.rint(values[:8].reshape(4, 2) * 50000).astype(int)).tolist()
            least, greatest = np.rint(values[8:] * 10000).astype(int).tolist()
            colours = "".join(
                f"{name}({x},{y})"
                for name, (x, y) in zip(("G", "B", "R", "WP"), (green, blue, red, white), strict=True)
            )
            found["master-display"] = f"{colours}L({greatest},{least})"
    light = picture.side_data.get(SideDataType.CONTENT_LIGHT_LEVEL)
    if light is not None:
        most, mean = np.frombuffer(bytes(light), dtype=np.uint32)[:2].tolist()
        found["max-cll"] = f"{most},{mean}"
    return found
