"""One module for each figure or table: `python -m geomem.experiments.NAME`, or `run(Config())`."""
