"""What is left of a dead process's session: who is still there is killed, and waited for to the very end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from messages import procfs
from supervisor import spawner

SECONDS = 30.0

HALF_DEAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""
"""A process whose first thread has ended and whose second goes on: /proc calls it a zombie."""

LEADER = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]]).pid, flush=True)
time.sleep(600)
"""


def state(pid: int) -> str:
    """Its state as /proc has it."""
    found = procfs.process(pid)
    return found.state if found is not None else ""


def test_a_process_of_which_threads_are_left_is_not_gone() -> None:
    """A GPU has its memory back when the last thread has ended, not when the first has."""
    command = [sys.executable, "-c", LEADER, HALF_DEAD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        try:
            assert leader.stdout is not None
            member = int(leader.stdout.readline())
            deadline = time.monotonic() + SECONDS
            while state(member) != "Z":
                if time.monotonic() > deadline:
                    pytest.fail(f"the first thread has not ended: {state(member)!r}")
                time.sleep(0.01)
            assert spawner.kill_session(leader.pid) == [member]
            while spawner.kill_session(leader.pid):
                if time.monotonic() > deadline:
                    pytest.fail("killed, and still there")
                time.sleep(0.01)
            assert state(member) == "Z", "it is its parent's to reap"
        finally:
            os.killpg(leader.pid, signal.SIGKILL)
