from __future__ import annotations

from hypothesis import settings

# The same examples every time, so that a red run is red again; and no time limit, which a busy machine would break.
settings.register_profile("hyperdream", derandomize=True, deadline=None, database=None)
settings.load_profile("hyperdream")
