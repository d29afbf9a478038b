"""Pretrained networks that take raw RGB images."""

from .applications import inception_v3 as inception_v3
from .applications import resnet50 as resnet50
from .applications import resnet101 as resnet101
from .efficientnet_lite import efficientnet_lite0 as efficientnet_lite0
from .efficientnet_lite import efficientnet_lite1 as efficientnet_lite1
from .efficientnet_lite import efficientnet_lite2 as efficientnet_lite2
from .preprocessing import ImageNetPreprocessing as ImageNetPreprocessing
from .registry import ALL as ALL
from .registry import Backbone as Backbone
from .registry import get as get
