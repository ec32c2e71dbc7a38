"""A video that gets its name when it is complete."""

from pathlib import Path

import cv2
import numpy as np

from htt_lightning.errors import HTTError

CODEC = "mp4v"
"""MPEG-4, which OpenCV's own build encodes."""
MAX_FRACTIONAL_RATE = 600
"""Frames per second from which rates are whole: MPEG-4 stores them as a fraction of numbers below 65536."""


class VideoFile:
    """Write frames to an ``.mp4`` file, which is renamed when it is closed; its size is that of the first frame.

    Args:
        path: The file.
        fps: Frames per second.
        keep_partial: If true, the file is kept when the frames end early.

    Raises:
        HTTError: (from ``write`` and ``close``) the file cannot be written.
    """

    def __init__(self, path: Path, fps: float, keep_partial: bool = False) -> None:
        self.path, self.fps, self.keep_partial = path, fps, keep_partial
        self._partial = path.with_name(f".{path.stem}.partial.mp4")
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 RGB ``h w 3``; the codec needs even sides, so an odd row or column is cut."""
        height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*CODEC)
            rate = round(self.fps, 2 if self.fps < MAX_FRACTIONAL_RATE else 0)
            writer = cv2.VideoWriter(str(self._partial), code, rate, (width, height))
            if not writer.isOpened():
                raise HTTError(f"Cannot write {self.path}: OpenCV has no encoder for {CODEC} here, or no access.")
            self._writer = writer
        self._writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))

    def close(self, is_complete: bool = True) -> None:
        """Finish the file; delete it if frames are missing, unless it is kept then."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        try:
            if is_complete or self.keep_partial:
                self._partial.replace(self.path)
        except OSError as error:
            raise HTTError(f"Cannot write {self.path}: {error.strerror or error}.") from error
        finally:
            self._partial.unlink(missing_ok=True)
