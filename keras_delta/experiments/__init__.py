"""Experiments: many trainings, compared; the article's, and our own."""

from keras_delta.experiments import command as command
from keras_delta.experiments import figures as figures
from keras_delta.experiments import studies as studies
from keras_delta.experiments import tables as tables
from keras_delta.experiments.bootstrap import paired_interval as paired_interval
from keras_delta.experiments.cell import Cell as Cell
from keras_delta.experiments.plan import Choice as Choice
from keras_delta.experiments.plan import Entry as Entry
from keras_delta.experiments.plan import Plan as Plan
from keras_delta.experiments.protocols import PROTOCOLS as PROTOCOLS
from keras_delta.experiments.protocols import Protocol as Protocol
from keras_delta.experiments.run import rerun as rerun
from keras_delta.experiments.run import run as run
from keras_delta.experiments.store import ResultStore as ResultStore
from keras_delta.experiments.train import Trainer as Trainer
