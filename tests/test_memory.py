"""What a process frees it keeps for what it needs next."""

import subprocess
import sys

import pytest

COUNT = """
import resource
import torch
from lib import memory

{first}
faults = []
for _ in range(10):  # the heap still grows in the first three or four
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(25_000_000)  # 100 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is not Linux's")
def test_freed_memory_is_not_given_back_and_cleared_again():
    faults = {}
    for first in ("", "memory.keep_freed()"):
        code = COUNT.format(first=first)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        faults[first] = int(done.stdout)
    assert faults["memory.keep_freed()"] * 10 < faults[""]
