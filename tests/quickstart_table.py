"""The quickstart's table in README: `quickstart_table.py RESULT [--write]`.

Checks that the table that `make quickstart` wrote to RESULT agrees with the one in
README and says the same: the recipe is ahead of each other method by more than two
standard errors. With `--write` it is put into README first.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- quickstart -->\n\n", "\n\n"
RANGE = 4.0  # points between machines
NUMBER = r"[+-]?\d+\.\d"


def in_readme():
    """The table as README has it."""
    return README.read_text(encoding="utf-8").split(START)[1].split(END)[0] + "\n"


def read(table):
    """Dict method -> (accuracy, points of the last method ahead, its error)."""
    found = {}
    for line in table.splitlines()[2:]:
        method, _, accuracy, ahead, _ = (c.strip() for c in line.strip("| ").split("|"))
        numbers = re.findall(NUMBER, accuracy)[:1] + re.findall(NUMBER, ahead)
        found[method] = tuple(map(float, numbers))
    return found


def problems(measured, shown):
    """What is wrong, as sentences."""
    found = []
    if list(measured) != list(shown):
        return [f"README has the methods {list(shown)}, the run {list(measured)}"]
    for method, (accuracy, *ahead) in measured.items():
        if abs(accuracy - shown[method][0]) > RANGE:
            found.append(f"{method}: {accuracy} %, in README {shown[method][0]} %")
        if ahead and ahead[0] <= 2 * ahead[1]:
            found.append(f"the recipe is ahead of {method} by {ahead[0]} ± {ahead[1]}")
    return found


if __name__ == "__main__":
    result = Path(sys.argv[1]).read_text(encoding="utf-8")
    if "--write" in sys.argv[2:]:
        text = README.read_text(encoding="utf-8").replace(in_readme(), result)
        README.write_text(text, encoding="utf-8")
    sys.exit("\n".join(problems(read(result), read(in_readme()))) or None)
