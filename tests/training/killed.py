"""Run as ``python -m tests.training.killed DIRECTORY``: trains until it is killed in mid-epoch."""

from __future__ import annotations

import sys

from tests.training.programs import die, everything

if __name__ == "__main__":
    everything(checkpoint_dir=sys.argv[1], before_call=die(at_call=22))
