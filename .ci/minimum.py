"""The lowest version of every dependency that pyproject.toml admits, as constraints for pip.

``pip install -c`` with what this prints, as ``make test-minimum`` does, shows whether the bounds hold.
"""

import re
import tomllib
from pathlib import Path

EXTRAS = ("export", "report", "notebooks", "test")
"""Those that the tests need."""


def minimum() -> list[str]:
    """Lines ``name==version.*``: the first release of a version, with what was mended in it since."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    found = (re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", line) for line in [*project["dependencies"], *extras])
    return [f"{match[1]}=={match[2]}.*" for match in found if match]


if __name__ == "__main__":
    print("\n".join(minimum()))
