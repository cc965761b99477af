"""Submitting jobs to Slurm, and running inside them. Nothing here imports torch.

queries     asks Slurm about jobs, nodes and partitions
cluster     the resources of a job: configs/cluster.yaml and the command line
submission  runs a stage as a Slurm job, or all flagged stages as a chain of jobs (submitit)
local       runs a program as processes on this machine
supervisor  inside a job: runs a program on all tasks, and requeues the job until the program is done
signals     stops cleanly on a signal or before the time limit
lock        allows one writer at a time under save_path
"""
