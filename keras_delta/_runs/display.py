"""Displays what the processes of a run are doing."""

import sys


class Lines:
    """A line for each training that a worker finishes; also for files."""

    def __init__(self):
        self._totals = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def say(self, text):
        """A line for the user."""
        print(text, file=sys.stderr, flush=True)

    def show(self, workers):
        """What the workers do now."""
        for worker in workers:
            if worker.total > self._totals.get(worker.name, 0):
                self._totals[worker.name] = worker.total
                count = f"{worker.total} training{'s' * (worker.total > 1)}"
                self.say(f"{worker.name}: {count} done; {progress(worker.told)}")


class Table:
    """A line for each worker, which changes; for terminals."""

    def __init__(self):
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._live = Live(console=self._console, auto_refresh=False)
        self._shown = None

    def __enter__(self):
        self._live.start()
        return self

    def __exit__(self, *error):
        self._live.stop()

    def say(self, text):
        """A line for the user."""
        self._console.print(text, soft_wrap=True)

    def show(self, workers):
        """What the workers do now."""
        from rich.text import Text

        lines = "\n".join(f"{w.name:10} {w.total:4} done  {_line(w)}" for w in workers)
        if lines != self._shown:
            self._shown = lines
            text = Text(lines, no_wrap=True, overflow="ellipsis")
            self._live.update(text, refresh=True)


def display():
    """`Table` on a terminal, else `Lines`."""
    return Table() if sys.stderr.isatty() else Lines()


def _line(worker):
    if worker.given_up:
        return f"given up in {worker.cell or 'no cell'}"
    return progress(worker.told) if worker.running else "ended"


def progress(told):
    """What a worker does, from what it has told: one line."""
    state = told.get("state", "starting")
    parts = [state]
    if state == "training" and cell_in_words(told):
        parts = [cell_in_words(told)]
        for name in ("fold", "epoch"):
            if told.get(name) is not None:
                parts.append(f"{name} {_of(told[name], told.get(name + 's'))}")
    if told.get("score") is not None:
        parts.append(f"last cell {told['score']:.4g}")
    return ", ".join(parts)


def cell_in_words(told):
    """`cell 3 of 25 (alpha=0.1)`, or what is known of that; "" for nothing."""
    values = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in (told.get("values") or {}).items()
    )
    number = told.get("cell")
    if number is None:
        return f"cell ({values})" if values else ""
    cell = f"cell {_of(number, told.get('cells'))}"
    return f"{cell} ({values})" if values else cell


def _of(number, total):
    return f"{number}" if total is None else f"{number} of {total}"
