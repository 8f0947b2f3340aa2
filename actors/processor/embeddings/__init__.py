"""The processor's side of embeddings: from texts to parts, from parts to encoders, and from vectors to answers."""
