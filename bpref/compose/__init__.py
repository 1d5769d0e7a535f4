"""Combinators: layers in, a layer out. None of them looks into `dparams`."""

from bpref.compose.channels_first import channels_first
from bpref.compose.direct_feedback import direct_feedback
from bpref.compose.fan_out import fan_out
from bpref.compose.fit_memory import MemoryPlan, fit_memory
from bpref.compose.fixed_point import fixed_point
from bpref.compose.neural_ode import neural_ode
from bpref.compose.objective import objective
from bpref.compose.offload import offload
from bpref.compose.parallel import parallel
from bpref.compose.pipeline import pipeline
from bpref.compose.pipeline_objective import pipeline_objective
from bpref.compose.reading import reading
from bpref.compose.remat import remat
from bpref.compose.residual import residual
from bpref.compose.reversible import reversible
from bpref.compose.root import root
from bpref.compose.scan import scan
from bpref.compose.schedules import Schedule, pipeline_schedule
from bpref.compose.serial import serial
from bpref.compose.shared import shared
from bpref.compose.split import Later, backward_params, split_backward
from bpref.compose.target_propagation import target_propagation
from bpref.compose.unbatched import unbatched

__all__ = [
    "Later",
    "MemoryPlan",
    "Schedule",
    "backward_params",
    "channels_first",
    "direct_feedback",
    "fan_out",
    "fit_memory",
    "fixed_point",
    "neural_ode",
    "objective",
    "offload",
    "parallel",
    "pipeline",
    "pipeline_objective",
    "pipeline_schedule",
    "reading",
    "remat",
    "residual",
    "reversible",
    "root",
    "scan",
    "serial",
    "shared",
    "split_backward",
    "target_propagation",
    "unbatched",
]
