"""Classify photographs with an exported SavedModel. Needs only TensorFlow.

python examples/classify.py runs/quickstart/served/images photo.jpg ...
"""

import argparse
import sys
import time
from pathlib import Path

from quiet import tf


def newest_version(folder):
    """The folder itself, or its subfolder with the largest number."""
    if (folder / "saved_model.pb").exists():
        return folder
    versions = [path for path in folder.glob("*") if path.name.isdecimal()]
    if not versions:
        sys.exit(f"No SavedModel in {folder}.")
    return max(versions, key=lambda path: int(path.name))


def said(answer):
    """The most likely class, the labels that are on, or each number."""
    answer = {key: value.numpy()[0] for key, value in answer.items()}
    names = [name.decode() for name in answer["labels"]]
    if "values" in answer:
        pairs = zip(names, answer["values"], strict=True)
        return ", ".join(f"{name} {value:.5g}" for name, value in pairs)
    if "on" in answer:
        on = [n for n, is_on in zip(names, answer["on"], strict=True) if is_on]
        return ", ".join(on) or "none of its labels"
    return f"{names[0]:<20} {answer['scores'][0]:6.1%}"


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
            print(f"  {path.name:<{width}}  is damaged or not JPEG, PNG, WebP or GIF")
            continue
        print(f"  {path.name:<{width}}  {said(answer)}")


if __name__ == "__main__":
    main()
