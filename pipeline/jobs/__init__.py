"""Jobs on a cluster: what is sent, under which id, and what the job server answers. Only `server` talks to Ray."""
