"""The Ray Serve deployments; each wraps one port of `serve.ports` and adds nothing to its logic."""
