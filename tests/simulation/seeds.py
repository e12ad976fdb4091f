"""One seed, one history."""

from __future__ import annotations

from tests.databases import NewDatabase

from .world import Report, World

STEPS = 100


class SimulationFailed(AssertionError):  # noqa: N818 - it is what the simulation did
    """A history in which something was not as it must be; the message says how to live it again."""


def run_seed(seed: int, steps: int, new_database: NewDatabase, database: str) -> Report:
    """Live one history on a database of its own. database: its kind, for the message. Raises SimulationFailed."""
    with new_database() as url:
        world = World(seed, url)
        try:
            return world.run(steps)
        except Exception as error:
            again = f"python -m tests.simulation --seeds {seed} --steps {steps} --database {database}"
            raise SimulationFailed(f"seed {seed} failed after {world.step} steps; again: {again}\n{error}") from error
        finally:
            world.close()
