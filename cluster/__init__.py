"""Where experiments run: hosts of one machine, clusters, and the services beside them. The top layer: nothing imports it."""
