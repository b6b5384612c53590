"""A stand-in for sgl_kernel, which has no wheel for CPUs: the names exist, and what is called here works.

SGLang imports this module in every process that touches tensors, before it builds any. So the one patch that
PyTorch needs lives here too: its LoRA code asks for pinned memory, which exists only where an accelerator is.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

__version__ = "0.0.0+cpu-stand-in"

_MAKERS_OF_TENSORS = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like")


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write each request's new KV cache places into its row of the request-to-token table, in place.

    `out_cache_loc` holds the places of all requests one after the other; request i gets the columns
    `start_offset[i]` to `end_offset[i]`. `pool_len` is the table's width, which PyTorch knows by itself.
    """
    taken = 0
    rows = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, end in rows:
        places = out_cache_loc[taken : taken + end - start]
        req_to_token[row, start:end] = places.to(req_to_token.dtype)
        taken += end - start


def ask_for_no_pinned_memory() -> None:
    """Make `pin_memory` a no-op in PyTorch's functions and on its tensors."""
    for name in _MAKERS_OF_TENSORS:
        setattr(torch, name, _without_pinning(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *arguments, **keywords: self


def _without_pinning(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def make_unpinned(*arguments: Any, **keywords: Any) -> Any:
        keywords.pop("pin_memory", None)
        return make(*arguments, **keywords)

    return make_unpinned


def __getattr__(name: str) -> Callable[..., Any]:
    """Any other kernel: may be imported, and says which one it is when it is called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def missing_kernel(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError(f"sgl_kernel.{name} has no implementation for this CPU")

    missing_kernel.__name__ = name
    return missing_kernel


if torch.accelerator.is_available():
    raise ImportError("This stand-in for sgl_kernel is for machines without a GPU: take it off PYTHONPATH.")
ask_for_no_pinned_memory()
