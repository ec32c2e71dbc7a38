"""Versions of the installed packages."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "lightning", "torchmetrics", "timm", "jsonargparse", "numpy", "albumentations", "wandb")
"""Packages whose versions a bug report should name."""


def package_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Return the versions of this library, Python and the main dependencies."""
    library = {"htt-lightning": version("htt-lightning")}
    library["python"] = f"{platform.python_version()} on {platform.platform()}"
    return library | {package: package_version(package) or "not installed" for package in PACKAGES}
