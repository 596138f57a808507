"""Defines every command's configuration once, as a frozen and typed value.

The fields of a configuration are the command line's options and the YAML file's keys. The options of experiments are in
`hcnr_jax.config.experiments`, which also imports the table of baselines.
"""

from hcnr_jax.config.commands import (
    BenchConfig,
    ChatConfig,
    DataConfig,
    DemoConfig,
    DiagnoseConfig,
    EvaluateConfig,
    LmEvalPathConfig,
    ProbeConfig,
    TuneConfig,
)
from hcnr_jax.config.convert import ConvertConfig
from hcnr_jax.config.options import (
    Config,
    Positional,
    RunConfig,
    Stage,
    build,
    example_of,
    fields_of,
    is_positional,
    option_name,
    read_yaml,
    stage_of,
)
from hcnr_jax.config.restore import ApplyConfig, RestoreConfig

__all__ = [
    "ApplyConfig",
    "BenchConfig",
    "ChatConfig",
    "Config",
    "ConvertConfig",
    "DataConfig",
    "DemoConfig",
    "DiagnoseConfig",
    "EvaluateConfig",
    "LmEvalPathConfig",
    "Positional",
    "ProbeConfig",
    "RestoreConfig",
    "RunConfig",
    "Stage",
    "TuneConfig",
    "build",
    "example_of",
    "fields_of",
    "is_positional",
    "option_name",
    "read_yaml",
    "stage_of",
]
