"""``leave_former_store``: how processes that torchrun has restarted find each other."""

from __future__ import annotations

import os
import socket

from torch.distributed import TCPStore

SHARED = "TORCHELASTIC_USE_AGENT_STORE"


def leave_former_store() -> None:
    """After a restart by torchrun, choose another port, at which the main process will serve a new store.

    torchrun keeps one store for all attempts. It holds the addresses of the processes that have died, and those that
    come too early connect to them (gloo: "connection refused"). The new port is agreed on in that store.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get(SHARED) != "True":
        return
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"preconditioned_attention/port/{attempt}"
    if os.environ["RANK"] == "0":
        store.set(key, str(_free_port()))
    os.environ["MASTER_PORT"] = store.get(key).decode()
    os.environ[SHARED] = "False"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
