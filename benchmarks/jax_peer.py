"""JAX as a peer: `lax.scan` over the steps, the input's projection hoisted, compiled by XLA.

XLA's thread pool takes its size from NPROC when the CPU client is made, so the client is made anew
where the thread count changes.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Candidate, UnavailableError, Workload

__all__ = ["candidate"]

_client_threads: int | None = None


def _use_threads(threads: int) -> None:
    global _client_threads
    if _client_threads != threads:
        from jax.extend.backend import clear_backends

        os.environ["NPROC"] = str(threads)
        clear_backends()
        _client_threads = threads


def candidate(work: Workload) -> Candidate:
    """A compiled scan in float32; UnavailableError for other dtypes or without JAX."""
    if work.dtype != torch.float32:
        raise UnavailableError("compared in float32 only")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        raise UnavailableError(f"not installed ({error.name}); pip install jax") from None
    _use_threads(work.threads)

    hidden = work.case.H

    def forward(weights: Any, x: Any) -> Any:
        w_ih, w_hh, b_ih, b_hh = weights

        def step(state: Any, projected: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(projected + h @ w_hh.T, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x.shape[1], hidden), x.dtype)
        (h_n, c_n), y = jax.lax.scan(step, (zero, zero), x @ w_ih.T + (b_ih + b_hh))
        return y, (h_n, c_n)

    def train_weights(weights: Any, x: Any, dy: Any) -> Any:
        y, pull, state = jax.vjp(lambda w: forward(w, x), weights, has_aux=True)
        return y, state, pull(dy)[0]

    def train_all(weights: Any, x: Any, dy: Any) -> Any:
        y, pull, state = jax.vjp(forward, weights, x, has_aux=True)
        dweights, dx = pull(dy)
        return y, state, (*dweights, dx)

    weights = tuple(jnp.asarray(p.detach().numpy()) for p in work.module.parameters())
    arguments: tuple[Any, ...] = (weights, jnp.asarray(work.x.numpy()))
    function: Any = forward
    if work.training:
        arguments += (jnp.asarray(work.dy.numpy()),)
        function = train_all if work.mode == "training_dx" else train_weights
    compiled = jax.jit(function).lower(*arguments).compile()

    def call() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    def result() -> dict[str, Tensor]:
        import numpy as np

        y, (h_n, c_n), *gradients = call()
        found = {"y": y, "h_n": h_n[None], "c_n": c_n[None]}
        if gradients:
            names = ("dw_ih", "dw_hh", "db_ih", "db_hh", "dx")
            found |= dict(zip(names, gradients[0], strict=False))
        return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}

    return Candidate(call, result)
