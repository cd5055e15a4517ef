"""Which analyst the user wants, and how it is asked."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from planner.analysts.settings import Asking

__all__ = ["AnalystChoice"]


class AnalystChoice(Asking):
    """Who writes the plan, and how a language model is asked."""

    kind: Literal["rules", "llm", "random"] = "rules"
    """rules: the built-in ones, from the profile alone or from evidence. llm: a language model. random: the control,
    which changes other tensors as strongly as a given plan does."""
    llm: tuple[str, ...] = ()
    """The language models: NAME, or PROVIDER/NAME. Of several, the plans are merged."""
    base_url: str | None = None
    """An OpenAI-compatible endpoint; its key comes from the environment."""
    samples: int = Field(default=1, ge=1, le=32)
    """How often each model is asked; of several plans, one is merged."""
    cache: bool = True
    """Whether an answer that was given to the same request before is taken again."""
    like: str | None = None
    """For random: the plan whose operations and strengths it is to have."""

    @field_validator("llm", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        return () if value is None else (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kind == "llm" and not (self.llm and all(self.llm)):
            raise ValueError("no language model is named: say llm = NAME or PROVIDER/NAME")
        if self.kind != "llm" and (self.llm or self.base_url):
            raise ValueError(f"a language model is named, but the analyst is `{self.kind}`")
        if (self.kind == "random") != (self.like is not None):
            raise ValueError("`random` and `like` go together: the plan whose strengths are drawn at random")
        return self

    def asking(self, sample: int) -> Asking:
        """How one of the samples is asked for."""
        return Asking(**{name: getattr(self, name) for name in Asking.model_fields} | {"sample": sample})
