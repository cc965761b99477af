"""The section of a page that says how the stages went: times, devices, faults, configuration, code."""

from __future__ import annotations

import time

import yaml

from vitas.report_page.html import Raw, details, paragraph, quiet, table, text
from vitas.report_page.read import RunRecord, Start
from vitas.report_page.stage_logs import StageLog
from vitas.run import STAGES

# A lock that was touched so many seconds ago belongs to a program that is at work.
_ALIVE_SECONDS = 120


def duration(seconds: float) -> str:
    """Seconds for people: 2 h 05 min, 3 min 20 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def stages(run: RunRecord) -> str:
    """The section of the stages."""
    rows: list[list[object]] = []
    for name, stage in STAGES.items():
        log = run.logs.get(name)
        if log is None:
            if run.starts and run.setting(f"{name}.flag"):
                rows.append([name, "not begun", "", "", "", ""])
            continue
        starts = [start for start in run.starts if start.program == stage.program]
        rows.append(
            [
                name,
                Raw(_state(run, log)),
                Raw(f'<span class="keep">{log.began:%Y-%m-%d %H:%M}</span>'),
                duration(log.seconds) if log.seconds else "",
                str(log.starts),
                _where(starts[-1]) if starts else "",
            ]
        )
    html = table(["stage", "state", "began", "ran for", "starts", "on"], rows, numbers=(3, 4)) if rows else ""
    html += _faults(run) if rows else quiet("No logs here.")
    for start in run.starts:
        html += _start(start)
    if run.notes:
        html += "".join(quiet(note) for note in run.notes)
    return html


def _state(run: RunRecord, log: StageLog) -> str:
    if log.is_done:
        return '<span class="state-done">done</span>'
    lock = run.folder.lock(STAGES[log.stage].program)
    if lock.exists() and time.time() - lock.stat().st_mtime < _ALIVE_SECONDS:
        return f"running: {text(log.last[:160])}"
    word = "stopped" if log.last.startswith("stops") else "unfinished"
    return f'<span class="state-{word}">{word}</span>, last: {text(log.last[:160])}'


def _where(start: Start) -> str:
    environment = start.environment
    device, processes = environment.get("device", ""), environment.get("processes", 1)
    return str(device) if processes == 1 else f"{processes} x {device}"


def _faults(run: RunRecord) -> str:
    """What failed and went on."""
    lines: list[str] = []
    for home, count in run.bad_images.items():
        lines.append(f"{count:,} bad images were left out or replaced ({home}/bad_images.txt)")
    for home, count in run.bad_steps.items():
        lines.append(f"{count:,} steps were left out, whose gradients were not finite ({home}/bad_steps.txt)")
    for start in run.starts:
        job = start.environment.get("slurm_job") or start.folder.name
        if start.requeues:
            stopped = sum(bool(requeue.get("stopped")) for requeue in start.requeues)
            died = len(start.requeues) - stopped
            lines.append(
                f"job {job} of {start.program} was requeued {len(start.requeues)} times: {stopped} stops, {died} deaths"
            )
        lines += [f"{start.folder.name}/{name}: {last}" for name, last in start.errors]
    events = [[at.strftime("%m-%d %H:%M:%S"), log.stage, told] for log in run.logs.values() for at, told in log.events]
    html = "".join(paragraph(line) for line in lines)
    more = sum(log.left_out for log in run.logs.values())
    if events:
        html += table(["when", "stage", "what happened, and went on"], sorted(events))
        html += paragraph(f"{more:,} more are in the logs.", "faint") if more else ""
    if html:
        return f"<h3>What failed and went on</h3>{html}"
    return paragraph("Nothing failed, and nothing was resumed.", "faint")


def _start(start: Start) -> str:
    environment = start.environment
    git = environment.get("git") or {}
    commit = str(git.get("commit", "unknown"))[:12] + (" with changes" if git.get("changed") else "")
    packages = environment.get("packages") or {}
    listed = ", ".join(f"{name} {number}" for name, number in packages.items() if number)
    facts = [
        ("started", environment.get("started")),
        ("command", " ".join(map(str, environment.get("command", [])))),
        ("commit", commit),
        ("machine", f"{environment.get('host', 'unknown')}, {environment.get('system', '')}"),
        ("packages", listed),
        (
            "Slurm",
            f"job {environment.get('slurm_job')}, {environment.get('slurm_restarts', 0)} restarts"
            if environment.get("slurm_job")
            else None,
        ),
    ]
    body = table(["", ""], [[name, value] for name, value in facts if value]) if environment else ""
    if start.config:
        told = yaml.safe_dump(dict(start.config), sort_keys=False, default_flow_style=None, width=100)
        body += f"<pre>{text(told)}</pre>"
    named = f"{start.program}, last started {environment.get('started', 'at an unknown time')}, commit {commit}"
    return details(f"Configuration and environment of {named}", body) if body else ""
