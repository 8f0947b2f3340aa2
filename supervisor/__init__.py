"""Watches over a cluster: starts the actors, opens the gate when all are ready, starts again what dies."""
