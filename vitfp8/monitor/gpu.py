"""The GPU of this machine: NVIDIA by NVML, Apple by its energy counters or, on request, ``powermetrics``; nothing elsewhere."""

from __future__ import annotations

import logging
import platform

from vitfp8.monitor.apple import AppleEnergyProbe
from vitfp8.monitor.nvidia import NVMLProbe
from vitfp8.monitor.powermetrics import PowermetricsProbe
from vitfp8.monitor.probes import GPU_COLUMNS, Probe, Row, UnavailableError, say_once
from vitfp8.monitor.sampling import Monitor


class GPUProbe(Probe):
    """The first way of asking a GPU that works on this machine.

    Args:
        interval: seconds between samples (``powermetrics`` samples by itself).
        device_index: NVIDIA device, as CUDA counts.
        powermetrics: ask Apple's tool, which needs sudo.
    """

    name = "gpu"
    columns = GPU_COLUMNS
    optional = True

    def __init__(self, *, interval: float, device_index: int, powermetrics: bool) -> None:
        super().__init__()
        self._ways: list[Probe] = [PowermetricsProbe(interval)] if powermetrics else []
        self._ways.append(AppleEnergyProbe() if platform.system() == "Darwin" else NVMLProbe(device_index))
        self._way: Probe | None = None

    def open(self) -> None:
        """Open the first way that works; `UnavailableError` with every way's reason where none does."""
        reasons: dict[str, str] = {}
        for way in self._ways:
            try:
                way.open()
            except UnavailableError as error:
                reasons[way.name] = str(error)
                if way is not self._ways[-1]:  # the user asked for it
                    say_once(str(error), logging.WARNING)
                continue
            self._way, self.facts = way, way.facts
            missing = [column for column in self.columns if column not in way.columns]
            self.unavailable = reasons | dict.fromkeys(missing, f"{way.name} does not tell")
            return
        raise UnavailableError("; ".join(reasons.values()))

    def read(self) -> Row:
        """What the way tells."""
        assert self._way is not None
        row = self._way.read()
        self.energy = self._way.energy
        self.unavailable |= self._way.unavailable
        return row

    def close(self) -> None:
        """Close the way."""
        if self._way is not None:
            self._way.close()


class GPUMonitor(Monitor):
    """Samples the GPU alone, from a thread; `SystemMonitor` has the same columns beside those of the machine.

    Where no GPU can be asked, the samples have no column but ``seconds``, and ``summary()["unavailable"]["gpu"]``
    says why.

    Args:
        interval: seconds between samples, above 0.
        device_index: which NVIDIA device, as CUDA counts within ``CUDA_VISIBLE_DEVICES``: the one trained on.
        powermetrics: on a Mac, run ``sudo -n powermetrics``, which tells utilisation, power and thermal pressure;
            without it only the power of Apple silicon is known. Nothing ever asks for a password.
        max_samples: the most samples kept (see `Monitor`).

    Raises:
        InputError: when interval or max_samples is out of range.
    """

    def __init__(
        self, interval: float = 1.0, *, device_index: int = 0, powermetrics: bool = False, max_samples: int = 2000
    ) -> None:
        super().__init__(interval, max_samples=max_samples)
        self.device_index = device_index
        self.powermetrics = powermetrics

    def _probes(self) -> list[Probe]:
        """The GPU."""
        return [GPUProbe(interval=self.interval, device_index=self.device_index, powermetrics=self.powermetrics)]
