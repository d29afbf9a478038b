"""The linear probe: a head fitted on frozen features."""

from keras_delta._probe.fit import HeadFit as HeadFit
from keras_delta._probe.fit import fit_head as fit_head
