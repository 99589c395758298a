"""Prints the packages of one extra in a pyproject.toml, for an image's build: requirements.py PYPROJECT EXTRA."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
print("\n".join([*project["dependencies"], *project["optional-dependencies"][sys.argv[2]]]))
