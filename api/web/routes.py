"""What the app answers: its resources, the health endpoints, and what surrounds every request."""

from __future__ import annotations

from flask import Flask

from api.settings import Settings
from api.web.connections import connections
from api.web.costs import costs
from api.web.errors import answer_errors_as_json
from api.web.ops import health_endpoints
from api.web.requests import surround_requests
from api.web.tasks import tasks

BODY_MAX_BYTES = 1_000_000


def serve(app: Flask, settings: Settings) -> None:
    """Give *app* everything that speaks HTTP."""
    app.config["MAX_CONTENT_LENGTH"] = BODY_MAX_BYTES
    surround_requests(app, settings)
    answer_errors_as_json(app, settings)
    for blueprint in (tasks, costs, connections, health_endpoints(settings)):
        app.register_blueprint(blueprint)
