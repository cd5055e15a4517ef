"""How loops over numbers are compiled: when first called, and kept on disk where a folder can be written to.

What is kept is known by the text of the loop's own file alone. So all that a loop calls lies in the same file, even if
twice; otherwise a change of it would go unnoticed, also by who installs a new version over an old one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["ANY_ORDER", "Loop", "compiled", "exact"]

ANY_ORDER = {"reassoc", "contract"}
"""Lets the terms of a sum be taken in any order, so that it can be vectorised; NaN and infinity keep their meaning."""


class Loop:
    """A function of arrays of numbers, compiled when it is first called, for the signatures it is declared with."""

    def __init__(self, function: Any, signatures: tuple[str, ...], options: dict[str, Any]) -> None:
        """`compiled` and `exact` make one."""
        self._function, self._signatures, self._options = function, list(signatures), options
        self._lock = threading.Lock()
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns. The GIL is released meanwhile."""
        if self._compiled is None:
            with self._lock:
                self._compiled = self._compiled or self._compile()
        return self._compiled(*arguments)

    def _compile(self) -> Any:
        from numba.core.caching import FunctionCache

        try:
            return self._jitted(cache=True)
        except Exception:  # noqa: BLE001 - no folder for the cache, a full disk, a damaged file in it: any error at all
            with suppress(Exception):
                FunctionCache(self._function).flush()  # what is damaged would be met again in every process
                return self._jitted(cache=True)
            return self._jitted()

    def _jitted(self, **options: Any) -> Any:
        import numba

        return numba.njit(self._signatures, nogil=True, **options, **self._options)(self._function)


def compiled(*signatures: str, **options: Any) -> Callable[[Any], Loop]:
    """Declare a loop with the argument types that it takes."""
    return lambda function: Loop(function, signatures, options)


def exact(signature: str) -> Callable[[Any], Loop]:
    """Declare a loop that gives the same bits on every processor.

    The compiler may do several elements at once, but may neither take a sum in another order nor fuse a product with
    the addition that follows: every rounding stands as it is written. So no fast mathematics is ever allowed here.
    """
    # Division as IEEE 754 has it: with Python's, which raises, no loop that divides is vectorised.
    return compiled(signature, error_model="numpy")
