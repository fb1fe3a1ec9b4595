"""What the machine did while a model trained: load, memory, temperature, throttling, power and energy.

`SystemMonitor` samples from a thread between `start()` and `stop()`; `GPUMonitor` does the same for the GPU alone;
`monitor_stream` writes one line per sample to a CSV file; `read_heat` reads the sensors once. Two rules hold everywhere in this
room: what was not measured is None (never 0, and the reason is kept), and nothing that goes wrong here reaches the training.
It imports no torch.
"""

from vitfp8.monitor.apple import parse_pmset
from vitfp8.monitor.gpu import GPUMonitor
from vitfp8.monitor.heat import Heat, read_heat
from vitfp8.monitor.machine import SystemMonitor
from vitfp8.monitor.powermetrics import parse_powermetrics
from vitfp8.monitor.stream import monitor_stream

__all__ = ["GPUMonitor", "Heat", "SystemMonitor", "monitor_stream", "parse_pmset", "parse_powermetrics", "read_heat"]
