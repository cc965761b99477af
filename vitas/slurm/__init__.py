"""Slurm: what the project asks of it, and how a job behaves. Nothing here loads torch.

queries     what Slurm says of jobs, nodes and partitions
cluster     what is asked of Slurm for a job: configs/cluster.yaml and the command line
submission  a stage as a Slurm job, or all flagged stages as a chain of them (submitit)
local       the same as processes of this machine
supervisor  inside a job: runs a program on all tasks, and requeues the job until it is done
signals     stopping in good order, on a signal or before the time limit
lock        one writer at a time under save_path
"""
