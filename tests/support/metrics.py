"""Parses the Prometheus text format, as far as the tests need it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Metrics:
    samples: list[Sample]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        found = [_SAMPLE.match(line) for line in text.splitlines() if line and not line.startswith("#")]
        return cls([Sample(m["name"], dict(_LABEL.findall(m["labels"] or "")), float(m["value"])) for m in found if m])

    def value(self, name: str, **labels: str) -> float:
        """The sum over the series of `name` with all these `labels`. Fails if there is no such series."""
        name = f"heartbeat_sidecar_{name}"
        of_name = [sample for sample in self.samples if sample.name == name]
        matching = [sample.value for sample in of_name if labels.items() <= sample.labels.items()]
        assert matching, f"no series {name}{labels}; there are {[sample.labels for sample in of_name]}"
        return sum(matching)
