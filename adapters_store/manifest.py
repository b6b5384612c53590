"""What is known of a version for ever: where it comes from, what is in it, and how it must behave."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_NAME = "loraway.json"


class ReferenceGeneration(BaseModel):
    """A greedy answer of the trained adapter, computed by the trainer in the precision it is served in.

    The proof before a roll-out: the served adapter must give the same text and logprobs (natural log, one a
    token), and the base's logprobs of those tokens must differ as they do here.
    """

    model_config = ConfigDict(frozen=True)

    messages: list[dict[str, str]] = Field(description="The prompt, as chat messages.")
    text: str = Field(description="The greedy answer.")
    max_tokens: int = Field(description="Tokens asked for.")
    logprobs: list[float] = Field(description="Logprob of each answered token under the adapter.")
    base_logprobs: list[float] = Field(description="Logprob of the same tokens under the base model.")

    @property
    def largest_difference(self) -> float:
        """How far apart adapter and base are on these tokens."""
        return max((abs(a - b) for a, b in zip(self.logprobs, self.base_logprobs, strict=True)), default=0.0)


class Manifest(BaseModel):
    """Stored as `loraway.json` beside the weights and in the version's row."""

    model_config = ConfigDict(frozen=True)

    base_model: str
    base_revision: str = Field(description="Hash of the base model's config and weights' names and sizes.")
    template_sha256: str = Field(description="Hash of the chat template used in training.")
    rank: int
    alpha: int
    target_modules: list[str]
    files: dict[str, str] = Field(description="sha256 of each file of the version, by name.")
    created_at: float
    job_id: str | None = None
    dataset_id: str | None = None
    dataset_sha256: str | None = None
    method: str = "supervised"
    seed: int | None = None
    hyperparameters: dict[str, float | int | str | bool | None] = {}
    libraries: dict[str, str] = Field({}, description="Versions of the libraries that trained it.")
    metrics: dict[str, float] = Field({}, description="Held-out figures of base and version.")
    dtype: str = "float32"
    references: list[ReferenceGeneration] = []
