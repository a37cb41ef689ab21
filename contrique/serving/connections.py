"""How long a connection may wait for the headers of a request, and how many may be open: uvicorn limits neither.

Its `limit_concurrency` counts connections that are silent, and would send away those that are not.
"""

import asyncio
import resource
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from contrique.config import ServingLimits

_SHARE: Final = 0.5  # of all connections, for one address


def limit_connections(limits: ServingLimits) -> type[H11Protocol]:
    """uvicorn's protocol with limits of connections and of seconds for headers."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = limits.max_connections if descriptors < 0 else min(limits.max_connections, max(2, descriptors // 2))

    class LimitedProtocol(H11Protocol):
        """Closed if no whole headers come in time, or if it has no whole request and another needs its place."""

        _deadline: asyncio.TimerHandle | None = None
        _since = 0.0  # of the loop's clock, from which it has been without a request

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()
            peers = [peer for peer in self.connections if isinstance(peer, LimitedProtocol)]
            own = [peer for peer in peers if (peer.client or "")[:1] == (self.client or "")[:1]]
            if len(own) > most * _SHARE:
                self._make_room(own)
            elif len(peers) > most:
                self._make_room(peers)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_watching()

        def _has_request(self) -> bool:
            """Whether headers came, and their answer is not complete."""
            return self.cycle is not None and not self.cycle.response_complete

        def _watch(self) -> None:
            if self._has_request():
                self._stop_watching()
            elif self._deadline is None and not self.transport.is_closing():
                self._since = self.loop.time()
                self._deadline = self.loop.call_later(limits.header_seconds, self.transport.close)

        def _stop_watching(self) -> None:
            if self._deadline:
                self._deadline.cancel()
            self._deadline = None

        def _make_room(self, peers: "list[LimitedProtocol]") -> None:
            """Close the connection that has been without a whole request longest; this one if all have one."""
            others = [peer for peer in peers if peer is not self and not peer.transport.is_closing()]
            waiting = [peer for peer in others if not peer._has_request() or peer.cycle.more_body]
            min(waiting, key=lambda peer: peer._since, default=self).transport.close()

    return LimitedProtocol
