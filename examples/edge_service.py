"""A web service that asks the edge client which button to show, and reports what it showed.

Run it beside a broker and a worker::

    bandit-streams topics create
    bandit-streams experiments apply examples/checkout-button.yaml
    python examples/edge_service.py

Then ``GET /button?visitor=v-17&country=ch`` answers with the arm, and ``POST /order?visitor=v-17`` reports an
order. Addresses and topic names are the product's settings (``BANDIT_BOOTSTRAP_SERVERS`` and so on).
"""

from collections.abc import AsyncIterator

from aiohttp import web

from streams.config import load_settings
from streams.edge import EdgeClient

EXPERIMENT_ID = "checkout-button"
EDGE = web.AppKey("edge", EdgeClient)


async def edge_client(app: web.Application) -> AsyncIterator[None]:
    """Start the client with the service, and send what is queued when it stops."""
    async with EdgeClient(load_settings(), client_id="checkout-service") as edge:
        app[EDGE] = edge
        yield


async def show_button(request: web.Request) -> web.Response:
    """Decide, report that it is shown, and answer; nothing here waits for Kafka."""
    edge = request.app[EDGE]
    visitor = request.query["visitor"]
    context = {"country": request.query.get("country", "other")}
    decision = edge.decide(EXPERIMENT_ID, visitor, context, default_arm="grey")
    edge.expose(decision)
    return web.json_response({"arm": decision.arm_id, "reason": decision.reason})


async def take_order(request: web.Request) -> web.Response:
    """Report an order; the worker knows which button the visitor saw."""
    request.app[EDGE].convert(request.query["visitor"], "order")
    return web.json_response({"status": "taken"})


async def health(request: web.Request) -> web.Response:
    """Show the client's figures: how old the allocations are, and whether events were lost."""
    figures = request.app[EDGE].statistics()
    lost = figures.events.dropped + figures.events.failed
    return web.json_response({"allocation_age_ms": figures.allocation_age_ms, "events_lost": lost})


def make_app() -> web.Application:
    """Make the service."""
    app = web.Application()
    app.cleanup_ctx.append(edge_client)
    app.router.add_get("/button", show_button)
    app.router.add_post("/order", take_order)
    app.router.add_get("/health", health)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), port=8090)
