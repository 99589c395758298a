"""A whole ModelDeployment as read from a file or the API server, and the error of one that can't be understood."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from oarlock_operator.api.model import model_in
from oarlock_operator.api.names import API_VERSION, KIND
from oarlock_operator.api.spec import ModelDeploymentSpec
from oarlock_operator.api.status import ModelDeploymentStatus

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_LENGTH = 40
NAME_MESSAGE = (
    f"metadata.name must be at most {NAME_LENGTH} lower-case letters, digits and '-', beginning with a letter: "
    "names of pods and Services are made from it"
)


class SpecError(Exception):
    """The object can't be understood; the text names each field at fault and what would be right."""


@dataclass(frozen=True)
class ModelDeployment:
    """The parts of the object that decisions are made from."""

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    spec: ModelDeploymentSpec
    status: ModelDeploymentStatus
    deleting: bool
    finalizers: tuple[str, ...]
    annotations: Mapping[str, str]


def parse(body: Mapping[str, Any]) -> ModelDeployment:
    """Reads an object as JSON data. Raises SpecError."""
    if body.get("apiVersion") != API_VERSION or body.get("kind") != KIND:
        found = " ".join(str(body[key]) if body.get(key) else f"(no {key})" for key in ("apiVersion", "kind"))
        raise SpecError(f"apiVersion and kind must be {API_VERSION} {KIND}, not {found}")
    metadata = body.get("metadata") or {}
    name = metadata.get("name") or ""
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > NAME_LENGTH:
        raise SpecError(f"{NAME_MESSAGE}; it is {name!r}")
    return ModelDeployment(
        name=name,
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=int(metadata.get("generation") or 0),
        resource_version=metadata.get("resourceVersion") or "",
        spec=parse_spec(body.get("spec") or {}),
        status=parse_status(body.get("status")),
        deleting="deletionTimestamp" in metadata,
        finalizers=tuple(metadata.get("finalizers") or ()),
        annotations=dict(metadata.get("annotations") or {}),
    )


def parse_spec(data: Mapping[str, Any]) -> ModelDeploymentSpec:
    try:
        return ModelDeploymentSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError("; ".join(_sentence(detail) for detail in error.errors(include_url=False))) from None


def parse_status(data: Mapping[str, Any] | None) -> ModelDeploymentStatus:
    """The status we wrote, or an empty one when it is absent or damaged: it can be computed again from the pods."""
    try:
        return ModelDeploymentStatus.model_validate(data or {})
    except ValidationError:
        return ModelDeploymentStatus()


def _sentence(detail: Any) -> str:
    place = ".".join(str(part) for part in ("spec", *detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"{place}: there is no such field{_nearest(detail['loc'])}"
    text = str(detail["msg"]).removeprefix("Value error, ")
    given = detail.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{place}: {text}{shown}"


def _nearest(place: tuple[int | str, ...]) -> str:
    """The field that may be meant by the last part of `place`."""
    model: type[BaseModel] | None = ModelDeploymentSpec
    for part in place[:-1]:
        fields = {} if model is None else {info.alias: info for info in model.model_fields.values()}
        if isinstance(part, str) and part in fields:
            model = model_in(fields[part].annotation)
    known = [] if model is None else [info.alias or "" for info in model.model_fields.values()]
    close = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
