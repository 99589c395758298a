"""Types of single fields that several parts of the spec share."""

from typing import Annotated

from pydantic import Field

from oarlock_operator.api.quantity import PATTERN

Name = Annotated[str, Field(min_length=1, max_length=253)]
Quantity = Annotated[str, Field(pattern=PATTERN, max_length=20)]
IntOrQuantity = Annotated[
    Quantity | Annotated[int, Field(ge=0)], Field(json_schema_extra={"x-kubernetes-int-or-string": True})
]
Seconds = Annotated[int, Field(ge=1, le=86400)]
