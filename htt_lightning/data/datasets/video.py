"""Frames of a video file, read by OpenCV, upright as the camera was held."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from htt_lightning.errors import DataError, missing_file

VIDEO_SUFFIXES = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Suffixes of files that are read as videos."""

DEFAULT_FPS = 25.0
"""Frames per second of a video that states none."""


class VideoInfo(NamedTuple):
    """Name of a video without suffix, its frames per second, and the stated number of frames, 0 if unknown."""

    name: str
    fps: float
    frames: int


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def video_info(path: Path) -> VideoInfo:
    """Read what a video states about itself; raise ``DataError`` if OpenCV cannot open it."""
    video = _open(path)
    fps, frames = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
    video.release()
    return VideoInfo(path.stem, fps if 0 < fps < 1000 else DEFAULT_FPS, max(int(frames), 0))


def video_frames(path: Path) -> Iterator[np.ndarray]:
    """Iterate over the frames of a video in order, uint8 RGB ``h w 3``."""
    video, count = _open(path), 0
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
        raise _unreadable(path)


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise missing_file(path)
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise _unreadable(path)
    return video


def _unreadable(path: Path) -> DataError:
    return DataError(f"{path} is corrupt or no video that OpenCV reads. Copy it again, or convert it to .mp4.")
