"""The setting of an operation at which it changes as much as was asked for, found by measuring a few settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner.analysts.strengths import STRENGTHS, direction_of, numbers_of, with_numbers
from planner.operations import AnyOperation, Clamp, Noise, Normalize
from planner.profile import TensorProfile

__all__ = ["CLOSE", "Adjustable", "StrengthSearch", "can_be_mirrored"]

CLOSE = 0.01
"""A measured strength this near to the wanted one, relatively, ends the search."""
_MOST_MEASURED = 12
_LARGEST_STEP = 8.0
_IN_WEIGHTS = ("shift", "noise", "soft_threshold")
"""Kinds whose strength is in the units of the weights, in proportion to which they change a tensor."""
_SHRINKING = ("clamp", "spectral_clamp", "rank_reduce")
"""Kinds that change more where their number is smaller."""


def can_be_mirrored(operation: AnyOperation) -> bool:
    """Whether there is an operation of that kind which changes as much the other way.

    Of a factor f that is 2 - f, for f between 0 and 2; beyond, it would turn signs, which f does not.
    """
    strength = STRENGTHS.get(operation.kind)
    if isinstance(operation, Clamp):
        return (operation.minimum is None) != (operation.maximum is None)
    if strength is None or not strength.signed or direction_of(operation) in ((), (0,)):
        return False
    return strength.neutral == 0 or all(0 <= v <= 2 for values in numbers_of(operation).values() for v in values)


@dataclass(frozen=True)
class Adjustable:
    """One operation, meant for one tensor, brought to another, with a setting that makes it weaker or stronger."""

    operation: AnyOperation
    was: TensorProfile
    """The tensor it was meant for."""
    now: TensorProfile
    """The tensor it is brought to."""
    mirrored: bool = False
    """Whether it is to act the other way."""
    seed: int = 0
    """For noise."""

    @property
    def tunable(self) -> bool:
        """Whether there is a number to set."""
        return bool(numbers_of(self.operation))

    @property
    def grows(self) -> bool:
        """Whether a larger setting changes more."""
        return self.operation.kind not in _SHRINKING

    @property
    def start(self) -> float:
        """The setting to begin with: 1, or the ratio of the tensors' rms for what is in the units of the weights."""
        return _ratio(self.now.rms, self.was.rms) if self.operation.kind in _IN_WEIGHTS else 1.0

    def at(self, setting: float) -> AnyOperation:
        """The operation at a setting above 0; at 1 with the numbers it has. Raises ValueError where there is none."""
        sign = -1.0 if self.mirrored else 1.0
        numbers = numbers_of(self.operation)
        if isinstance(self.operation, Clamp):
            return self._clamp(sign * setting)
        if isinstance(self.operation, Noise):
            seeded = self.operation.model_copy(update={"seed": self.seed})
            return with_numbers(seeded, _mapped(numbers, lambda value: value * setting))
        if isinstance(self.operation, Normalize):
            was, now = (self._length(tensor) for tensor in (self.was, self.now))
            if not was or not now:
                return self.operation
            # What it changes is how far the ratio of the norms is from 1.
            return with_numbers(self.operation, _mapped(numbers, lambda v: now * (1 + (v / was - 1) * setting)))
        if self.operation.kind == "spectral_clamp":
            ratio = _ratio(self.now.l2_norm, self.was.l2_norm)
            return with_numbers(self.operation, _mapped(numbers, lambda value: value * ratio * setting))
        strength = STRENGTHS.get(self.operation.kind)
        if strength is not None and strength.neutral == 1:

            def factor(value: float) -> float:
                moved = 1 + sign * (value - 1) * setting
                return moved if value < 0 else max(0.0, moved)  # stronger than 0 would turn signs

            return with_numbers(self.operation, _mapped(numbers, factor))
        return with_numbers(self.operation, _mapped(numbers, lambda value: sign * value * setting))

    def _clamp(self, setting: float) -> AnyOperation:
        """Bounds as far from the mean as before, counted in standard deviations."""
        bounds = numbers_of(self.operation)
        was, now = self.was, self.now
        if was.mean is None or not was.std or now.mean is None or now.std is None:
            return self.operation
        mean, ratio, middle = was.mean, now.std / was.std, now.mean
        moved = _mapped(bounds, lambda bound: middle + setting * ratio * (bound - mean))
        names = {"minimum": "maximum", "maximum": "minimum"} if setting < 0 else {}
        found = {names.get(name, name): values for name, values in moved.items()}
        plain = {name: values[0] if len(values) == 1 else {"ramp": values} for name, values in found.items()}
        return Clamp.model_validate(plain)

    def _length(self, tensor: TensorProfile) -> float | None:
        """What `normalize` sets: the norm of the whole, or the typical norm of a row."""
        assert isinstance(self.operation, Normalize)
        if tensor.l2_norm is None or self.operation.per == "whole":
            return tensor.l2_norm
        rows = tensor.elements // max(tensor.shape[-1] if tensor.shape else 1, 1)
        return tensor.l2_norm / math.sqrt(max(rows, 1))


class StrengthSearch:
    """Asks for one setting after the other until what is measured there is what is wanted.

    Settings and strengths are compared by their logarithms, where most operations are nearly a straight line: first the
    line through one point with slope 1 (or -1), then, once there is a setting on either side, the line between the two,
    and every second time their middle, which ends on steps as well. The measured strength is taken to be monotone.
    """

    def __init__(self, wanted: float, *, start: float, grows: bool) -> None:
        self.setting = start
        """The next to measure."""
        self.done = False
        """Whether another measurement is of no use."""
        self._wanted, self._grows = wanted, grows
        self._weak: tuple[float, float] | None = None
        self._strong: tuple[float, float] | None = None
        self._measured = 0

    def tell(self, strength: float) -> None:
        """What was measured at `setting`: 0 or more, infinite where it has no bound."""
        self._measured += 1
        if self._measured >= _MOST_MEASURED or math.isclose(strength, self._wanted, rel_tol=CLOSE):
            self.done = True
            return
        if strength < self._wanted:
            self._weak = (self.setting, strength)
        else:
            self._strong = (self.setting, strength)
        following = self._following(strength)
        self.done = not 1e-9 < following < 1e9 or math.isclose(following, self.setting, rel_tol=1e-9)
        self.setting = following

    def _following(self, strength: float) -> float:
        if self._weak is None or self._strong is None:
            usable = 0 < strength < math.inf
            step = self._wanted / strength if usable else (_LARGEST_STEP if strength == 0 else 1 / _LARGEST_STEP)
            step = min(max(step, 1 / _LARGEST_STEP), _LARGEST_STEP)
            return self.setting * (step if self._grows else 1 / step)
        (low, weak), (high, strong) = self._weak, self._strong
        part = 0.5
        if weak > 0 and strong < math.inf and strong > weak and self._measured % 2 == 0:
            part = math.log(self._wanted / weak) / math.log(strong / weak)
        return math.exp((1 - part) * math.log(low) + part * math.log(high))


def _mapped(numbers: dict[str, tuple[float, ...]], function: Callable[[float], float]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(map(function, values)) for name, values in numbers.items()}


def _ratio(one: float | None, other: float | None) -> float:
    return one / other if one and other else 1.0
