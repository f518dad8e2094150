"""`ray start` without Ray's client server: a port at which whoever reaches it has code run, and for which `ray start`
has no switch. Run as a module by `ray_head.py`, with the words of `ray start`.
"""

from __future__ import annotations

from typing import Any


def main() -> None:
    from ray.scripts import scripts

    commands: Any = scripts
    # It starts that server wherever what it needs is installed, which `ray start` asks this function.
    commands.get_ray_client_dependency_error = lambda: "left out"
    commands.main()


if __name__ == "__main__":
    main()
