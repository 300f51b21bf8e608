"""A straightforward agent registry with FastAPI, asyncpg and PostgreSQL, and one statement for each request.

    DATABASE_URL=postgres://… uvicorn app:app --workers 2 --no-access-log
"""

import json
import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Capability(BaseModel):
    name: str
    description: str = ""
    cost_estimate: str | None = None
    tags: list[str] = []


class Registration(BaseModel):
    agent_id: str
    agent_name: str
    base_url: str
    capabilities: list[Capability]


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=8, max_size=8) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


def record(row) -> dict:
    return dict(row) | {"capabilities": json.loads(row["capabilities"])}


async def one(statement: str, *arguments):
    row = await app.state.pool.fetchrow(statement, *arguments)
    if row is None:
        raise HTTPException(404)
    return row


@app.post("/register")
async def register(given: Registration):
    capabilities = json.dumps([capability.model_dump() for capability in given.capabilities])
    return record(await one(
        """INSERT INTO agent_registry (agent_id, agent_name, base_url, capabilities) VALUES ($1, $2, $3, $4)
           ON CONFLICT (agent_id) DO UPDATE SET agent_name = excluded.agent_name, base_url = excluded.base_url,
               status = 'active', capabilities = excluded.capabilities, last_heartbeat = now()
           RETURNING *""",
        given.agent_id, given.agent_name, given.base_url, capabilities,
    ))


@app.post("/agents/{agent_id}/heartbeat")
async def heartbeat(agent_id: str):
    return dict(await one(
        """UPDATE agent_registry SET last_heartbeat = now(),
               status = CASE status WHEN 'offline' THEN 'active' ELSE status END
           WHERE agent_id = $1 RETURNING agent_id, status, last_heartbeat""",
        agent_id,
    ))


@app.get("/agents")
async def agents(status: str | None = None):
    rows = await app.state.pool.fetch(
        "SELECT * FROM agent_registry WHERE $1::text IS NULL OR status = $1 ORDER BY agent_id", status
    )
    return [record(row) for row in rows]


@app.get("/agents/{agent_id}")
async def agent(agent_id: str):
    return record(await one("SELECT * FROM agent_registry WHERE agent_id = $1", agent_id))


@app.get("/capabilities/search")
async def search(q: str):
    rows = await app.state.pool.fetch(
        """SELECT agent_id, agent_name, base_url, status, capability ->> 'name' AS capability,
               capability ->> 'cost_estimate' AS cost_estimate
           FROM agent_registry, jsonb_array_elements(capabilities) AS capability
           WHERE capability ->> 'name' ILIKE $1 OR capability ->> 'description' ILIKE $1
               OR EXISTS (SELECT FROM jsonb_array_elements_text(capability -> 'tags') AS tag WHERE tag ILIKE $1)""",
        f"%{q}%",
    )
    return [dict(row) for row in rows]


@app.get("/health/{agent_id}")
async def health(agent_id: str):
    return dict(await one(
        """SELECT agent_id, last_heartbeat,
               CASE WHEN status <> 'offline' AND now() - last_heartbeat < interval '60 s'
                   THEN 'healthy' ELSE 'unhealthy' END AS status
           FROM agent_registry WHERE agent_id = $1""",
        agent_id,
    ))
