"""The configuration of a cluster: YAML into typed structs, with errors that say where, what and what would be right."""

from messages.config.cast import Http, Part, Restart, Spawn
from messages.config.checks import check
from messages.config.cluster import Cluster, Watch
from messages.config.host import Dashboard, Logs, Metrics, Publisher
from messages.config.model import Embedding, Limits, Model, Probe, Served, Simulated
from messages.config.nats import Nats, Tls, shown, without_secrets, wrong_url
from messages.config.reading import parse, read
from messages.config.slots import find_slot, slots_of
from messages.config.written import ConfigError

__all__ = [
    "Cluster",
    "ConfigError",
    "Dashboard",
    "Embedding",
    "Http",
    "Limits",
    "Logs",
    "Metrics",
    "Model",
    "Nats",
    "Part",
    "Probe",
    "Publisher",
    "Restart",
    "Served",
    "Simulated",
    "Spawn",
    "Tls",
    "Watch",
    "check",
    "find_slot",
    "parse",
    "read",
    "shown",
    "slots_of",
    "without_secrets",
    "wrong_url",
]
