"""A TCP proxy between one worker and the broker that can cut, slow down or silence its connections."""

import asyncio
import contextlib
from typing import Literal

from streams.embedded.probe import HOST, free_port

Mode = Literal["pass", "cut", "delay", "blackhole"]
CHUNK_BYTES = 1 << 16


class Proxy:
    """Listens on a port of its own and passes everything on to ``target_port``.

    Modes: ``pass``; ``cut`` (connections are reset, new ones refused); ``delay`` (every piece waits for
    ``delay_s``); ``blackhole`` (connections stay open, nothing comes through until the mode changes, then
    everything that was held does).
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port(but=target_port)
        self._target_port = target_port
        self._mode: Mode = "pass"
        self._delay_s = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, HOST, self.port)

    async def stop(self) -> None:
        """Cut everything and end."""
        self.set("cut")
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        await asyncio.gather(*self._serving)

    def set(self, mode: Mode, *, delay_s: float = 0.0) -> None:
        """Change the mode for connections old and new."""
        self._mode, self._delay_s = mode, delay_s
        if mode == "blackhole":
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode == "cut":
            for writer in list(self._writers):
                writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "cut":
            writer.transport.abort()
            return
        try:
            out_reader, out_writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, out_writer)
        self._writers.update(pair)
        try:
            await asyncio.gather(self._pump(reader, out_writer), self._pump(out_reader, writer))
        finally:
            for each in pair:
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                if self._mode == "delay":
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
