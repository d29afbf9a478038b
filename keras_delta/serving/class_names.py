"""Names of the classes, as they are written into a text file."""

from keras_delta._errors import invalid

FILE, THRESHOLDS = "labels.txt", "thresholds.txt"


def text(names):
    """What the file holds: a name a line."""
    return "".join(f"{name}\n" for name in names)


def check(names, classes):
    """The names of the classes as a list, if they can be told apart in a text file."""
    if isinstance(names, (str, bytes, dict)) or not hasattr(names, "__iter__"):
        raise TypeError(invalid("class_names", "a list of strings", names))
    names = list(names)
    for i, name in enumerate(names):
        if not isinstance(name, str):
            remedy = "For numbers: `[str(i) for i in range(classes)]`."
            raise TypeError(invalid("class_names", "strings only", name, remedy))
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(invalid("class_names", "names that UTF-8 can write", name))
        if not name.strip():
            expected = f"no empty name (class {i} has one)"
            raise ValueError(invalid("class_names", expected, name))
        if name.splitlines() != [name]:
            expected = "names of one line, for `labels.txt` has one name a line"
            raise ValueError(invalid("class_names", expected, name))
    if len(names) != classes:
        expected = f"{classes} names, one for each output of the model"
        if classes == 2:
            expected = "2 names (where the model has one unit: what 0 and 1 stand for)"
        raise ValueError(invalid("class_names", f"{expected}, not {len(names)}", names))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        expected = "names that differ, since an answer is a name"
        raise ValueError(invalid("class_names", expected, twice))
    return names
