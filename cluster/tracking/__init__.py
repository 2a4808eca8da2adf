"""A tracking server of one's own: MLflow with authentication, on PostgreSQL and a folder of artifacts."""
