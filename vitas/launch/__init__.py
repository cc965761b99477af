"""Starting stages: as Slurm jobs (submitit), as processes of this machine, and inside a job.

command     `vitas launch`: its arguments, and what follows from them
submission  a stage as a Slurm job, or all flagged stages as a chain of them
local       the same as processes of this machine
supervisor  inside a job: runs a program on all tasks, and requeues the job until it is done
configs     finding the YAML that somebody names
cluster     what is asked of Slurm: configs/cluster.yaml and the command line
"""

# The stages, in order, and the program that runs each.
PROGRAM_OF = {"search": "search", "sample": "search", "retrain": "retrain", "test": "inference"}
