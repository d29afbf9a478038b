"""Experiments: many trainings, compared; the article's, and our own."""

from experiments import command as command
from experiments import figures as figures
from experiments import studies as studies
from experiments import tables as tables
from keras_delta.statistics import paired_interval as paired_interval
from experiments.cell import Cell as Cell
from experiments.plan import Choice as Choice
from experiments.plan import Entry as Entry
from experiments.plan import Plan as Plan
from experiments.protocols import PROTOCOLS as PROTOCOLS
from experiments.protocols import Protocol as Protocol
from experiments.run import rerun as rerun
from experiments.run import run as run
from experiments.store import ResultStore as ResultStore
from experiments.train import Trainer as Trainer
