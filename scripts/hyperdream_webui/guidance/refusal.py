"""Guidance that cannot be given: an error in the picture's place, and in the answer of the host's API.

The hosts catch and print whatever a script raises, and draw on without it: the base alone, which nobody asked for. So
the refusal is left where the host must pass before it draws, and is raised there.
"""

from __future__ import annotations

from typing import Any

from hyperdream_core.errors import HyperDreamError

try:
    from starlette.exceptions import HTTPException
except ModuleNotFoundError:  # where there is no host, nor a server

    class HTTPException(Exception):  # type: ignore[no-redef]
        """What the hosts' servers answer with a status of its own."""


UNPROCESSABLE = 422


class GuidanceError(HTTPException):
    """What the page shows in the picture's place, and the API answers with status 422."""

    def __init__(self, error: HyperDreamError) -> None:
        detail = f"HyperDream guidance: {error}"
        super().__init__(UNPROCESSABLE, detail)
        self.status_code, self.detail = UNPROCESSABLE, detail

    def __str__(self) -> str:
        return self.detail


def refuse_job(p: Any, error: HyperDreamError) -> None:
    """Let a job of the host's end before it draws anything."""
    p.init = _raiser(error)


def refuse_sampling(p: Any, error: HyperDreamError) -> None:
    """Let a job end before the sampler runs that the host has made for it."""
    p.sampler.sample = p.sampler.sample_img2img = _raiser(error)


def _raiser(error: HyperDreamError) -> Any:
    def refuse(*values: Any, **named: Any) -> None:
        raise GuidanceError(error)

    return refuse
