"""`spec.model`: where the model comes from, and where its files are kept in the pods."""

import re
from typing import Annotated, Literal

from pydantic import Field

from oarlock_operator.api.model import ApiModel, Rule
from oarlock_operator.api.server import SecretKey
from oarlock_operator.api.types import Name, Quantity

Uri = Annotated[str, Field(min_length=1, max_length=2048)]

_SOURCE = r"^((hf|https?|paddle|pypi)://[^\s]+|/[^\s]*)$"
_SOURCE_FORMS = (
    "must be hf://org/name[@revision], paddle://org/name/variant, http(s)://…, pypi://package[==version][/file] or "
    "/a/path in the pod"
)


def is_source(text: str) -> bool:
    """Whether a model's files can be looked for there."""
    return re.match(_SOURCE, text) is not None


class Cache(ApiModel):
    """Where the model's files lie. By default each pod has a folder of its own that goes when the pod goes."""

    claim_name: Name | None = None
    """An existing PersistentVolumeClaim, shared by all pods. Files that are complete are not fetched again."""
    size: Quantity | None = None
    """Most that the model's files may take; the size of the claim, where one is made."""
    storage_class_name: Name | None = None
    """Makes a claim of `size` from this storage class, shared by all pods and removed with the ModelDeployment."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteMany"
    """How pods may mount the claim that is made. ReadWriteMany unless all pods run on one node."""
    rules = (
        Rule(
            "!has(self.claimName) || !has(self.storageClassName)",
            "model.cache: give claimName (a claim that exists) or storageClassName (a claim to make), not both",
            lambda s: s.claim_name is None or s.storage_class_name is None,
        ),
        Rule(
            "!has(self.storageClassName) || has(self.size)",
            "model.cache.size is needed with storageClassName: it is the size of the claim",
            lambda s: s.storage_class_name is None or s.size is not None,
        ),
    )


class Speculative(ApiModel):
    """Speculative decoding: a draft proposes tokens that the model checks several at a time."""

    method: Literal["inference_with_reference", "eagle", "mtp"]
    """How drafts are made (SPECULATE_METHOD)."""
    source: Uri | None = None
    """The draft model, in the forms of model.source. Needed by eagle and mtp (SPECULATE_MODEL_PATH)."""
    quantization: Literal["weight_only_int8", "weight_only_int4"] | None = None
    """How the draft's weights are held (SPECULATE_MODEL_QUANT_TYPE)."""
    max_draft_tokens: Annotated[int | None, Field(ge=1, le=5)] = None
    """Tokens proposed at a time (SPECULATE_MAX_DRAFT_TOKEN_NUM)."""
    max_ngram_size: Annotated[int | None, Field(ge=1, le=64)] = None
    """Longest n-gram looked for in the prompt (SPECULATE_MAX_NGRAM_SIZE)."""


class Model(ApiModel):
    """The model that is served."""

    source: Uri
    """Where it comes from: hf://org/name[@revision], paddle://org/name/variant (PaddleNLP's catalogue), http(s)://…,
    pypi://package[==version][/file], or /a/path in the pod (in the image or on a mounted claim)."""
    name: Annotated[str | None, Field(min_length=1, max_length=253)] = None
    """The name clients ask for. By default the ModelDeployment's own."""
    token_secret: SecretKey | None = None
    """Secret with the token that the source asks for (Hugging Face and its mirrors)."""
    cache: Cache = Field(default_factory=Cache)
    """Where its files are kept in the pod."""
    host_path: Annotated[str | None, Field(pattern=r"^/[^\s]*$", max_length=1024)] = None
    """A folder of the node to keep the files in. Refused unless the operator was started with --allow-host-path:
    who may write a node's folder can take over the node."""
    speculative: Speculative | None = None
    """Speculative decoding. Not available in this version: a spec that asks for it is refused."""
    rules = (
        Rule(f"self.source.matches(r'{_SOURCE}')", f"model.source {_SOURCE_FORMS}", lambda s: is_source(s.source)),
        Rule(
            "!has(self.hostPath) || (!has(self.cache.claimName) && !has(self.cache.storageClassName))",
            "model: give hostPath or a claim in model.cache, not both",
            lambda s: s.host_path is None or (s.cache.claim_name is None and s.cache.storage_class_name is None),
        ),
        Rule(
            "!has(self.speculative)",
            "model.speculative: speculative decoding is not available in this version: leave it out",
            lambda s: s.speculative is None,
        ),
    )
