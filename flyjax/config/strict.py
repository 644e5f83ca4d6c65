"""Sections that accept only the keys they declare, and report every other one in one line."""

from collections.abc import Iterator, Mapping
from typing import Any, Self, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from flyjax.utils.errors import UserError, nearest
from flyjax.utils.format import printable
from flyjax.utils.secrets import redact

MAX_SHOWN = 60  # characters of a value in a message


class SectionError(UserError):
    """What a section refuses: the dotted `key` ("" for the section as a whole) and the `problem` in one line."""

    def __init__(self, model: type[BaseModel], error: ValidationError):
        self.key, self.problem = one_line(model, error)
        super().__init__(f"{model.__name__}: {self.problem}")


class StrictModel(BaseModel):
    """A section of a config file: unknown keys, other types, infinities and NaN are a `UserError`, in one line."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise SectionError(type(self), error) from None

    # Sections inside a section are validated by pydantic as those of its own class, so that a path of keys is complete.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise SectionError(cls, error) from None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        """Keys of services are left out; NumPy's numbers are numbers, and 1e3 is a whole one; else types stay."""
        if not isinstance(data := redact(data), Mapping):
            return data
        out = {k: v.item() if isinstance(v, np.generic) else v for k, v in data.items()}
        for name, value in out.items():
            field = cls.model_fields.get(name)
            takes_int = field is not None and int in (field.annotation, *get_args(field.annotation))
            if takes_int and isinstance(value, float) and value.is_integer():
                out[name] = int(value)
        return out


def updated(section: StrictModel | type[StrictModel], changes: Mapping[str, Any], where: str) -> Any:
    """A section with changes, or one of its defaults and them.

    **Raises:** `ValueError` that names where they stand.
    """
    kind, values = (section, {}) if isinstance(section, type) else (type(section), dict(section))
    try:
        return kind.model_validate(values | dict(changes))
    except SectionError as error:
        raise ValueError(f"{where}{'.' if error.key else ': '}{error.problem}") from None


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone, in a list or by name."""
    if isinstance(annotation, type) and not get_origin(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((m for m in map(_model_of, get_args(annotation)) if m is not None), None)


def keys_of(model: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a section with those of the sections in it, dotted."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = _model_of(field.annotation)
        if inner is not None and field.annotation is inner:  # one section, not several by name
            yield from keys_of(inner, f"{prefix}{name}.")


def _shown(value: Any) -> str:
    try:
        return repr(value)[:MAX_SHOWN]
    except ValueError:  # an integer of more digits than Python prints
        return "an integer of thousands of digits"


def _bounds(field: FieldInfo) -> str:
    """The range of a field in words."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = {k: getattr(m, k, None) for m in field.metadata for k in words if getattr(m, k, None) is not None}
    return " and ".join(f"{words[k]} {v:g}" for k, v in limits.items())


def one_line(model: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """The first problem that pydantic found in data of a section: its dotted key, and a line that begins with it."""
    first = error.errors(include_url=False)[0]
    section: type[BaseModel] | None = model
    known: dict[str, FieldInfo] = {}
    field: FieldInfo | None = None
    for part in first["loc"]:
        known = section.model_fields if section is not None else {}
        if part in known:  # otherwise a place in a list, or a name
            field = known[str(part)]
            section = _model_of(field.annotation)
    where, kind = ".".join(map(str, first["loc"])).removesuffix(".[key]"), first["type"]
    message = first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        name = str(first["loc"][-1])
        elsewhere = {key.rpartition(".")[2]: key for key in keys_of(model)}
        hint = f" Did you mean {elsewhere[name]!r}?" if name in elsewhere else nearest(name, known)
        return where, printable(f"unknown key {where!r}.{hint or nearest(name, elsewhere)}")
    if field is not None and kind.startswith(("greater_than", "less_than")):
        message = f"out of range, {_bounds(field)}"
    value = first["input"]
    if kind == "literal_error" and field is not None:
        hint = nearest(value, [name for name in get_args(field.annotation) if isinstance(name, str)])
        message += f".{hint}" if hint else ""
    got = f" (got {_shown(value)})" if isinstance(value, (str, int, float, list, tuple)) else ""
    return where, printable(f"{where}: {message}{got}" if where and not message.startswith(where) else message)
