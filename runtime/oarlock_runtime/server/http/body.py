"""From the bytes of a request's body to its fields, or to an error that names the field, its value and what is right.

Runs in the server processes. The common case is one call of msgspec (a few microseconds); only a body that this call
refuses is looked at again, as plain JSON, to say what is wrong with it or to pass over harmless values of refused
fields.
"""

import difflib
import re
from typing import Any, NoReturn, TypeVar

import msgspec

from oarlock_runtime.errors import RequestError
from oarlock_runtime.server.http.fields import REFUSED, ChatFields, CompletionFields, GenerationFields
from oarlock_runtime.server.json_document import CrowdedError, check_crowd

F = TypeVar("F", bound=GenerationFields)

_DECODERS: dict[type, Any] = {kind: msgspec.json.Decoder(kind) for kind in (CompletionFields, ChatFields)}
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")
_NAMED = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


def parse(body: bytes, kind: type[F]) -> F:
    """The fields in `body`; RequestError (400) when it is no JSON object of this kind."""
    try:
        check_crowd(body)
        fields: F = _DECODERS[kind].decode(body)
        return fields
    except CrowdedError as error:
        raise RequestError("", f"the body is not taken: {error}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        first = error
    document = _plain(body, first)
    _pass_over_harmless(document, kind)
    try:
        return msgspec.convert(document, kind, str_keys=True)
    except (msgspec.ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError) or isinstance(first, RecursionError):
            raise RequestError("", "the body is nested too deeply") from None
        _explain(str(error), document, kind)


def _plain(body: bytes, first: Exception) -> dict[str, Any]:
    if not body.strip():
        raise RequestError("", "the body is empty; it must be a JSON object")
    try:
        document = msgspec.json.decode(body)
    except RecursionError:
        raise RequestError("", "the body is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise RequestError(
            "", f"the body is not valid UTF-8: {error.reason} at byte {error.start} of a string"
        ) from None
    except msgspec.MsgspecError as error:
        # The typed attempt stopped at the same place, and knows it by its field's name.
        told = str(first) if str(first).startswith(str(error).partition(" - at ")[0]) else str(error)
        match = _PLACE.match(told.removeprefix("JSON is malformed: "))
        what, field = (match["what"], match["path"] or "") if match else (told, "")
        place = f" at {field}" if field else ""
        raise RequestError(field, f"the body is not valid JSON: {what.lower()}{place}", code="invalid_json") from None
    if not isinstance(document, dict):
        raise RequestError("", f"the body is {_told(document)}; it must be a JSON object")
    return document


def _pass_over_harmless(document: dict[str, Any], kind: type[GenerationFields]) -> None:
    """Removes refused fields with harmless values; RequestError for other values and for unknown fields."""
    known = kind.__struct_fields__
    for name in [name for name in document if name not in known]:
        value = document[name]
        if name in REFUSED:
            harmless, reason = REFUSED[name]
            if value is not None and not any(value == one and type(value) is type(one) for one in harmless):
                raise RequestError(name, f"{name} is not supported: {reason}", code="unsupported_parameter")
        elif value is not None or not _is_openai(name):
            near = difflib.get_close_matches(name, known, n=1)
            offer = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(_short(name), f"unknown field {_short(name)!r}{offer}", code="unknown_parameter")
        del document[name]


def _is_openai(name: str) -> bool:
    """Whether the field exists in the other of the two bodies; a null in it is harmless."""
    return name in ChatFields.__struct_fields__ or name in CompletionFields.__struct_fields__


def _explain(problem: str, document: dict[str, Any], kind: type[GenerationFields]) -> NoReturn:
    """Turns msgspec's sentence into one that shows the value."""
    match = _PLACE.match(problem)
    assert match is not None
    what, path = match["what"], match["path"] or ""
    named = _NAMED.match(what)
    if named:
        name = _short(f"{path}.{named[2]}" if path else named[2])
        if named[1] == "missing required":
            raise RequestError(name, f"{name} is missing")
        raise RequestError(name, f"unknown field {name!r}", code="unknown_parameter")
    field = path.replace("[...]", "")
    expected = _EXPECTED.match(what)
    if match["key"]:
        raise RequestError(field, f"the keys of {field} must be token ids, written as integers")
    if not expected:
        raise RequestError(field, f"{field or 'the body'}: {what[:1].lower()}{what[1:]}")
    kinds = [_WORDS.get(word.strip(), word.strip()) for word in expected[1].split("|") if word.strip() != "null"]
    value = f"{_told(_at(document, path))}" if "[...]" not in path else _WORDS.get(expected[2], expected[2])
    raise RequestError(field, f"{field} is {value}; it must be {' or '.join(kinds)}", code="invalid_type")


def _at(document: Any, path: str) -> Any:
    for name, index in _STEP.findall(path):
        document = document[name] if name else document[int(index)]
    return document


def _told(value: Any) -> str:
    """A value in a message: its kind, and itself when it is short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return f"the string {_short(value)!r}"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= 64 else text[:61] + "…"
