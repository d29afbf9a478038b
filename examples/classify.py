"""Classify photographs with an exported SavedModel. Needs TensorFlow alone.

python examples/classify.py runs/quickstart/served/photographs photo.jpg ...
"""

import argparse
import sys
import time
from pathlib import Path

from quiet import tf


def newest_version(folder):
    """The folder itself, or the one in it with the largest number."""
    if (folder / "saved_model.pb").exists():
        return folder
    versions = [path for path in folder.glob("*") if path.name.isdecimal()]
    if not versions:
        sys.exit(f"There is no SavedModel in {folder}.")
    return max(versions, key=lambda path: int(path.name))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model or of a version")
    parser.add_argument("images", nargs="+", type=Path)
    args = parser.parse_args()

    began = time.perf_counter()
    folder = newest_version(args.model)
    model = tf.saved_model.load(str(folder))
    classify = model.signatures["serving_default"]
    print(f"Loaded {folder} in {time.perf_counter() - began:.1f} s")

    width = max(len(path.name) for path in args.images)
    for path in args.images:
        try:
            answer = classify(image_bytes=tf.constant([path.read_bytes()]))
        except OSError as error:
            print(f"  {path.name:<{width}}  cannot be read: {error.strerror}")
            continue
        except tf.errors.InvalidArgumentError:
            print(f"  {path.name:<{width}}  is damaged, or no JPEG, PNG, WebP or GIF")
            continue
        label = answer["labels"].numpy()[0, 0].decode()
        score = answer["scores"].numpy()[0, 0]
        print(f"  {path.name:<{width}}  {label:<20} {score:6.1%}")


if __name__ == "__main__":
    main()
