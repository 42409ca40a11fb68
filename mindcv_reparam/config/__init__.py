"""The configuration: settings, read from YAML and then from the command line."""

from mindcv_reparam.config.flags import add_settings, configuration
from mindcv_reparam.config.schema import DECODING, INACTIVE, SETTINGS, Config
from mindcv_reparam.config.texts import load_yaml, save_yaml

__all__ = ["DECODING", "INACTIVE", "SETTINGS", "Config", "add_settings", "configuration", "load_yaml", "save_yaml"]
