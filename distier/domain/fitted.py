"""What `fit` returns: for each module whether it is in the context window, whole or as its outline, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from .frozen import frozen
from .module import Module
from .order import Order

Form = Literal["whole", "outline", "none"]
Reason = Literal["missing", "too large", "outranked"]
Kept = Mapping[str, tuple[Form, Order | None]]
"""What `keep` names, by id: the forms, and the versions in an earlier result (None if ids were given)."""


@frozen
@dataclass(frozen=True, slots=True)
class Choice:
    """What `fit` chose for one module.

    `form` is `whole`, `outline` or `none` (left out), and `tokens` is what that takes of the budget. `whole_tokens` is the size
    of the whole module. `value` is the estimated probability that the module is needed next. `reason` says why it is not whole:
    `missing` (there is no such module), `too large` (it is larger than what `keep` and `required` leave of the budget) or
    `outranked` (others are worth more for their tokens); None if it is whole, or if `keep` says that it is an outline.
    """

    id: str
    form: Form
    tokens: int
    whole_tokens: int = 0
    value: float = 0.0
    reason: Reason | None = None
    version: Order | None = None
    outline: str | None = field(default=None, repr=False)
    module: Module | None = field(default=None, repr=False)

    @property
    def content(self) -> bytes:
        """The exact bytes of the module, or its outline as UTF-8; empty if it is left out."""
        if self.form == "outline":
            return (self.outline or "").encode()
        return b"" if self.module is None else self.module.content

    @property
    def text(self) -> str:
        """The same as text. Raises `UnicodeDecodeError` if it is not text."""
        return self.module.text if self.module is not None else self.content.decode()


def is_intact(choices: Sequence[Choice], kept: Kept) -> bool:
    """Return whether the first choices are what `kept` says, in form and version."""
    return all(
        version is None or (form, version) == (choice.form, choice.version)
        for choice, (form, version) in zip(choices, kept.values(), strict=False)
    )


@frozen
@dataclass(frozen=True, slots=True)
class Fitted:
    """The result of `fit`.

    `choices` has every module once: first those of `keep`, then `required`, then the others in the order of the ids that were
    given (for a prefix, in the order of the ids themselves). `tokens` is the sum over the chosen ones. `intact` is False if
    `keep` was an earlier result, and one of its modules has another version now: then the text of the prefix differs.
    """

    choices: tuple[Choice, ...]
    tokens: int
    budget_tokens: int
    intact: bool = True

    @property
    def chosen(self) -> tuple[Choice, ...]:
        """The modules that are in the window, whole or as outlines, in the order of `choices`."""
        return tuple(choice for choice in self.choices if choice.form != "none")

    @property
    def left_out(self) -> tuple[Choice, ...]:
        """The modules that are not in the window; `reason` says why."""
        return tuple(choice for choice in self.choices if choice.form == "none")

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of `chosen`."""
        return tuple(choice.id for choice in self.choices if choice.form != "none")

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def filled(self, modules: Mapping[str, Module | None], kept: Kept = MappingProxyType({})) -> Fitted | None:
        """Return the same with the contents of the whole modules. `kept` is what the call was asked to keep.

        A module may have changed since it was chosen. If one is gone, or all together are larger than the budget now, the
        result is None: choose again.
        """
        choices, total = [], 0
        for choice in self.choices:
            made = choice
            if choice.form == "whole":
                module = modules.get(choice.id)
                if module is None:
                    return None
                made = replace(
                    choice, module=module, tokens=module.tokens, whole_tokens=module.tokens, version=module.version
                )
            choices.append(made)
            total += made.tokens
        if total > self.budget_tokens:
            return None
        return replace(self, choices=tuple(choices), tokens=total, intact=is_intact(choices, kept))
