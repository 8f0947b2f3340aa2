"""Engines behind one contract: the only place that knows SGLang and torch."""
