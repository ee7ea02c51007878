"""The rooms that speak HTTP: the app's resources, the health endpoints, and errors as JSON."""
