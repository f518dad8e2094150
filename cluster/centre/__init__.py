"""The deciding part: the scheduler and all that it owns. Pure, deterministic, numpy and the standard library only."""
