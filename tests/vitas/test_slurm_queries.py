"""What Slurm's commands print, read right."""

import pytest

from vitas.slurm import queries
from vitas.slurm.queries import Partition, SlurmError, TimeLimit


@pytest.fixture
def says(monkeypatch):
    """Let every command of Slurm print a text, or fail with one."""

    def say(text: str | SlurmError) -> None:
        def output(*command: str) -> str:
            if isinstance(text, SlurmError):
                raise text
            return text

        monkeypatch.setattr(queries, "output", output)

    return say


@pytest.mark.parametrize(
    ("printed", "limit"),
    [
        ("0:45|1:00\n", TimeLimit(45, 60)),
        ("59:01|1:00:00\n", TimeLimit(3541, 3600)),
        ("1-02:03:04|2-00:00:00\n", TimeLimit(93784, 172800)),
        ("UNLIMITED|UNLIMITED\n", None),
        ("INVALID|1:00\n", None),
        ("\n", None),
    ],
)
def test_a_jobs_time_limit(says, printed, limit):
    says(printed)
    assert queries.time_limit("7") == limit


def test_partitions_with_their_nodes_and_gpus(says):
    says(
        "gpu*|4|gpu:a100:8(S:0-1)|64|1-00:00:00|infinite\n"
        "gpu*|2|gpu:a100:4,gpu:h100:2(IDX:0-1),fs:1|96+|1-00:00:00|infinite\n"
        "cpu|10|(null)|32|n/a|2:00:00\n"
    )
    assert queries.partitions() == [
        Partition("gpu", True, 6, 8, 96, "1-00:00:00"),
        Partition("cpu", False, 10, 0, 32, "2:00:00"),
    ]


def test_a_jobs_state(says):
    says("JobId=7 JobName=a b\n   JobState=RUNNING Reason=None Restarts=2\n")
    assert queries.state("7") == "RUNNING"
    says(SlurmError("slurm_load_jobs error: Invalid job id specified"))
    assert queries.state("7") is None
    says(SlurmError("Unable to contact slurm controller"))
    with pytest.raises(SlurmError, match="contact"):
        queries.state("7")


def test_a_command_that_fails_or_is_not_there_says_so():
    with pytest.raises(SlurmError, match="No such file"):
        queries.output("a-command-that-is-not-there")
    with pytest.raises(SlurmError, match=r"^one two$"):
        queries.output("sh", "-c", "echo one >&2; echo two >&2; exit 3")
