from tests.cluster.site import site

__all__ = ["site"]
