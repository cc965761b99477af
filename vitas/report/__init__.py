"""What a stage reports: lines, a bar, numbers, and to whom.

`stage.py` is what stages call. The numbers go to `metrics.py`, a CSV that is
always written, and to `loggers.py`, which the YAML chooses; `callbacks.py` is
code of installed packages that follows a run.
"""

from vitas.report.stage import Report, duration, shown_path

__all__ = ["Report", "duration", "shown_path"]
