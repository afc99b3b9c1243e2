"""A real HAProxy or nginx in front of a sidecar, with the settings that cut websockets."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

from support import polling
from support.process import Process

_START_SECONDS = 10.0
_HAPROXY = """
global
  maxconn 1000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout tunnel {idle}s
listen app
  bind 127.0.0.1:{port}
  server sidecar {upstream}
"""
_NGINX = """
daemon off;
pid {directory}/pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_max_temp_file_size 0;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://{upstream};
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_read_timeout {idle}s;
      proxy_send_timeout {idle}s;
    }}
  }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
}}
"""
_CONFIGURATIONS = {"haproxy": _HAPROXY, "nginx": _NGINX}


class Balancer:
    """Listens on `address` until stopped, and cuts a websocket that is idle for `idle` seconds."""

    def __init__(self, program: str, upstream: str, idle: int) -> None:
        executable = shutil.which(program) or shutil.which(program, path="/usr/sbin")
        assert executable, f"{program} is missing: it comes with Debian's package of that name"
        self._directory = tempfile.TemporaryDirectory(prefix="heartbeat-sidecar-balancer-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        file = Path(self._directory.name) / "conf"
        file.write_text(
            _CONFIGURATIONS[program].format(idle=idle, port=port, upstream=upstream, directory=self._directory.name)
        )
        arguments = ["-f", str(file)] if program == "haproxy" else ["-c", str(file), "-e", "stderr"]
        self._process = Process(program, [executable, *arguments], os.environ)
        polling.wait_until(self._accepts, lambda: self._process.transcript(), _START_SECONDS)

    def _accepts(self) -> bool:
        host, port = self.address.split(":")
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0

    def stop(self) -> None:
        self._process.stop()
        self._directory.cleanup()
