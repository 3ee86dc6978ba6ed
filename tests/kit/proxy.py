"""The bench's fault proxy under the name that tests use: cuts at a chosen byte, latency, narrow lanes, black holes.

Callers: the end-to-end tests and the browser's: ``async with fault_proxy(broker.port) as proxy``.
"""

from bench.fault_proxy import FaultProxy, fault_proxy, serving
from bench.faults import At, How, Lane

__all__ = ["At", "FaultProxy", "How", "Lane", "fault_proxy", "serving"]
