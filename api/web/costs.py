"""What agents' calls cost, as JSON under ``/costs``; amounts are decimal strings in US dollars."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Annotated, Any

import peewee
from flask import Blueprint, request
from pydantic import Field

from api.db.models import CostRecord
from api.exceptions import ExecutionError
from api.web.inputs import Answer, Body, Text, Tokens, as_json, dollars, read_body, read_page

costs = Blueprint("costs", __name__, url_prefix="/costs")

SUMMED = (CostRecord.tokens_in, CostRecord.tokens_out, CostRecord.cost_usd)


class NewCost(Body):
    """What one call of an agent used and cost."""

    task_id: uuid.UUID
    agent_type: Annotated[str, *Text(64)]
    tokens_in: Tokens = 0
    tokens_out: Tokens = 0
    cost_usd: Decimal = Field(default=Decimal(0), ge=0, max_digits=12, decimal_places=6)


@costs.post("")
def create_cost() -> Answer:
    """Store a cost; 409 when there is no such task."""
    record = CostRecord.create(**read_body(NewCost).model_dump())
    return as_json(record, *CostRecord._meta.sorted_fields), 201


@costs.get("")
def list_costs() -> Answer:
    """List costs, the newest first; ``task_id`` keeps those of one task."""
    rows = read_page().of(_of_task(CostRecord.select()))
    return {"costs": [as_json(row, *CostRecord._meta.sorted_fields) for row in rows]}


@costs.get("/totals")
def list_totals() -> Answer:
    """List the sums per task and kind of agent, in their order; ``task_id`` keeps those of one task."""
    page = read_page()
    keys = (CostRecord.task, CostRecord.agent_type)
    sums = [peewee.fn.SUM(field).alias(field.name) for field in SUMMED]
    query = CostRecord.select(*keys, peewee.fn.COUNT(CostRecord.id).alias("calls"), *sums)
    rows = _of_task(query).group_by(*keys).order_by(*keys).limit(page.limit).offset(page.offset)
    return {"totals": [_total(row) for row in rows.dicts()]}


def _of_task(query: Any) -> Any:
    text = request.args.get("task_id")
    if text is None:
        return query
    try:
        return query.where(CostRecord.task == uuid.UUID(text))
    except ValueError:
        raise ExecutionError("'task_id' should be a UUID") from None


def _total(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "task_id": str(row["task"]),
        "agent_type": row["agent_type"],
        "calls": row["calls"],
        "tokens_in": int(row["tokens_in"]),
        "tokens_out": int(row["tokens_out"]),
        "cost_usd": dollars(row["cost_usd"]),
    }
