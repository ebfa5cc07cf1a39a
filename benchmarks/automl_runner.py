"""Search models as AutoPeptideML does, in its own environment; compare_automl.py calls it.

It is called with two files, vectors and labels (.npz) and where to put the answer (JSON), and with the number
of trials. Search, models, their spaces, folds and ensemble are AutoPeptideML's `OptunaTrainer` with the
arguments that `AutoPeptideML.build_models` gives it.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from autopeptideml.train import OptunaTrainer
from autopeptideml.train.architectures import ALL_MODELS


def main() -> None:
    data, answer, trials = np.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    trainer = OptunaTrainer(task="class", direction="maximize", metric="mcc", ensemble=False)
    started = time.perf_counter()
    trainer.hpo(
        x={"vectors": data["x"]},
        y=data["y"],
        models=ALL_MODELS,
        n_folds=5,
        n_trials=trials,
        patience=max(1, trials // 5),
        random_state=1,
        n_jobs=1,
        verbose=0,
    )
    seconds = time.perf_counter() - started
    chances, _ = trainer.best_model.predict_proba({"vectors": data["x_judged"]})
    found = {
        "seconds_training": seconds,
        "trials": len(trainer.study.trials),
        "chosen": trainer.best_config[0]["name"],
        "inner_mcc": float(trainer.best_metric),
        "chances": chances[:, 1].tolist(),
        "versions": {name: version(name) for name in ("autopeptideml", "optuna", "scikit-learn")},
    }
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
