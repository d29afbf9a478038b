"""The article's tables and figure, and our own tables on few photographs.

    python benchmarks/article.py --table 1 --datasets cub --networks resnet101 --gpus 4
    python benchmarks/article.py --table 2 --protocol code --repeats 3
    python benchmarks/article.py --figure 3 --datasets cub
    python benchmarks/article.py --study few-shot why robustness --data-dir FOLDER
    python benchmarks/article.py --study bench --data-dir FOLDER

Shows a plan, trains what is not in the store yet, and writes the tables as text,
Markdown, LaTeX, CSV and PNG. After an interrupt or a kill, the same command resumes.
`--plan` shows only the plan; `--cell KEY` trains one cell again and compares.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import experiments


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    experiments.command.add_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    # Else threads add in another order each time.
    tf.config.experimental.enable_op_determinism()
    try:
        sys.exit(experiments.command.main(arguments(), __file__))
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
