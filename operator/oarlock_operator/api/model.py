"""The base of every API type: camelCase on the wire, snake_case in Python, frozen, with rules that hold in both places.

A `Rule` is written once and checked twice: as CEL by the API server, and as Python where there is none (the local
runner, tests). Both give the same message.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Rule:
    """A condition over one object of the API. `check` is None for rules about a change, which only CEL can see."""

    cel: str
    message: str
    check: Callable[[Any], bool] | None = None


class ApiModel(BaseModel):
    """A part of the spec: unknown fields are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        for rule in self.rules:
            if rule.check is not None and not rule.check(self):
                raise ValueError(rule.message)
        return self

    def to_wire(self) -> dict[str, Any]:
        """As JSON-ready data under the wire's names, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """A part of the status: what a newer operator wrote there is skipped, not refused."""

    model_config = ConfigDict(extra="ignore")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The one API type inside an annotation such as `tuple[Group, ...]` or `Cache | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        if (found := model_in(part)) is not None:
            return found
    return None
