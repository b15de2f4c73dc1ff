"""An allocator alone in a process, for tests that kill or pause it; settings come from the environment."""

import asyncio
import logging
import signal

from streams.allocator.service import AllocatorService
from streams.config import load_settings
from streams.experiments.view import ExperimentsView
from streams.metrics import Metrics


async def run() -> None:
    settings = load_settings()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    experiments = ExperimentsView(settings)
    await experiments.start()
    service = AllocatorService(settings, experiments, Metrics())
    try:
        async with service:
            await stop.wait()
    finally:
        await experiments.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(run())
