"""einops in models: its functions take proxies for tensors, and leave operators of torch."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache

from torch import fx


def accept_proxies() -> None:
    """Where a model's code has imported einops, what it does to a proxy is recorded."""
    if "einops" in sys.modules:
        with suppress(ImportError):  # another version of it
            _register()


@cache  # and kept: einops holds no class that nobody else does
def _register() -> type:
    from einops._backends import TorchBackend

    class ProxyBackend(TorchBackend):
        """Found by einops among the subclasses, by this name."""

        framework_name = "torch.fx"

        def is_appropriate_type(self, tensor: object) -> bool:
            return isinstance(tensor, fx.Proxy)

    return ProxyBackend
