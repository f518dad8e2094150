"""The machine that obeys: all of a worker but the device. `README.md` has its rules."""

from cluster.desk.desk import Desk
from cluster.desk.words import DeskSettings, Drawn, Flight, GroupStep, Hypothesis

__all__ = ["Desk", "DeskSettings", "Drawn", "Flight", "GroupStep", "Hypothesis"]
