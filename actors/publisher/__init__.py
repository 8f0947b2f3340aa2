"""The publisher: what a host's engines hold and how loaded they are, on NATS and for Prometheus."""
