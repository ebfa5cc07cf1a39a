"""Train and test one model of biotrainer, in its own environment; compare_biotrainer.py calls it.

It is called with two files: a configuration of biotrainer, and where to put the answer (both JSON).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from biotrainer.utilities.executer import parse_config_file_and_execute_run


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = parse_config_file_and_execute_run(config, write_to_file=False)
    whole = time.perf_counter() - started
    (split,) = found["training_results"].values()
    (test,) = found["test_results"].values()
    best = split["best_training_epoch_metrics"]
    answer = {
        "seconds_training": split["elapsed_time"],
        "seconds_whole": whole,
        "epochs": len(split["training_loss"]),
        "best_epoch": best["epoch"],
        "dev_loss": best["validation"]["loss"],
        "weights": split["n_free_parameters"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "own_test_metrics": {name: float(value) for name, value in test["metrics"].items()},
        "versions": {name: version(name) for name in ("biotrainer", "torch")},
        "predictions": test["test_set_predictions"],
    }
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
