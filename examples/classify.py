"""Classify photographs with an exported SavedModel. Needs TensorFlow alone.

python examples/classify.py runs/quickstart/savedmodel photo.jpg ...
"""

import argparse
import time
from pathlib import Path

from quiet import tf


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the SavedModel")
    parser.add_argument("images", nargs="+", type=Path)
    args = parser.parse_args()

    began = time.perf_counter()
    model = tf.saved_model.load(str(args.model))
    classes = (args.model / "assets.extra" / "labels.txt").read_text().splitlines()
    serve = model.signatures["serving_default"]
    (name, spec), *_ = serve.structured_input_signature[1].items()
    size = spec.shape[1:3]
    print(f"Loaded {args.model} in {time.perf_counter() - began:.1f} s")

    width = max(len(str(path.name)) for path in args.images)
    for path in args.images:
        image = tf.io.decode_image(
            tf.io.read_file(str(path)), channels=3, expand_animations=False
        )
        image = tf.image.resize(image, size, antialias=True)
        (logits,) = serve(**{name: image[None]}).values()
        scores = tf.nn.softmax(logits[0]).numpy()
        best = scores.argmax()
        print(f"  {path.name:<{width}}  {classes[best]:<20} {scores[best]:6.1%}")


if __name__ == "__main__":
    main()
