"""Writing the page anew at a stage's end, beside the program and not in it.

A process of its own, of low priority: it holds no lock, no rank waits for it, and whatever becomes of it the stage is
done. `python -m vitas.report_page.refresh SAVE_PATH` is that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from vitas.errors import UserError

# Set to 0, stages write no page.
VARIABLE = "VITAS_REPORT"
# The most that a program waits for its page at its end, and a stage for that of the one before.
PATIENCE = 60.0


class PageRefresh:
    """Refreshes a run's page. save_path: the run's folder."""

    def __init__(self, save_path: Path) -> None:
        self._save_path = save_path
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def start(self, log: Path) -> None:
        """Begin to write the page, and return at once. log: where a line goes if that fails."""
        self.finish()
        if os.environ.get(VARIABLE) == "0":
            return
        self._log = log
        command = [sys.executable, "-m", "vitas.report_page.refresh", str(self._save_path)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        except OSError as error:
            self._tell(str(error))

    def finish(self) -> None:
        """Wait until the page is written. Never raises: a failure is one line in the stage's log, and on stderr."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            _, told = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self._tell(f"it took more than {PATIENCE:.0f} seconds")
            return
        if process.returncode:
            lines = told.decode(errors="replace").strip().splitlines()
            self._tell(lines[-1] if lines else f"it ended with exit code {process.returncode}")

    def _tell(self, why: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} report: the page is not written: {why}"
        print(line, file=sys.stderr, flush=True)
        if self._log is not None:
            with suppress(OSError), open(self._log, "a") as file:
                file.write(line + "\n")


def main(save_path: str) -> None:
    with suppress(OSError):
        os.nice(10)
    # Programs that only start this process need none of it.
    from vitas.report_page.write import write_report

    try:
        write_report([Path(save_path)])
    except UserError as error:
        sys.exit(str(error))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
