"""Print the oldest version of every dependency that pyproject.toml allows, as constraints for pip.

``make test-minimum`` installs them by ``pip install -c`` and runs the core tests.
"""

import re
import tomllib
from pathlib import Path

EXTRAS = ("export", "hub", "report", "notebooks", "test")
"""Extras that the tests need."""


def minimum() -> list[str]:
    """Return lines ``name==version.*``: the first release of a version with its later fixes."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    found = (re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", line) for line in [*project["dependencies"], *extras])
    return [f"{match[1]}=={match[2]}.*" for match in found if match]


if __name__ == "__main__":
    print("\n".join(minimum()))
