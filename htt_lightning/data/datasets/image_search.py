"""Search for images to predict on, and warnings about files that are skipped."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from glob import has_magic
from os.path import commonpath
from pathlib import Path

from htt_lightning.data.masks.label_mask import natural_key
from htt_lightning.errors import ConfigError, missing_extra
from htt_lightning.io.file_names import FileFinder, glob_files, glob_other_suffixes, nfc, shorten
from htt_lightning.io.image_files import HEIF_SUFFIXES, has_heif, readable_suffixes

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "maps.json"
"""Description of the maps in a folder of predictions, by which such a folder is known."""


def find_images(root: str) -> dict[str, Path]:
    """Find the images of a path or pattern in natural order, by their path below it.

    Names have no suffix unless two differ in it alone. Hidden files and folders are skipped. Predictions of the library
    and files that cannot be read as images are skipped with a warning that counts and names them.
    """
    place = Path(root).expanduser()
    place = place if has_magic(str(place)) else FileFinder().find(place) or place
    if place.is_file():
        return {nfc(place.stem): place}
    if place.is_dir():
        base, found = place, [path for path in place.rglob("*") if not path.is_dir()]
        paths = [path for path in found if path.suffix.lower() in readable_suffixes()]
        others = [path for path in found if path.suffix.lower() not in readable_suffixes()]
    elif has_magic(str(place)):
        found, others = [Path(path) for path in glob_files(str(place))], [*map(Path, glob_other_suffixes(str(place)))]
        base = Path(commonpath([path.parent for path in found])) if found else place
        paths = [path for path in found if _is_heif(path) <= has_heif()]
        others += [path for path in found if _is_heif(path) > has_heif()]
    else:
        raise ConfigError(f"data.root must be an image, a folder, a pattern, a video or camera:0, got {root}.")
    relative, skipped = _split_predictions(_visible(paths, base), base)
    if skipped:
        logger.warning("Skipping %s: %s.", *_describe_predictions(skipped, base))
    _warn_of_others(_split_predictions(_visible(others, base), base)[0])
    if not relative:
        raise ConfigError(f"data.root {root} must contain images, got none.")
    relative.sort(key=lambda path: natural_key(nfc(str(path))))
    times = Counter(nfc(str(path.with_suffix(""))) for path in relative)
    names = [path if times[nfc(str(path.with_suffix("")))] > 1 else path.with_suffix("") for path in relative]
    return {nfc(name.as_posix()): base / path for name, path in zip(names, relative, strict=True)}


def _is_heif(path: Path) -> bool:
    return path.suffix.lower() in HEIF_SUFFIXES


def _visible(paths: Iterable[Path], base: Path) -> list[Path]:
    """Return paths relative to a folder, without hidden files and folders."""
    relative = [path.relative_to(base) for path in paths if path.is_relative_to(base)]
    return [path for path in relative if not any(part.startswith(".") for part in path.parts)]


def _split_predictions(paths: list[Path], base: Path) -> tuple[list[Path], list[Path]]:
    """Split relative paths into others and predictions: those in a folder of predictions, or beside their images."""
    parents = {parent for path in paths for parent in path.parents}
    outputs = {parent for parent in parents if (base / parent / DESCRIPTION_FILE).is_file()}
    endings = _endings(base / DESCRIPTION_FILE) if Path() in outputs else ()
    folders = outputs - {Path()}
    written = [path for path in paths if folders & {*path.parents} or (endings and path.name.endswith(endings))]
    return [path for path in paths if path not in set(written)], written


def _describe_predictions(written: list[Path], base: Path) -> tuple[str, str]:
    """Return kind and names of predictions for a message: folders, or files beside their images."""
    parents = {parent for path in written for parent in path.parents} - {Path()}
    folders = sorted(str(base / parent) for parent in parents if (base / parent / DESCRIPTION_FILE).is_file())
    if folders:
        return "folders of predictions", ", ".join(folders)
    return f"{len(written)} earlier predictions in {base}", shorten([*map(str, written)])


def _endings(description: Path) -> tuple[str, ...]:
    """Return the ends of the names of written pictures, from the description of the maps."""
    try:
        tasks = [*json.loads(description.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        tasks = []
    ends = (".png", "_view.png", ".npy")
    return ("_panel.png", "_panel.mp4", *(f"_{task}{end}" for task in tasks for end in ends))


def _warn_of_others(paths: list[Path]) -> None:
    names = [str(path) for path in paths if path.name != DESCRIPTION_FILE]
    if not names:
        return
    needs_heif = any(map(_is_heif, paths)) and not has_heif()
    hint = f" {missing_extra('Reading HEIC photographs needs pillow-heif', 'heic')}" if needs_heif else ""
    logger.warning("Skipping %s files that are not read as images: %s.%s", len(names), shorten(names), hint)
