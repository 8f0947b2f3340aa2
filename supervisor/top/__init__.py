"""`troupe top`: a cluster watched live in a terminal. What is known, what is shown and the terminal are apart."""
