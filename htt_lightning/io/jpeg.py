"""Damage inside JPEG files, which decoders hide.

What cannot be decoded is made up, and libjpeg says so on standard error alone; Pillow not even there. So the files are
decoded once more, by a process of its own whose standard error is read here: nothing that this process or one of its
threads writes is touched. A change that leaves a valid stream of the same length, such as many a flipped bit, cannot be
noticed: the format has no checksum.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from typing import IO

from htt_lightning.errors import HTTError

START = b"\xff\xd8\xff"
"""What JPEG files begin with."""

HARM = re.compile(rb"(Corrupt JPEG data|Premature end|Inconsistent progression).*")
"""Libjpeg's warnings that pixels are lost."""

# An eighth of the size spares most of the work but reads the whole stream. Zero bytes end what was said about a file.
READ = r"""
import os, sys
import cv2, numpy
for name in sys.stdin.buffer.read().split(b"\0"):
    try:
        content = open(os.fsdecode(name), "rb").read()
        cv2.imdecode(numpy.frombuffer(content, numpy.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        if content.rfind(b"\xff\xd9") < content.find(b"\xff\xda"):  # no end of the image after its start
            os.write(2, b"Premature end of JPEG file")
    except (OSError, cv2.error):
        pass  # whoever reads the image will say so
    os.write(2, b"\0")
"""


def is_jpeg(path: Path) -> bool:
    """Whether a file begins as JPEG files do, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(len(START)) == START
    except OSError:
        return False


def damage(paths: Sequence[Path]) -> Iterator[str]:
    """What is wrong inside each of some JPEG files, in their order; empty where nothing is noticed.

    Raises:
        HTTError: A file ended the process that reads them.
    """
    if not paths:
        return
    with TemporaryFile() as names:
        names.write(b"\0".join(os.fsencode(path) for path in paths))
        names.seek(0)
        command, quiet = [sys.executable, "-P", "-c", READ], {**os.environ, "OPENCV_LOG_LEVEL": "SILENT"}
        with Popen(command, stdin=names, stderr=PIPE, env=quiet) as process:
            assert process.stderr
            said = _said(process.stderr)
            for path in paths:
                if (text := next(said, None)) is None:
                    raise HTTError(f"{path} cannot be decoded: the process that tried has ended; copy it again")
                found = HARM.search(text)
                yield found[0].decode(errors="replace").strip() if found else ""


def _said(stream: IO[bytes]) -> Iterator[bytes]:
    """What is written to a stream, up to each zero byte."""
    rest = b""
    while part := os.read(stream.fileno(), 1 << 16):
        *whole, rest = (rest + part).split(b"\0")
        yield from whole
