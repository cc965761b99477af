"""The long campaign: each fault injected many times, for real; what was lost, wrong or hung is counted.

    python -m tests.faults.campaign FOLDER [--only NAME ...] [--share 1.0]

A line for each fault goes to `FOLDER/faults.jsonl`, and at the end all lines are
printed as the table of docs/reliability.md. Started again, it goes on with the
faults that have no line yet. The fuzzing of `tests/faults/` is run by
`script/faults.sh`, as is what needs a real Slurm.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch

from tests.faults.kills import Count, judge, kill_stage
from tests.faults.stages import ORDER, Target, digest_of
from tests.processes import ENVIRONMENT, REPOSITORY, command
from tests.vitas.conftest import write_bad_images
from vitas.checkpoint import CheckpointFolder, read
from vitas.errors import UserError
from vitas.journal import Journal

# One-process targets; with ranks there are others.
STALL = 4


def bit_flips(target: Target, share: float) -> Count:
    """Bits of a checkpoint, one at a time: each is refused, or what is read is as before."""
    count, rng = Count(), random.Random(0)
    target.reset("sample")
    folder = CheckpointFolder(target.run / "search" / "checkpoint")
    path = folder.newest()
    content, whole = path.read_bytes(), digest_of(read(path))
    for _ in range(max(50, int(1000 * share))):
        bit = rng.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        count.injected += 1
        began = time.monotonic()
        try:
            if digest_of(read(path)) != whole:
                count.wrong += 1
                count.note(f"bit {bit} of {path.name} changes what is read")
        except UserError:
            count.seconds.append(time.monotonic() - began)
        except Exception as error:
            count.tracebacks += 1
            count.note(f"bit {bit}: {error!r}")
    return count


def flips_and_resume(target: Target, share: float) -> Count:
    """A training whose newest checkpoint, or the two newest, have a flipped bit: the end is as without."""
    count, rng = Count(), random.Random(1)
    for stage in ("search", "retrain"):
        for _ in range(max(3, int(40 * share))):
            target.reset(stage)
            # Killed where there are several checkpoints.
            while target.start(stage, kill_after=rng.uniform(0.3, 1.0)).code != -9:
                target.reset(stage)
            files = sorted((target.run / stage / "checkpoint").glob("*.pth.tar"), key=lambda path: path.stat().st_mtime)
            for path in files[-rng.choice((1, 2)) :] if len(files) > 2 else files[-1:] if len(files) == 2 else []:
                content = bytearray(path.read_bytes())
                bit = rng.randrange(8 * (len(content) - 100))
                content[bit // 8] ^= 1 << bit % 8
                path.write_bytes(content)
                count.injected += 1
            end = target.start(stage)
            count.seconds.append(end.seconds)
            judge(end, target, stage, count)
    return count


@contextmanager
def own_disk(target: Target, stage: str, room: int) -> Iterator[None]:
    """Within it, the run lies on a file system of its own, with so many bytes beside those that are there."""
    target.reset(stage)
    size = sum(path.stat().st_size for path in target.run.rglob("*") if path.is_file())
    kept = target.folder / "kept"
    target.run.rename(kept) if target.run.exists() else kept.mkdir()
    target.run.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size + room}", "none", target.run]
    subprocess.run(mount, check=True)
    try:
        # What does not fit is missing, as on a disk that filled up before.
        subprocess.run(["cp", "-a", f"{kept}/.", target.run], check=False, stderr=subprocess.DEVNULL)
        yield
    finally:
        subprocess.run(["umount", target.run], check=True)
        subprocess.run(["rm", "-rf", kept], check=True)


def judge_disk(target: Target, stage: str, code: int | None, output: str, mend: str, count: Count) -> None:
    """Count the end of a start on a disk that failed; then mend the disk, and judge the next start."""
    count.injected += 1
    if "Traceback" in output or code != 2:
        count.tracebacks += 1
        count.note(f"{stage}: {code} {output[-1500:]}")
    subprocess.run(["mount", "-o", f"remount,{mend}", target.run], check=True)
    again = target.start(stage)
    count.seconds.append(again.seconds)
    judge(again, target, stage, count)


def full_disks(target: Target, share: float) -> Count:
    """A run on a file system that fills up: one message with the file, and after room is made the undisturbed end."""
    count, rng = Count(), random.Random(2)
    for stage in ("search", "retrain", "sample"):
        for _ in range(max(2, int(15 * share))):
            with own_disk(target, stage, rng.randrange(8_000, 1_500_000)):
                end = target.start(stage)
                # Else it had room enough.
                if end.code != 0:
                    judge_disk(target, stage, end.code, end.output, "size=100m", count)
    return count


def read_only_disks(target: Target, share: float) -> Count:
    """A file system that becomes read-only in the middle of a stage, as after an error of the disk."""
    count, rng = Count(), random.Random(3)
    for stage in ("search", "retrain", "sample"):
        for _ in range(max(2, int(10 * share))):
            with own_disk(target, stage, 100_000_000):
                pid = target.fork(stage)
                time.sleep(rng.uniform(0.2, 0.8))
                # Refused while a file is open for writing.
                while subprocess.run(["mount", "-o", "remount,ro", target.run], capture_output=True).returncode:
                    time.sleep(0.001)
                code, output = target.wait(pid), target.output(pid)
                if code == 0:
                    subprocess.run(["mount", "-o", "remount,rw", target.run], check=True)
                else:
                    judge_disk(target, stage, code, output, "rw", count)
    return count


def two_programs(target: Target, share: float) -> Count:
    """Two starts on one `save_path` at once: one runs, the other is refused, and the end is that of one."""
    count = Count()
    for number in range(max(3, int(40 * share))):
        stage = ORDER[number % len(ORDER)]
        target.reset(stage)
        pids = [target.fork(stage), target.fork(stage)]
        codes = [target.wait(pid) for pid in pids]
        outputs = [target.output(pid) for pid in pids]
        count.injected += 1
        if sorted(map(str, codes)) not in (["0", "2"], ["0", "0"]):
            count.wrong += 1
            count.note(f"{stage}: {codes} {outputs}")
        elif 2 in codes and "is being written by" not in outputs[codes.index(2)]:
            count.tracebacks += 1
            count.note(outputs[codes.index(2)])
        elif target.results(stage) != target.undisturbed[stage]:
            count.wrong += 1
            count.note(f"{stage}: another result, {codes}")
    return count


def test_while_rotating(target: Target, share: float) -> Count:
    """`test` of the newest checkpoint while `retrain` writes and removes checkpoints, keeping one."""
    count = Count()
    for _ in range(max(3, int(40 * share))):
        target.reset("retrain")
        training = target.fork("retrain", lambda: None, "retrain.keep=1", "retrain.epochs=12")
        while not list((target.run / "retrain" / "checkpoint").glob("epoch_*")):
            time.sleep(0.01)
        end = target.start("test")
        count.injected += 1
        if end.is_hung or end.has_traceback or end.code != 0:
            count.refused += 1
            count.note(end.output[-1500:])
        target.wait(training)
        target.output(training)
    return count


def jumping_clocks(target: Target, share: float) -> Count:
    """The machine's clock jumps by months, forwards and backwards, at every look at it."""
    count = Count()
    for number in range(max(4, int(40 * share))):
        stage = ORDER[number % len(ORDER)]
        target.reset(stage)
        rng, now = random.Random(number), time.time

        def prepare(rng=rng, now=now) -> None:
            time.time = lambda: max(0.0, now() + rng.uniform(-1e7, 1e7))

        end = target.start(stage, prepare)
        count.injected += 1
        judge(end, target, stage, count)
    return count


def bad_images(target: Target, share: float) -> Count:
    """Images of every bad kind in the folder of each stage: it ends, and names them, within its share; or refuses."""
    count = Count()
    for stage in ORDER:
        part = {"search": "train", "retrain": "train", "sample": "val", "test": "test"}[stage]
        folder = target.folder / f"bad-{stage}"
        subprocess.run(["rm", "-rf", folder], check=True)
        subprocess.run(["cp", "-a", target.folder / "images" / part, folder], check=True)
        (folder / "bad").mkdir()
        bad = write_bad_images(folder / "bad")
        for path in bad:
            path.rename(folder / "3" / path.name)
        (folder / "bad").rmdir()
        for workers in (0, 2):
            for allowed, code in ((0.5, 0), (0.0, 2)):
                target.reset(stage)
                given = (f"{stage}.data.{key}" for key in ("data_dir", "workers", "bad_images"))
                values = (folder, workers, allowed)
                overrides = [f"{key}={value}" for key, value in zip(given, values, strict=True)]
                end = target.start(stage, lambda: None, None, *overrides)
                count.injected += len(bad)
                if end.is_hung or end.has_traceback or end.code != code:
                    count.wrong += 1
                    count.note(f"{stage} {overrides}: {end.code} {end.output[-1500:]}")
    return count


class Ranks:
    """`retrain` on several processes, and its undisturbed end."""

    def __init__(self, target: Target, processes: int) -> None:
        self.target, self.processes = target, processes
        self.run = target.folder / "ranks"
        self.arguments = [
            target.config, f"save_path={self.run}", "search.flag=false", "retrain.architecture=p8-e32-token-h2q96m64",
            "retrain.epochs=40", "retrain.checkpoint_steps=2", "retrain.keep=1", f"stall_seconds={STALL}",
        ]  # fmt: skip
        process = self.start()
        assert process.wait(300) == 0
        self.undisturbed = self.result()

    def start(self) -> subprocess.Popen:
        self.output = open(self.target.folder / "ranks.log", "w+")  # noqa: SIM115
        words = command("retrain", *self.arguments, processes=self.processes)
        return subprocess.Popen(words, env=ENVIRONMENT, cwd=REPOSITORY, stdout=self.output, stderr=subprocess.STDOUT)

    def result(self) -> str:
        return digest_of(torch.load(CheckpointFolder(self.run / "retrain" / "checkpoint").newest(), weights_only=True))

    def clear(self) -> None:
        subprocess.run(["rm", "-rf", self.run], check=True)

    def pids(self, launcher: int) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True).stdout.split()
        return sorted(map(int, found))


def ranks(target: Target, share: float, what: str) -> Count:
    """A random rank of 2 and of 4 is killed, stopped for good, or slowed for seconds."""
    count, rng = Count(), random.Random(what)
    for processes in (2, 4):
        run = Ranks(target, processes)
        for _ in range(max(1, int(6 * share))):
            run.clear()
            process = run.start()
            recent = run.run / "retrain" / "checkpoint" / "recent_ckpt.pth.tar"
            while not recent.exists() and process.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.5))
            pids = run.pids(process.pid)
            if len(pids) != processes:
                process.wait(300)
                continue
            victim = rng.choice(pids)
            count.injected += 1
            began = time.monotonic()
            if what == "slowed":
                for _ in range(6):
                    os.kill(victim, signal.SIGSTOP)
                    time.sleep(0.4)
                    os.kill(victim, signal.SIGCONT)
                    time.sleep(0.2)
            else:
                os.kill(victim, signal.SIGKILL if what == "killed" else signal.SIGSTOP)
            try:
                code = process.wait(120)
            except subprocess.TimeoutExpired:
                count.hung += 1
                count.note(f"{what}, {processes} ranks: still running after 120 s")
                subprocess.run(["pkill", "-9", "-P", str(process.pid)], check=False)
                process.kill()
                process.wait()
                code = None
            detected = time.monotonic() - began
            left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
            if left:
                count.hung += 1
                count.note(f"{what}: processes {left} are left")
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            if what == "slowed":
                if code != 0:
                    count.wrong += 1
                    count.note(f"slowed: ends with {code}: {(target.folder / 'ranks.log').read_text()[-1500:]}")
            elif code == 0:
                # It was done before.
                count.injected -= 1
                continue
            else:
                count.seconds.append(detected)
                again = run.start()
                if again.wait(300) != 0:
                    count.refused += 1
                    count.note((target.folder / "ranks.log").read_text()[-1500:])
                    continue
            if run.result() != run.undisturbed:
                count.wrong += 1
                count.note(f"{what}, {processes} ranks: another result")
        run.clear()
    return count


def killed(stage: str, forgets: bool) -> Callable[[Target, float], Count]:
    """A stage, killed inside calls that change files, and at random moments; or its disk loses power."""
    return lambda target, share: kill_stage(target, stage, max(4, int(250 * share)), forgets, seed=int(forgets))


# By name: what it is, for the table, which adds those of one kind up; and how it is injected.
FAULTS: dict[str, tuple[str, Callable[[Target, float], Count]]] = {
    **{
        f"kills, {stage}": ("kill -9 inside a call that changes files, or anywhere (four stages)", killed(stage, False))
        for stage in ORDER
    },
    **{
        f"power cuts, {stage}": ("the same, and the disk forgets what was not flushed", killed(stage, True))
        for stage in ORDER
    },
    "bit flips": ("a flipped bit of a checkpoint, read", bit_flips),
    "flips and resume": ("a flipped bit in the newest checkpoints, resumed", flips_and_resume),
    "full disks": ("a disk that fills up", full_disks),
    "read-only disks": ("a disk that becomes read-only", read_only_disks),
    "two programs": ("two programs start on one save_path", two_programs),
    "test while rotating": ("`test` reads while `retrain` rotates", test_while_rotating),
    "clocks": ("a clock that jumps by months", jumping_clocks),
    "images": ("bad images, each kind in each stage", bad_images),
    "rank killed": ("a rank of 2 or 4 is killed", lambda t, s: ranks(t, s, "killed")),
    "rank stopped": (f"a rank of 2 or 4 is stopped (stall_seconds {STALL})", lambda t, s: ranks(t, s, "stopped")),
    "rank slowed": ("a rank of 2 or 4 is slowed", lambda t, s: ranks(t, s, "slowed")),
}


def table(lines: list[dict]) -> str:
    rows = ["| fault | injected | lost | wrong | hung | raw tracebacks | refused | seconds, median and most |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    kinds: dict[str, list[dict]] = {}
    for line in lines:
        kinds.setdefault(FAULTS[line["fault"]][0], []).append(line)
    for kind, of_kind in kinds.items():
        seconds = [each for line in of_kind for each in line["seconds"]]
        took = f"{median(seconds):.1f}, {max(seconds):.1f}" if seconds else ""
        keys = ("injected", "lost", "wrong", "hung", "tracebacks", "refused")
        numbers = " | ".join(f"{sum(line[key] for line in of_kind):,}" for key in keys)
        rows.append(f"| {kind} | {numbers} | {took} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="NAME")
    parser.add_argument("--share", type=float, default=1.0, help="of the number of faults")
    arguments = parser.parse_args()
    journal = Journal(arguments.folder / "faults.jsonl")
    done = {line["fault"] for line in journal.lines}
    failed = False
    for name in arguments.only:
        if name in done:
            continue
        began = time.monotonic()
        # New for each, so that one cannot leave something to the next.
        target = Target(arguments.folder / name.replace(",", "").replace(" ", "-"))
        count = FAULTS[name][1](target, arguments.share)
        journal.append({"fault": name, **asdict(count), "took": round(time.monotonic() - began)})
        print(f"{name}: {count.injected} injected, {count.failures} failures", *count.examples, sep="\n  ", flush=True)
        failed |= count.failures > 0
    print(table(journal.lines))
    sys.exit(failed)


if __name__ == "__main__":
    main()
