"""What the machine did while a model trained: load, memory, temperature, throttling, power and energy.

`SystemMonitor` samples from a thread between `start()` and `stop()`; `GPUMonitor` does the same for the GPU alone;
`monitor_stream` writes a sample a line into a CSV file; `read_heat` looks once. Two rules hold everywhere in this package:
what was not measured is None (never 0, and the reason is kept), and nothing that goes wrong here reaches the training.
It imports no torch.
"""

from vitfp8.monitor.apple import parse_pmset, parse_powermetrics
from vitfp8.monitor.heat import Heat, read_heat
from vitfp8.monitor.machine import SystemMonitor, monitor_stream
from vitfp8.monitor.nvidia import GPUMonitor

__all__ = ["GPUMonitor", "Heat", "SystemMonitor", "monitor_stream", "parse_pmset", "parse_powermetrics", "read_heat"]
