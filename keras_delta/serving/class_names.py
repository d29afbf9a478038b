"""Class names, as written to a text file."""

from keras_delta._errors import invalid

FILE, THRESHOLDS = "labels.txt", "thresholds.txt"


def text(names):
    """The content of the file: one name per line."""
    return "".join(f"{name}\n" for name in names)


def check(names, classes):
    """The class names as a list, if a text file can represent them unambiguously."""
    if isinstance(names, (str, bytes, dict)) or not hasattr(names, "__iter__"):
        raise TypeError(invalid("class_names", "a list of strings", names))
    names = list(names)
    for i, name in enumerate(names):
        if not isinstance(name, str):
            remedy = "For numbers: `[str(i) for i in range(classes)]`."
            raise TypeError(invalid("class_names", "strings only", name, remedy))
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(invalid("class_names", "names that fit into UTF-8", name))
        if not name.strip():
            expected = f"no empty names (class {i} has one)"
            raise ValueError(invalid("class_names", expected, name))
        if name.splitlines() != [name]:
            expected = "single-line names, as `labels.txt` has one name per line"
            raise ValueError(invalid("class_names", expected, name))
    if len(names) != classes:
        expected = f"{classes} names, one for each output of the model"
        if classes == 2:
            expected = "2 names (for a model with one unit: the meanings of 0 and 1)"
        raise ValueError(invalid("class_names", f"{expected}, not {len(names)}", names))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        expected = "different names, because an answer is a name"
        raise ValueError(invalid("class_names", expected, twice))
    return names
