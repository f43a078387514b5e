"""Does a model without outliers lose something? Seven tasks for any decoder, each with its chance level and an interval over inputs."""

from skerry.redesign.battery.battery import TASKS, Battery, check_tasks, compare, run_battery
from skerry.redesign.battery.compare import Difference
from skerry.redesign.battery.score import Place, Score

__all__ = ["TASKS", "Battery", "Difference", "Place", "Score", "check_tasks", "compare", "run_battery"]
