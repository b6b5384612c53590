"""What a client asks for: the body of `POST /v1/fine_tuning/jobs` (and `/v1/fine_tunes`), checked.

OpenAI's body, old form and new, with two widenings: `training_data.traffic` names logged completions instead
of an uploaded file, and there are more hyperparameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters_store.names import check_name
from finetune.trainers.spec import Hyperparameters, resolve_hyperparameters
from loraway.errors import InvalidRequest, UnknownHyperparameter

Auto = Literal["auto"]
Count = Annotated[int, Field(strict=True, ge=1)]
#: PostgreSQL's text cannot hold a NUL.
_NO_NUL = r"^[^\x00]*$"
Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64, pattern=_NO_NUL)],
        Annotated[str, Field(max_length=512, pattern=_NO_NUL)],
    ],
    Field(max_length=16),
]
FileIdText = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]

#: Fine-tuning methods a job may name.
METHODS = ("supervised",)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RequestedHyperparameters(_Strict):
    """As asked for: what is "auto" or left out is chosen from the number of examples.

    Names without a description here are those of `finetune.trainers.spec.Hyperparameters`.
    """

    n_epochs: Auto | Annotated[Count, Field(le=1000)] | None = None
    batch_size: Auto | Annotated[Count, Field(le=1024)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Scales the default learning rate."
    )
    learning_rate: Auto | Annotated[float, Field(gt=0, le=1)] | None = None
    lora_rank: Auto | Annotated[Count, Field(le=512)] | None = Field(
        None, validation_alias=AliasChoices("lora_rank", "rank")
    )
    lora_alpha: Auto | Annotated[Count, Field(le=4096)] | None = Field(
        None, validation_alias=AliasChoices("lora_alpha", "alpha")
    )
    lora_dropout: Auto | Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, validation_alias=AliasChoices("lora_dropout", "dropout")
    )
    weight_decay: Auto | Annotated[float, Field(ge=0, le=1)] | None = None
    warmup_ratio: Auto | Annotated[float, Field(ge=0, le=1)] | None = None
    train_on: Auto | Literal["last", "all"] | None = None
    retention: Auto | Annotated[float, Field(ge=0, le=100)] | None = None
    stop_at_loss: Auto | Annotated[float, Field(ge=0)] | None = None
    max_length: Auto | Annotated[Count, Field(ge=16)] | None = Field(
        None, description="Longest chat in tokens; longer ones are left out."
    )
    held_out_fraction: Auto | Annotated[float, Field(ge=0, le=0.5)] | None = Field(
        None, description="Part of the examples kept for evaluation."
    )
    seed: Auto | Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = None

    @model_validator(mode="after")
    def _has_one_learning_rate(self) -> Self:
        if self.learning_rate not in (None, "auto") and self.learning_rate_multiplier not in (None, "auto"):
            raise ValueError("give learning_rate or learning_rate_multiplier, not both")
        return self


class TrafficSelection(_Strict):
    """Which logged completions of the project to train on; every condition must hold."""

    metadata: Metadata = Field({}, description="Pairs that the completion's metadata must have.")
    model: str | None = Field(
        None, pattern=_NO_NUL, description="What the client asked for, or the base model."
    )
    after: float | None = Field(None, description="Logged at or after this time, seconds since the epoch.")
    before: float | None = Field(None, description="Logged before this time, seconds since the epoch.")
    min_score: float | None = Field(
        None, description="Least mean feedback score; corrected completions count regardless."
    )


class TrainingData(_Strict):
    """Where the examples come from when there is no file."""

    traffic: TrafficSelection


class JobRequest(_Strict):
    """A fine-tuning job as accepted. Made by `from_body`; stored with the job."""

    model: str = Field(min_length=1, max_length=64, pattern=_NO_NUL)
    suffix: str = Field("", max_length=64, validate_default=True)
    training_file: FileIdText | None = None
    validation_file: FileIdText | None = None
    training_data: TrainingData | None = None
    method: Literal["supervised"] = "supervised"
    hyperparameters: RequestedHyperparameters = RequestedHyperparameters()
    seed: int = Field(0, ge=0, le=2**31 - 1)
    metadata: Metadata = {}

    @classmethod
    def from_body(cls, body: Mapping[str, Any], *, max_lora_rank: int) -> JobRequest:
        """The request in this JSON body.

        Raises InvalidRequest with the field's place, or UnknownHyperparameter with the names that come near.
        """
        fields = {name: value for name, value in body.items() if value is not None}
        _refuse_integrations(fields.pop("integrations", None))
        method, hyperparameters, place = _method(fields)
        _refuse_unknown_hyperparameters(hyperparameters, place)
        fields["method"], fields["hyperparameters"] = method, hyperparameters
        try:
            request = cls.model_validate(fields)
        except ValidationError as error:
            raise _invalid(error, place) from error
        request = request._completed("seed" in fields)
        rank = request.hyperparameters.lora_rank
        if isinstance(rank, int) and rank > max_lora_rank:
            raise InvalidRequest(
                f"lora_rank is {rank}; the engines take at most {max_lora_rank} (engine.max_lora_rank).",
                param=f"{place}.lora_rank",
            )
        return request

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.training_file is None) == (self.training_data is None):
            raise ValueError("give either training_file or training_data.traffic")
        return self

    def _completed(self, has_seed: bool) -> JobRequest:
        """With a suffix, and with the hyperparameter `seed` where the field was not given."""
        chosen = self.hyperparameters.seed
        seed = chosen if isinstance(chosen, int) and not has_seed else self.seed
        suffix = check_name(self.suffix or _default_suffix(self.model), param="suffix")
        return self.model_copy(update={"suffix": suffix, "seed": seed})

    def resolve(self, example_count: int) -> Hyperparameters:
        """Concrete values for a training set of this size."""
        beside = {"seed", "max_length", "held_out_fraction"}
        return resolve_hyperparameters(self.hyperparameters.model_dump(exclude=beside), example_count)

    def held_out_fraction(self, default: float) -> float:
        """Part of the examples to keep for evaluation."""
        value = self.hyperparameters.held_out_fraction
        return value if isinstance(value, float) else default

    def max_length(self, default: int) -> int:
        """Longest chat in tokens, never above `default`, the engines' context length."""
        value = self.hyperparameters.max_length
        return min(value, default) if isinstance(value, int) else default


def _method(fields: dict[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    """Take method and hyperparameters, old form or new, out of the body; the place goes into errors."""
    old, method = fields.pop("hyperparameters", None), fields.pop("method", None)
    if method is None:
        return METHODS[0], _mapping(old, "hyperparameters"), "hyperparameters"
    method = _mapping(method, "method")
    name = method.get("type")
    if name not in METHODS:
        raise InvalidRequest(
            f"method.type is {str(name)[:40]!r}; supported methods: {', '.join(map(repr, METHODS))}.",
            param="method.type",
        )
    _refuse_unknown_fields(method, ("type", name), "method")
    options = _mapping(method.get(name), f"method.{name}")
    _refuse_unknown_fields(options, ("hyperparameters",), f"method.{name}")
    place = f"method.{name}.hyperparameters"
    new = _mapping(options.get("hyperparameters"), place)
    if old and new:
        raise InvalidRequest(f"Give {place} or hyperparameters (the older field), not both.", param=place)
    return (
        (name, new, place) if new or not old else (name, _mapping(old, "hyperparameters"), "hyperparameters")
    )


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{place} must be an object, not {type(value).__name__}.", param=place)
    return value


def _refuse_unknown_fields(given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for name in given:
        if name not in known:
            raise InvalidRequest(
                f"Unknown field {place}.{name[:64]}; known: {', '.join(known)}.", param=f"{place}.{name[:64]}"
            )


def _refuse_integrations(value: Any) -> None:
    if value:
        raise InvalidRequest("integrations are not supported; leave the field out.", param="integrations")


def _refuse_unknown_hyperparameters(given: Mapping[str, Any], place: str) -> None:
    fields = RequestedHyperparameters.model_fields
    known = [*fields, "rank", "alpha", "dropout"]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"Did you mean {', '.join(map(repr, near))}?" if near else f"Known: {', '.join(fields)}."
            raise UnknownHyperparameter(
                f"Unknown hyperparameter {name[:64]!r}. {hint}", param=f"{place}.{name[:64]}"
            )


def _invalid(error: ValidationError, place: str) -> InvalidRequest:
    """The first thing pydantic found, with its place as the client wrote it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # A union's branches show up in the location; they are no part of the client's body.
    branches = re.compile(r"literal\[|constrained|function-|int$|float$|str$")
    steps = [str(step) for step in first["loc"] if not branches.match(str(step))]
    param = ".".join(steps).replace("hyperparameters", place, 1) if steps else "training_file"
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "this field is required"
    elif first["type"] == "extra_forbidden":
        message = "unknown field"
    elif first["type"] == "literal_error" and steps[:1] == ["hyperparameters"]:
        others = [e["msg"] for e in error.errors() if e["loc"][:2] == first["loc"][:2]]
        message = " or ".join(dict.fromkeys(others))
    return InvalidRequest(f"{param}: {message}.", param=param)


def _default_suffix(model: str) -> str:
    name = re.sub(r"[^a-z0-9._-]", "-", model.lower())
    return f"ft-{name}"[:64]
