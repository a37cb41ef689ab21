"""Processes that a test started, at whatever remove: told by a mark in the environment that they inherit."""

import os
import time

import psutil

VARIABLE = "CONTRIQUE_TEST"  # whose value is the mark


def find_processes(mark: str) -> list[psutil.Process]:
    """Those that run, but for this one."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(VARIABLE) == mark:
                processes.append(process)
        except psutil.Error:  # gone meanwhile, or somebody else's
            continue
    return processes


def survivors(mark: str, seconds: float = 60.0) -> list[psutil.Process]:
    """Those that do not go: one that was killed a moment ago is given time to be gone."""
    deadline = time.monotonic() + seconds
    while (processes := find_processes(mark)) and time.monotonic() < deadline:
        psutil.wait_procs(processes, timeout=1)
    return processes
