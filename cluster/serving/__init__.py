"""The processes that answer: the scheduler and its streams, the operators' door, who is let in."""
