"""The call `fit` of both stores, and the checks of its arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, cast

from distier.client.arguments import check_ids
from distier.domain.fitted import Fitted, Kept
from distier.domain.module import Module
from distier.effects import Plan
from distier.errors import Conflict, Invalid
from distier.plans.common.namespace import Namespace
from distier.plans.get.fit import NONE, Asked
from distier.plans.get.fit import fit as fit_plan

ATTEMPTS_MAX = 5
"""How often modules are chosen again because they changed between the choice and the read."""


class _Reader(Protocol):
    space: Namespace

    def run(self, plan: Plan[Fitted], /) -> Fitted: ...

    def get_many(self, ids: Iterable[str], /) -> dict[str, Module | None]: ...


class _AsyncReader(Protocol):
    space: Namespace

    async def run(self, plan: Plan[Fitted], /) -> Fitted: ...

    async def get_many(self, ids: Iterable[str], /) -> dict[str, Module | None]: ...


class Fitting:
    """The methods of `Store` that choose modules for a context window."""

    def fit(
        self, ids: str | Iterable[str], budget_tokens: int, *, required: Iterable[str] = (),
        keep: Iterable[str] | Fitted = (), predicted: Mapping[str, float] = NONE,
    ) -> Fitted:  # fmt: skip
        """Read the modules with the most value that fit into a context window.

        The value of a module is the estimated probability that it is needed next, from its uses, the time since the last one,
        and `predicted`. A module that does not fit whole is taken as its outline, if it has one (see the setting `outline`) and
        the outline fits. Nothing is shortened otherwise. Only chosen modules that are whole count as used.

        Args:
            ids: The ids of the candidates. A str is a prefix: all modules whose ids begin with it, at most 10,000.
            budget_tokens: The maximum sum of tokens.
            required: Ids of modules that must be in the window: whole if all of them fit, otherwise some as outlines.
            keep: What the window begins with and what must not change, so that a provider's prompt cache stays valid: an
                earlier result, whose chosen modules keep their order and forms, or ids of whole modules.
            predicted: The probability that a module is needed next, from 0 to 1, by id, where something predicts it.

        Returns:
            What becomes of each module, with the contents of those that were chosen.

        Raises:
            Invalid: `budget_tokens` is negative, `keep` and `required` alone exceed it, or the prefix has too many modules.
            NotFound: a module of `keep` or `required` does not exist. A candidate that does not exist is left out as `missing`.
            Conflict: modules changed during every attempt.
        """
        store, asked = cast(_Reader, self), check_asked(ids, budget_tokens, required, keep, predicted)
        for _ in range(ATTEMPTS_MAX):
            chosen = store.run(fit_plan(store.space, asked))
            fitted = chosen.filled(store.get_many(whole_ids(chosen)), asked.kept)
            if fitted is not None:
                return fitted
        raise changing()


class AsyncFitting:
    """The same for `AsyncStore`."""

    async def fit(
        self, ids: str | Iterable[str], budget_tokens: int, *, required: Iterable[str] = (),
        keep: Iterable[str] | Fitted = (), predicted: Mapping[str, float] = NONE,
    ) -> Fitted:  # fmt: skip
        """As `Store.fit`."""
        store, asked = cast(_AsyncReader, self), check_asked(ids, budget_tokens, required, keep, predicted)
        for _ in range(ATTEMPTS_MAX):
            chosen = await store.run(fit_plan(store.space, asked))
            fitted = chosen.filled(await store.get_many(whole_ids(chosen)), asked.kept)
            if fitted is not None:
                return fitted
        raise changing()


def check_asked(
    ids: str | Iterable[str], budget_tokens: int, required: Iterable[str], keep: Iterable[str] | Fitted,
    predicted: Mapping[str, float] = NONE,
) -> Asked:  # fmt: skip
    """Return the arguments of `fit` as the plan takes them. Raises `Invalid`."""
    if isinstance(budget_tokens, bool) or not isinstance(budget_tokens, int) or budget_tokens < 0:
        raise Invalid(f"budget_tokens must be a whole number from 0, not {budget_tokens!r}")
    kept: Kept
    if isinstance(keep, Fitted):
        kept = {choice.id: (choice.form, choice.version) for choice in keep.chosen}
    else:
        kept = dict.fromkeys(check_ids(keep), ("whole", None))
    wanted = ids if isinstance(ids, str) else tuple(check_ids(ids))
    for id, probability in predicted.items():
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
            raise Invalid(f"predicted[{id!r}] must be a number from 0 to 1, not {probability!r}")
    return Asked(wanted, budget_tokens, tuple(check_ids(required)), kept, predicted)


def whole_ids(fitted: Fitted) -> list[str]:
    """Return the ids of the modules whose contents are needed."""
    return [choice.id for choice in fitted.choices if choice.form == "whole"]


def changing() -> Conflict:
    """Return the error for modules that do not stay as they were chosen."""
    return Conflict(f"modules changed or were deleted during each of {ATTEMPTS_MAX} attempts to fit them; try again")
