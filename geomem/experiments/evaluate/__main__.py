"""`python -m geomem.experiments.evaluate --samples SAMPLES --dataset DATA`."""

from geomem.experiments.common import command_line
from geomem.experiments.evaluate.evaluation import FROM_RUN, Config, run

__all__ = []

if __name__ == "__main__":
    of_network = dict.fromkeys(
        ("embedding_size", "embedding_mean", "embedding_std"), ("embedding",)
    )
    excludes = {"run": FROM_RUN, "embedding": ("features",)}
    command_line.main(Config, run, excludes=excludes, needs=of_network)
