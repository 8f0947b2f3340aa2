"""The models that the project ships, and the programs that made and judge them."""
