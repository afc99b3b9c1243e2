"""The compared proxies: their configurations, and their processes with one worker each."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SIDECAR = pathlib.Path(os.environ.get("HEARTBEAT_SIDECAR_TEST_BINARY", REPOSITORY / "target/release/heartbeat-sidecar"))
LOAD = REPOSITORY / "target/benches/release/load"

# A process with 20,000 file descriptors can hold 10,000 sessions of two each; this leaves a reserve.
MAX_CONNECTIONS = 9400

HAPROXY = """
global
  nbthread 1
  maxconn {connections}
  maxpipes 400
  {tuning}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  {options}
frontend browsers
  bind 127.0.0.1:{port}
  default_backend app
backend app
  option http-server-close
  server app 127.0.0.1:{upstream}
"""

NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 19900; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_set_header Host $http_host;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
      {tuning}
    }}
  }}
}}
"""


def envoy_config(port, upstream):
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "browsers",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}]}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }
    limits = {"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}
    address = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return json.dumps({"static_resources": {
        "listeners": [{"address": address(port), "filter_chains": [
            {"filters": [{"name": "http", "typed_config": manager}]}]}],
        "clusters": [{"name": "app", "type": "STATIC", "connect_timeout": "5s",
                      "circuit_breakers": {"thresholds": [limits]},
                      "load_assignment": {"cluster_name": "app", "endpoints": [
                          {"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]}}]}})


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Proxy:
    """A running proxy: the address for browsers, and the process to measure."""

    def __init__(self, kind, address, process):
        self.kind, self.address, self.process = kind, address, process
        self.watched = process.pid

    def load(self, command, *arguments, path):
        if self.kind.endswith("-resume"):
            path += ("&" if "?" in path else "?") + "_heartbeat=.resume"
        return load(self.kind, command, "--at", self.address, "--watch", self.watched, "--path", path, *arguments)


CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE, PROXY_CORE = CORES[0], CORES[-1]


def pin(core):
    return lambda: os.sched_setaffinity(0, {core})


def load(target, command, *arguments):
    """Runs one load; returns its measurements."""
    line = [str(word) for word in [LOAD, command, *arguments]]
    done = subprocess.run(line, stdout=subprocess.PIPE, preexec_fn=pin(LOAD_CORE))
    if done.returncode != 0:
        raise RuntimeError(f"{target}: {command} {arguments} failed")
    return json.loads(done.stdout)


def command(kind, port, upstream, directory):
    """The command line of a proxy, and its environment variables. `sidecar@FILE` is another build of the sidecar."""
    family, _, form = kind.partition("-")
    kind, _, binary = kind.partition("@")
    if kind == "sidecar" or family == "sidecar":
        line = [binary or SIDECAR, "run", "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0",
                "--upstream", f"http://127.0.0.1:{upstream}"]
        if form == "connection":
            line += ["--heartbeat-proof", "connection"]
        if form == "resume":
            line += ["--watchdog", "self"]
        return line, {"TOKIO_WORKER_THREADS": "1"}
    config = directory / f"{kind}.conf"
    values = {"port": port, "upstream": upstream, "directory": directory, "connections": MAX_CONNECTIONS}
    tuned = form == "tuned"
    if family == "haproxy":
        tuning = {"tuned": "tune.bufsize 65536", "logged": "log stderr format raw local0"}
        options = {"tuned": "option splice-auto", "logged": "log global\n  option httplog"}
        values |= {"tuning": tuning.get(form, ""), "options": options.get(form, "")}
        config.write_text(HAPROXY.format(**values))
        return ["haproxy", "-db", "-f", config], {}
    if family == "nginx":
        values["tuning"] = "proxy_buffer_size 64k; proxy_buffers 8 64k;" if tuned else ""
        config.write_text(NGINX.format(**values))
        return ["nginx", "-c", config], {}
    assert family == "envoy", kind
    config.write_text(envoy_config(port, upstream))
    return [os.environ["HEARTBEAT_SIDECAR_BENCH_ENVOY"], "-c", config, "--concurrency", "1", "-l", "error",
            "--use-dynamic-base-id", "--disable-hot-restart"], {}


@contextlib.contextmanager
def running(kind, upstream, directory):
    """A proxy that accepts connections; stopped at the end of the block."""
    port = free_port()
    line, environment = command(kind, port, upstream.port, directory)
    name = directory / f"{kind.replace('/', '-')}.log"
    with open(name, "ab") as log:
        process = subprocess.Popen([str(word) for word in line], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   env=os.environ | environment, preexec_fn=pin(PROXY_CORE), start_new_session=True)
    try:
        proxy = Proxy(kind, f"127.0.0.1:{port}", process)
        wait_for(port, process, name)
        if kind.startswith("nginx"):
            proxy.watched = only_child(process.pid)
        yield proxy
    finally:
        end(process)


class App:
    """The app server of `load serve`, which `direct` measures without a proxy."""

    kind = "direct"

    def __init__(self, process, address):
        self.process, self.address, self.watched = process, address, process.pid
        self.port = int(address.rpartition(":")[2])

    load = Proxy.load


@contextlib.contextmanager
def app():
    process = subprocess.Popen([str(LOAD), "serve"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                               preexec_fn=pin(LOAD_CORE), start_new_session=True)
    try:
        yield App(process, process.stdout.readline().strip())
    finally:
        end(process)


def wait_for(port, process, log):
    for _attempt in range(500):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args[0]} does not listen")


def only_child(pid):
    """The worker process, which starts shortly after the socket listens."""
    for _attempt in range(500):
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.02)
    raise RuntimeError(f"process {pid} has no worker")


def end(process):
    """Kills the process group. SIGKILL, because the sidecar would drain on SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def versions():
    """The versions of the compared programs."""
    def first(line, pattern):
        done = subprocess.run([str(word) for word in line], capture_output=True, text=True)
        return re.search(pattern, done.stdout + done.stderr).group(1)
    return {
        "sidecar": first([SIDECAR, "--version"], r"(\d\S+)"),
        "haproxy": first(["haproxy", "-v"], r"version (\d+\.\d+\.\d+)"),
        "nginx": first(["nginx", "-v"], r"nginx/(\S+)"),
        "envoy": first([os.environ["HEARTBEAT_SIDECAR_BENCH_ENVOY"], "--version"], r"/(\d+\.\d+\.\d+)"),
        "kernel": os.uname().release,
    }
