"""The processes that serve: processors in front, GPU actors with their engines behind."""
