"""How the loops of operations are compiled: so that they give the same bits on every processor.

The compiler may do several elements at once, but may neither take a sum in another order nor fuse a product with the
addition that follows: every rounding stands as it is written. So no option of fast mathematics is ever given here.

A loop is compiled when it is first called, and kept on disk where a folder can be written to. What is kept is known by
the text of the loop's own file alone, so nothing that is compiled calls another file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["ExactLoop", "exact"]


class ExactLoop:
    """A function of arrays of numbers, compiled when it is first called, for the one signature it is declared with."""

    def __init__(self, function: Any, signature: str) -> None:
        """`exact` makes one."""
        self._function, self._signature = function, signature
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

        # Division as IEEE 754 has it: with Python's, which raises, no loop that divides is vectorised.
        return numba.njit(self._signature, nogil=True, error_model="numpy", **options)(self._function)


def exact(signature: str) -> Callable[[Any], ExactLoop]:
    """Declare a loop with the types of its arguments."""
    return lambda function: ExactLoop(function, signature)
