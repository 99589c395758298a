"""Prints the packages of extras in a pyproject.toml, for an image's build: requirements.py PYPROJECT EXTRA…"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
wanted = [package for extra in sys.argv[2:] for package in project["optional-dependencies"][extra]]
print("\n".join([*project["dependencies"], *wanted]))
