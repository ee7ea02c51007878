"""The app's resources: what goes in comes out, and what is wrong is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from api.db.connection import DB
from api.db.models import PlatformConnection

if TYPE_CHECKING:
    from app_fixtures import BuildApp

pytest_plugins = ("app_fixtures",)

SECRET = "hunter2"


def new_task(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    """Create a task and return it as the app described it."""
    response = client.post("/tasks", json={"title": "a task"} | fields)
    assert response.status_code == 201
    return dict(response.get_json())


def new_cost(client: FlaskClient, task: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Create a cost record of *task* and return it."""
    response = client.post("/costs", json={"task_id": task["id"], "agent_type": "planner"} | fields)
    assert response.status_code == 201
    return dict(response.get_json())


def test_a_task_comes_back_as_it_was_stored(client: FlaskClient) -> None:
    """Every field survives the way to the server and back, non-ASCII text and order of resources included."""
    created = client.post(
        "/tasks",
        json={"title": "Żółć 🦆", "status": "running", "priority": -3, "risk_level": "high", "resources": ["b", "a"]},
    )
    shown = client.get(created.headers["Location"]).get_json()

    assert shown == created.get_json()
    assert (shown["title"], shown["status"], shown["priority"]) == ("Żółć 🦆", "running", -3)
    assert (shown["risk_level"], shown["resources"]) == ("high", ["b", "a"])
    assert shown["created_at"].endswith("+00:00")


def test_a_list_is_paged_newest_first(client: FlaskClient) -> None:
    """Pages follow each other without a gap or a repeat."""
    ids = [new_task(client, title=str(number))["id"] for number in range(5)]

    pages = [client.get(f"/tasks?limit=2&offset={offset}").get_json()["tasks"] for offset in (0, 2, 4)]

    assert [task["id"] for page in pages for task in page] == ids[::-1]


def test_a_list_keeps_one_status(client: FlaskClient) -> None:
    """The filter returns those of that status only."""
    new_task(client)
    failed = new_task(client, status="failed")

    assert client.get("/tasks?status=failed").get_json() == {"tasks": [failed]}


def test_a_deleted_task_takes_its_logs_and_costs_with_it(client: FlaskClient) -> None:
    """The database deletes the children; a second delete finds nothing."""
    task = new_task(client)
    client.post(f"/tasks/{task['id']}/logs", json={"level": "info", "message": "begun"})
    new_cost(client, task)

    assert client.delete(f"/tasks/{task['id']}").status_code == 204
    assert client.delete(f"/tasks/{task['id']}").status_code == 404
    assert client.get(f"/tasks/{task['id']}/logs").status_code == 404
    assert client.get("/costs").get_json() == {"costs": []}


def test_a_log_line_keeps_its_requests_id(client: FlaskClient) -> None:
    """A task's log leads to the app's log."""
    path = f"/tasks/{new_task(client)['id']}/logs"
    client.post(path, json={"level": "error", "message": "x" * 16000}, headers={"X-Request-ID": "request-1"})

    # The task log's own thread may have written "task created" by now, under another request's id.
    lines = client.get(path).get_json()["logs"]
    (line,) = [each for each in lines if each["level"] == "error"]

    assert (line["level"], line["correlation_id"], len(line["message"])) == ("error", "request-1", 16000)


def test_costs_are_summed_without_losing_a_digit(client: FlaskClient) -> None:
    """Totals per task and agent are decimal strings: 0.1 and 0.2 make 0.3 on every engine."""
    task = new_task(client)
    for amount in ("0.1", "0.2", "0.000001"):
        new_cost(client, task, cost_usd=amount, tokens_in=10**12)
    new_cost(client, task, agent_type="coder", cost_usd="999999.999999")
    new_cost(client, new_task(client), cost_usd="5")

    totals = client.get(f"/costs/totals?task_id={task['id']}").get_json()["totals"]

    assert [(row["agent_type"], row["calls"], row["tokens_in"], row["cost_usd"]) for row in totals] == [
        ("coder", 1, 0, "999999.999999"),
        ("planner", 3, 3 * 10**12, "0.300001"),
    ]
    assert len(client.get("/costs/totals").get_json()["totals"]) == 3


def test_a_cost_of_no_task_is_a_conflict(client: FlaskClient) -> None:
    """The foreign key answers, not a query beforehand."""
    response = client.post("/costs", json={"task_id": str(uuid4()), "agent_type": "planner"})

    assert (response.status_code, response.get_json()["code"]) == (409, "CONFLICT")


def test_a_config_goes_in_and_never_out(client: FlaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    """No answer and no log line shows a config; the code that needs it opens it."""
    given = {"platform": "chat", "name": "main", "config": {"token": SECRET}}
    created = client.post("/connections", json=given)
    texts = [created.text, client.get(created.headers["Location"]).text, client.get("/connections").text]
    texts.append(client.post("/connections", json=given).text)
    texts.append(client.post("/connections", json={"config": {"token": SECRET}, "platform": 1}).text)

    assert set(created.get_json()) == {"id", "platform", "name", "is_active", "created_at"}
    assert SECRET not in "".join([*texts, capsys.readouterr().err])
    with DB.connection_context():
        assert PlatformConnection.get().get_config() == {"token": SECRET}


def test_a_connection_is_switched_off_and_its_config_replaced(client: FlaskClient) -> None:
    """One request rotates a credential; what it does not name stays."""
    created = client.post("/connections", json={"platform": "chat", "name": "main", "config": {"token": "old"}})
    changed = client.patch(created.headers["Location"], json={"is_active": False, "config": {"token": "new"}})

    assert changed.get_json() == created.get_json() | {"is_active": False}
    with DB.connection_context():
        assert PlatformConnection.get().get_config() == {"token": "new"}


def test_a_second_connection_of_the_same_name_is_a_conflict(client: FlaskClient) -> None:
    """A platform has one connection of a name."""
    given = {"platform": "chat", "name": "main", "config": {}}

    assert [client.post("/connections", json=given).status_code for _ in range(2)] == [201, 409]


def test_the_biggest_config_fits(client: FlaskClient) -> None:
    """What the check lets through, the column keeps: no engine cuts or refuses it."""
    config = {"key": "x" * (40_000 - len('{"key": ""}'))}

    assert client.post("/connections", json={"platform": "p", "name": "n", "config": config}).status_code == 201
    with DB.connection_context():
        assert PlatformConnection.get().get_config() == config


def test_without_a_key_a_config_is_refused_with_the_command_that_makes_one(build_app: BuildApp) -> None:
    """The app starts without keys; touching a config is the error, and nothing is stored in the clear."""
    client = build_app(encryption_keys="").test_client()
    response = client.post("/connections", json={"platform": "p", "name": "n", "config": {}})

    assert (response.status_code, response.get_json()["code"]) == (500, "CONF001")
    assert "Fernet.generate_key()" in response.get_json()["hint"]
    assert client.get("/connections").get_json() == {"connections": []}


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/tasks", {}, "'title' Field required"),
        ("/tasks", {"title": ""}, "'title' "),
        ("/tasks", {"title": "x" * 201}, "'title' "),
        ("/tasks", {"title": "a\0b"}, "'title' must not hold the character NUL"),
        ("/tasks", {"title": 5}, "'title' should be a valid string"),
        ("/tasks", {"title": "x", "titel": "x"}, "'titel' "),
        ("/tasks", {"title": "x", "status": "done"}, "'status' should be 'pending', 'running'"),
        ("/tasks", {"title": "x", "priority": 32768}, "'priority' "),
        ("/tasks", {"title": "x", "priority": True}, "'priority' "),
        ("/tasks", {"title": "x", "resources": [1]}, "'resources.0' "),
        ("/costs", {"task_id": "x", "agent_type": "a"}, "'task_id' should be a valid UUID"),
        ("/costs", {"task_id": str(uuid4()), "agent_type": "a", "cost_usd": "0.0000001"}, "'cost_usd' "),
        ("/costs", {"task_id": str(uuid4()), "agent_type": "a", "cost_usd": "-1"}, "'cost_usd' "),
        ("/costs", {"task_id": str(uuid4()), "agent_type": "a", "cost_usd": "NaN"}, "'cost_usd' "),
        ("/costs", {"task_id": str(uuid4()), "agent_type": "a", "tokens_in": -1}, "'tokens_in' "),
        ("/connections", {"platform": "p", "name": "n", "config": "x"}, "'config' should be an object"),
        ("/connections", {"platform": "p", "name": "n", "config": {"k": "x" * 40_000}}, "'config' should have at most"),
    ],
)
def test_a_wrong_field_is_named(client: FlaskClient, path: str, body: dict[str, Any], named: str) -> None:
    """What the database could not keep never reaches it: 400, with the field and the reason."""
    response = client.post(path, json=body)

    assert (response.status_code, response.get_json()["code"]) == (400, "EXEC001")
    assert named in response.get_json()["message"]


@pytest.mark.engines("sqlite")
@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "offset=-1", "offset=9999999999999999999", "limit=²"]
)
def test_a_page_has_limits(client: FlaskClient, query: str) -> None:
    """Nobody asks for the whole table at once, nor for a row before the first."""
    response = client.get(f"/tasks?{query}")

    assert response.status_code == 400
    assert f"'{query.partition('=')[0]}' should be a number" in response.get_json()["message"]


@pytest.mark.engines("sqlite")
def test_only_json_is_read(client: FlaskClient) -> None:
    """A form that another site posts is refused, and so is a body that is none."""
    assert client.post("/tasks", data='{"title": "x"}').status_code == 415
    assert client.post("/tasks", data="{", content_type="application/json").status_code == 400
    assert client.post("/tasks", data="x" * 1_000_001, content_type="application/json").status_code == 413
