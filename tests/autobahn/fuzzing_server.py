"""Autobahn|Testsuite's fuzzing server (Python 2.7) on a free port. Its paths may end like an app's message stream.

It selects Streamlit's subprotocol if the client offers it.

Arguments: the directory for its reports, the patterns of cases to run, `--not`, the patterns of cases to exclude.
"""

import sys

from autobahntestsuite.fuzzing import FuzzingServerFactory, FuzzingServerProtocol
from twisted.internet import reactor

# The sidecar taps websockets whose path ends like this, if both sides agree on the subprotocol.
STREAM = "/_stcore/stream"
SUBPROTOCOL = u"streamlit"


class StreamProtocol(FuzzingServerProtocol):
    def onConnect(self, request):
        if request.path.endswith(STREAM):
            request.path = request.path[: -len(STREAM)]
        FuzzingServerProtocol.onConnect(self, request)
        return SUBPROTOCOL if SUBPROTOCOL in request.protocols else None


def main(outdir, *patterns):
    split = patterns.index("--not")
    cases, excluded = list(patterns[:split]), list(patterns[split + 1 :])
    spec = {"url": "ws://127.0.0.1:1", "outdir": outdir, "cases": cases, "exclude-cases": excluded}
    spec["exclude-agent-cases"] = {}
    factory = FuzzingServerFactory(spec)
    factory.protocol = StreamProtocol
    # The sidecar forwards `Host` unchanged, so it has the sidecar's port. `None` disables the check of the port.
    factory.externalPort = None
    port = reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port
    print("listening on 127.0.0.1:%d" % port)
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
