"""How a request flows: context, ports, pipeline and the Ray Serve deployments that host its stages."""
