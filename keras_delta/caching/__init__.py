"""Caching of the frozen source's feature maps: computed once, then read back."""

from keras_delta.caching.source_map_cache import SourceMapCache as SourceMapCache
from keras_delta.caching.source_map_cache import get as get
