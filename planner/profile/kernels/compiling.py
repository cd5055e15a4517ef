"""How the kernels are compiled: when first called, and kept on disk where a folder can be written to.

What is kept is known by the text of the kernel's own file alone. So all that a kernel calls lies in the same file, even
if twice; otherwise a change of it would go unnoticed, also by who installs a new version over an old one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba

__all__ = ["ANY_ORDER", "Kernel", "compiled"]

ANY_ORDER = {"reassoc", "contract"}
"""Lets the terms of a sum be taken in any order, so that it can be vectorised; NaN and infinity keep their meaning."""


class Kernel:
    """A function compiled when it is first called, for the signatures it is declared with."""

    def __init__(self, function: Any, signatures: tuple[str, ...], options: dict[str, Any]) -> None:
        self._function, self._signatures, self._options = function, list(signatures), options
        self._lock = threading.Lock()
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            with self._lock:
                self._compiled = self._compiled or self._compile()
        return self._compiled(*arguments)

    def _compile(self) -> Any:
        try:
            return numba.njit(self._signatures, nogil=True, cache=True, **self._options)(self._function)
        except Exception:  # noqa: BLE001 - no folder for the cache, a full disk, a damaged file in it: any error at all
            return numba.njit(self._signatures, nogil=True, **self._options)(self._function)


def compiled(*signatures: str, **options: Any) -> Callable[[Any], Kernel]:
    """Declare a kernel with the argument types that it takes."""
    return lambda function: Kernel(function, signatures, options)
