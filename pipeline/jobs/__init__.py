"""Jobs on a cluster: what is sent there, by which name, and what the job server is asked. Only `server` talks to Ray."""
