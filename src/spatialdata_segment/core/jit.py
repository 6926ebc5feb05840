"""The decorator of every compiled kernel: releases the GIL, runs on one thread, is compiled once a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def kernel(function: F) -> F:
    """Compile a function with numba. Shards run in parallel, so that nothing inside of one does."""
    return cast("F", njit(nogil=True, cache=True)(function))
