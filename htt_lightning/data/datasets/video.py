"""Frames of a video file or a camera, read by OpenCV; those of a file upright as the camera was held."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from htt_lightning.errors import ConfigError, DataError, missing_file

VIDEO_SUFFIXES = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Suffixes of files that are read as videos."""

CAMERA = "camera:"
"""Prefix of the number by which OpenCV knows a camera, such as ``camera:0``."""

DEFAULT_FPS = 25.0
"""Frames per second of a video that states none."""


class VideoInfo(NamedTuple):
    """Describe a video or camera.

    Attributes:
        name: Name of the file without suffix, or ``camera_0``.
        fps: Frames per second, as stated.
        frames: Stated number of frames; 0 if unknown.
        is_camera: Whether frames come until the reader ends.
    """

    name: str
    fps: float
    frames: int
    is_camera: bool = False


def is_video(source: str) -> bool:
    """Return whether a source is a camera, or a file with the suffix of a video."""
    return source.startswith(CAMERA) or (Path(source).suffix.lower() in VIDEO_SUFFIXES and _path(source).is_file())


def video_info(source: str) -> VideoInfo:
    """Read what a video or camera states about itself.

    Raises:
        DataError: OpenCV cannot open the video.
        ConfigError: OpenCV cannot open the camera.
    """
    video, is_camera = _open(source), source.startswith(CAMERA)
    fps, frames = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
    video.release()
    name = source.replace(":", "_") if is_camera else Path(source).stem
    return VideoInfo(name, fps if 0 < fps < 1000 else DEFAULT_FPS, 0 if is_camera else max(int(frames), 0), is_camera)


def video_frames(source: str) -> Iterator[np.ndarray]:
    """Iterate over the frames of a video or camera in order, uint8 RGB ``h w 3``."""
    video, count = _open(source), 0
    try:
        while True:
            is_frame, pixels = video.read()
            if not is_frame:
                break
            count += 1
            yield cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    finally:
        video.release()
    if not count:
        raise _unreadable(source)


def _path(source: str) -> Path:
    return Path(source).expanduser()


def _open(source: str) -> cv2.VideoCapture:
    if source.startswith(CAMERA):
        number = source.removeprefix(CAMERA)
        if not number.isdecimal():
            raise ConfigError(f"data.root must be {CAMERA} and the number of a camera, got {source}. Try {CAMERA}0.")
        video = cv2.VideoCapture(int(number))
    elif not _path(source).is_file():
        raise missing_file(_path(source))
    else:
        video = cv2.VideoCapture(str(_path(source)))
    if not video.isOpened():
        raise _unreadable(source)
    return video


def _unreadable(source: str) -> DataError | ConfigError:
    if source.startswith(CAMERA):
        rule = "a connected camera that this user may read and no other program uses"
        return ConfigError(f"data.root must be {rule}, got {source}. Try another number, or a video file.")
    return DataError(f"{source} is corrupt or no video that OpenCV reads. Copy it again, or convert it to .mp4.")
