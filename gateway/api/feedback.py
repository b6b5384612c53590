"""`/v1/feedback`: scores, labels, corrections and preferences about stored completions."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator, Field

from gateway.api.routing import After, Fields, Limit, ListOf, Order, Project, Text, api_router
from gateway.feedback import Answer, Feedback, FeedbackStore, Judgement, Preference
from loraway.database import Database
from loraway.errors import InvalidRequest


class AnswerBody(Fields):
    """An assistant's answer."""

    role: Literal["assistant"] = "assistant"
    content: Text = Field(min_length=1, max_length=262_144)


def _with_role(given: object) -> object:
    return {"content": given} if isinstance(given, str) else given


#: An answer, or just its text.
AnswerOrText = Annotated[AnswerBody, BeforeValidator(_with_role, json_schema_input_type=str | AnswerBody)]


class PreferenceBody(Fields):
    """Of two answers to the same messages, the better and the worse."""

    preferred: AnswerOrText
    non_preferred: AnswerOrText


class FeedbackBody(Fields):
    """What is said about a completion: at least one of the fields besides its id."""

    completion_id: Text = Field(
        min_length=1, max_length=64, description="From the header `x-loraway-completion-id`, or the list."
    )
    score: float | None = Field(None, allow_inf_nan=False, description="How good; higher is better.")
    label: Text | None = Field(None, min_length=1, max_length=128, description="A word of your choice.")
    correction: AnswerOrText | None = Field(None, description="What it should have answered.")
    preference: PreferenceBody | None = None
    comment: Text | None = Field(None, min_length=1, max_length=8_192)


class AnswerObject(BaseModel):
    role: str
    content: str


class PreferenceObject(BaseModel):
    preferred: AnswerObject
    non_preferred: AnswerObject


class FeedbackObject(BaseModel):
    """Feedback as it is kept."""

    id: str
    object: Literal["feedback"] = "feedback"
    completion_id: str
    score: float | None
    label: str | None
    correction: AnswerObject | None
    preference: PreferenceObject | None
    comment: str | None
    created_at: int


class FeedbackRoutes:
    """The routes of feedback."""

    def __init__(self, database: Database) -> None:
        self._feedback = FeedbackStore(database)

    def router(self) -> APIRouter:
        router = api_router("Feedback")
        router.post("/v1/feedback")(self.create)
        router.get("/v1/feedback")(self.list_feedback)
        return router

    def create(self, project: Project, body: FeedbackBody) -> FeedbackObject:
        """Say how good a stored completion is, or what it should have been."""
        judgement = _judgement(body)
        if judgement.is_empty:
            raise InvalidRequest(
                "Give at least one of score, label, correction, preference and comment.", param="score"
            )
        return _object(self._feedback.add(project, body.completion_id, judgement))

    def list_feedback(
        self,
        project: Project,
        completion_id: Annotated[str | None, Query(max_length=64)] = None,
        label: Annotated[str | None, Query(max_length=128)] = None,
        after: After = None,
        limit: Limit = 20,
        order: Order = "desc",
    ) -> ListOf[FeedbackObject]:
        """The feedback, newest first unless `order=asc`."""
        page = self._feedback.list(
            project,
            completion_id=completion_id,
            label=label,
            after=after,
            limit=limit,
            is_ascending=order == "asc",
        )
        return ListOf.of([_object(item) for item in page.items], page.has_more)


def _judgement(body: FeedbackBody) -> Judgement:
    preference = body.preference
    return Judgement(
        score=body.score,
        label=body.label,
        correction=_answer(body.correction) if body.correction is not None else None,
        preference=Preference(_answer(preference.preferred), _answer(preference.non_preferred))
        if preference is not None
        else None,
        comment=body.comment,
    )


def _answer(given: AnswerBody) -> Answer:
    return Answer(given.content)


def _object(item: Feedback) -> FeedbackObject:
    judgement = item.judgement
    return FeedbackObject(
        id=item.feedback_id,
        completion_id=item.completion_id,
        score=judgement.score,
        label=judgement.label,
        correction=_answer_object(judgement.correction) if judgement.correction is not None else None,
        preference=PreferenceObject(
            preferred=_answer_object(judgement.preference.preferred),
            non_preferred=_answer_object(judgement.preference.non_preferred),
        )
        if judgement.preference is not None
        else None,
        comment=judgement.comment,
        created_at=int(item.created_at),
    )


def _answer_object(answer: Answer) -> AnswerObject:
    return AnswerObject(role=answer.role, content=answer.content)
