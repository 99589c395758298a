"""What a command is given: a YAML file with one ModelDeployment, or a model, for which one is made; fields are changed.

A change is written `server.maxSequences=8`: the path of a field of the spec, and its value as YAML.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from oarlock_operator.api.deployment import NAME_LENGTH, ModelDeployment, parse
from oarlock_operator.api.names import API_VERSION, KIND
from oarlock_operator.api.source import is_source


class DocumentError(Exception):
    """It can't be read, or holds no ModelDeployment."""


@dataclass(frozen=True)
class Document:
    """`target`: a file, `-` for standard input, or a model: an address as in model.source, a .gguf file, a folder."""

    target: str
    changes: tuple[str, ...] = ()

    @property
    def file(self) -> Path | None:
        """The file that can be read again when it changes."""
        return None if self.target == "-" or self._is_model else Path(self.target)

    @property
    def _is_model(self) -> bool:
        found = Path(self.target).expanduser()
        return "://" in self.target or found.suffix == ".gguf" or found.is_dir()

    def load(self) -> tuple[dict[str, Any], ModelDeployment]:
        """The ModelDeployment as data and parsed. Raises DocumentError, SpecError and OSError."""
        body = for_model(self.target) if self._is_model else self._read()
        for change in self.changes:
            _change(body, change)
        return body, parse(body)

    def _read(self) -> dict[str, Any]:
        try:
            text = sys.stdin.read() if self.target == "-" else Path(self.target).read_text(encoding="utf-8")
            found = [document for document in yaml.safe_load_all(text) if document]
        except UnicodeDecodeError:
            raise DocumentError(f"{self.target}: is no text; a YAML file with one ModelDeployment is needed") from None
        except yaml.YAMLError as error:
            raise DocumentError(f"{self.target}: {_one_line(error)}") from None
        if len(found) != 1 or not isinstance(found[0], dict):
            raise DocumentError(f"{self.target}: {len(found)} documents; one ModelDeployment is needed")
        return found[0]


def _one_line(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the excerpt."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def for_model(source: str) -> dict[str, Any]:
    """A ModelDeployment with nothing but a model; clients call it as its source does."""
    if "://" not in source:
        path = Path(source).expanduser().resolve()
        if not path.exists():
            raise DocumentError(f"{source}: there is no such file")
        source = str(path)
    elif not is_source(source):
        raise DocumentError(f"{source}: is no address of a model; it begins with hf://, paddle://, https:// or pypi://")
    scheme, _, rest = source.rpartition("://")
    address = re.split(r"[@?#]|==", rest.rstrip("/"))[0]
    # A variant alone, as in paddle://org/name/weight_only_int8, names no model.
    last = "-".join(address.split("/")[-2 if scheme == "paddle" else -1 :]).removesuffix(".gguf") or "model"
    name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
    name = name if name[:1].isalpha() else f"model-{name}"
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name[:NAME_LENGTH].strip("-")},
        "spec": {"model": {"source": source, "name": address if scheme in ("hf", "paddle") else last}},
    }


def _change(body: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    parts = path.removeprefix("spec.").split(".")
    if not equals or not all(parts):
        raise DocumentError(f"{change!r} is no change: write FIELD=VALUE, for example server.maxSequences=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DocumentError(f"{change!r}: the value is not YAML: {_one_line(error)}") from None
    place: Any = body
    for part in ("spec", *parts[:-1]):
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise DocumentError(f"{change!r}: spec.{path} lies inside a field that has no fields of its own")
    if value is None:
        place.pop(parts[-1], None)
    else:
        place[parts[-1]] = value
