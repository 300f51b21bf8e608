"""A2A agents on the official Python SDK, each with a server of its own in a thread."""

import asyncio
import socket
import threading
from collections.abc import Callable

import uvicorn
from a2a.compat.v0_3.conversions import to_compat_agent_card
from a2a.helpers import new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.context import ServerCallContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, GetTaskRequest, Role, Task
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class Work(AgentExecutor):
    """Completes its tasks only after the caller has polled twice."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.polls = 0
        self.polled_twice = asyncio.Event()

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        task = new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        await self.polled_twice.wait()
        await updater.add_artifact([new_text_part(f"{self.name} has done: {context.get_user_input()}")])
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()

    def record_poll(self) -> None:
        self.polls += 1
        if self.polls == 2:
            self.polled_twice.set()


class Rejection(Work):
    """Rejects every task."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        task = new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.reject(new_text_message("not my kind of task", role=Role.ROLE_AGENT))


class Handler(DefaultRequestHandler):
    """Reports each poll to the agent's `Work`."""

    def __init__(self, work: Work, card: AgentCard) -> None:
        super().__init__(agent_executor=work, task_store=InMemoryTaskStore(), agent_card=card)
        self.work = work

    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task | None:
        self.work.record_poll()
        return await super().on_get_task(params, context)


class Agent:
    """An agent that listens as soon as it is created. Its id in the registry is made from its name."""

    def __init__(
        self, name: str, skill: AgentSkill, binding: str = "JSONRPC", version: str = "1.0", work: Callable[[str], Work] = Work,
    ) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.agent_id = name.lower().replace(" ", "-")
        path = "/" if binding == "JSONRPC" else "/v1"
        self.card = AgentCard(
            name=name,
            description=skill.description,
            version="1.0.0",
            supported_interfaces=[
                AgentInterface(url=self.url + path, protocol_binding=binding, protocol_version=version)
            ],
            capabilities=AgentCapabilities(streaming=True),
            default_input_modes=["text/plain"],
            default_output_modes=["text/plain"],
            skills=[skill],
        )
        self.work = work(name)
        handler = Handler(self.work, self.card)
        if binding == "JSONRPC":
            routes = create_jsonrpc_routes(handler, path, enable_v0_3_compat=version == "0.3")
        else:
            routes = create_rest_routes(handler, path_prefix=path)
        card_routes = create_agent_card_routes(self.card) if version == "1.0" else [self.old_card_route()]
        # `create_rest_routes` matches every path as a tenant, so the card's route comes first.
        app = Starlette(routes=[*card_routes, *routes])
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        threading.Thread(target=server.run, args=([listener],), daemon=True).start()

    def old_card_route(self) -> Route:
        """Returns the route of the card in the form of version 0.3, without the fields of 1.0."""
        card = to_compat_agent_card(self.card).model_dump(mode="json", by_alias=True, exclude_none=True)

        async def answer(_: Request) -> JSONResponse:
            return JSONResponse(card)

        return Route("/.well-known/agent-card.json", answer)
