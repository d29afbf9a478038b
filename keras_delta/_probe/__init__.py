"""The linear probe: a head fitted on frozen features."""

from keras_delta._probe.fit import Probe as Probe
from keras_delta._probe.fit import fit_head as fit_head
