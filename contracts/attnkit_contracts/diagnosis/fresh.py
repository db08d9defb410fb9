"""Runs scripts where nothing happened before: a script that shows a fault must do so by itself.

One process imports torch and attnkit, once; each script runs in a fork of it, in some milliseconds.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys

LIMIT = 60
"""Seconds that a script may take."""

_SERVER = f"""
import json, os, signal, sys
import torch, attnkit, attnkit.operations.attention, attnkit.operations.recurrence
torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm({LIMIT})
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        sys.path[:] = asked["path"]
        try:
            exec(asked["script"], {{"__name__": "__main__"}})
        except BaseException as error:
            os._exit(1 if isinstance(error, (Exception, SystemExit)) else 3)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.__stdout__.write(f"{{code}}\\n")
    sys.__stdout__.flush()
"""


def fails(script: str) -> bool:
    """Return whether a script ends in an error in a process in which nothing ran before.

    True where there are no such processes on this system: then nobody can tell.
    """
    if not hasattr(os, "fork"):
        return True
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        server.stdin.write(json.dumps({"script": script, "path": sys.path}) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    except OSError:
        return True
    return answer.strip() != "0"


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the process; it ends with this one."""
    started = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def stop() -> None:
        started.terminate()
        started.communicate()

    atexit.register(stop)
    return started
