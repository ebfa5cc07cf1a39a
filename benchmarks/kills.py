"""Kill embed, predict, train, transfer and pretrain again and again, and count what had been written.

After every few kills the same command goes on to its end, where its file must have the bytes of an
uninterrupted run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from results import write_result
from test_kills import Nursery, Work, kill_again_and_again

PACKAGES = ("h5py", "pyarrow")  # which write some of the outputs that are killed
COMMANDS = {"embed": 1.0, "predict": 1.0, "train": 1.0, "transfer": 0.2, "pretrain": 0.4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=80, help="for each of embed, predict and train")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        sys.exit(f"kills.py needs {' and '.join(absent)}; pip install {' '.join(absent)}")
    counted = {}
    with tempfile.TemporaryDirectory() as folder:
        nursery = Nursery(Path(folder))
        work = Work(nursery, Path(folder))
        for command, share in COMMANDS.items():
            phases = kill_again_and_again(work, command, round(given.kills * share), seed=given.seed)
            counted[command] = {
                "kills": phases.total(),
                "written_at_that_moment": dict(sorted(phases.items())),
            }
        nursery.close()
    write_result("kills", {"kills": sum(each["kills"] for each in counted.values()), "commands": counted})


if __name__ == "__main__":
    main()
