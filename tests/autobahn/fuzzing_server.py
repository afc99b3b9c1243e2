"""Autobahn|Testsuite's fuzzing server (Python 2.7) under paths that end as an app's message stream, on a free port.

It selects Streamlit's subprotocol where that is offered.

Its arguments: the directory for its reports, then the patterns of cases to run, then `--not` and those to leave out.
"""

import sys

from autobahntestsuite.fuzzing import FuzzingServerFactory, FuzzingServerProtocol
from twisted.internet import reactor

# The sidecar taps websockets under paths that end so, if both sides agree on the subprotocol.
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
    # Browsers name the sidecar's port in `Host`, which the sidecar keeps.
    factory.externalPort = None
    port = reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port
    print("listening on 127.0.0.1:%d" % port)
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
