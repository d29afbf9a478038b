"""Images for transfer learning: folders, splits, protocols, ten-crop evaluation."""

from keras_delta.data.augment import Protocol as Protocol
from keras_delta.data.augment import resize_side as resize_side
from keras_delta.data.catalogue import DATA_SETS as DATA_SETS
from keras_delta.data.catalogue import DataSet as DataSet
from keras_delta.data.corruptions import corrupt as corrupt
from keras_delta.data.corruptions import corrupted as corrupted
from keras_delta.data.decode import BadImageError as BadImageError
from keras_delta.data.decode import read_image as read_image
from keras_delta.data.embedded import embedded_digits as embedded_digits
from keras_delta.data.embedded import embedded_photographs as embedded_photographs
from keras_delta.data.folders import from_directory as from_directory
from keras_delta.data.image_set import ImageSet as ImageSet
from keras_delta.data.loading import load as load
from keras_delta.data.ten_crop import average_ten_crop as average_ten_crop
from keras_delta.data.ten_crop import predict_ten_crop as predict_ten_crop
from keras_delta.data.ten_crop import ten_crop as ten_crop
from keras_delta.data.tfds_sets import from_tfds as from_tfds
