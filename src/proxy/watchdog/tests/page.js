// A page with the script, as the tests of the socket use it.

const URL_OF_APP = "ws://app.test/base/_stcore/stream";
const SECRET = "5".repeat(48);
const GREETING = `_heartbeat resumable ${SECRET} 1000 60000`;
const HEARTBEAT = new Uint8Array([0x88, 1, 1]);
const ACK = bytes(0x52, 0, 0xd0, 1, 1);

function bytes(...values) {
  return new Uint8Array(values).buffer;
}

// A socket of the frontend, and all its events.
function connect(protocols = ["streamlit", "xsrf"]) {
  const socket = new window.WebSocket(URL_OF_APP, protocols);
  const events = [];
  socket.binaryType = "arraybuffer";
  for (const type of ["open", "message", "error", "close"]) {
    socket.addEventListener(type, ({ data, code, wasClean }) => events.push([type, data ?? code, wasClean].filter((x) => x !== undefined)));
  }
  return { socket, events };
}

// The same, open; with the first message of the sidecar or the app.
function connected(first, dataset) {
  install(dataset);
  const connection = connect();
  const [leg] = sockets;
  leg.open();
  leg.receive(first);
  connection.events.length = 0;
  return { ...connection, leg };
}

function live(dataset) {
  return connected(GREETING, dataset);
}

// The newest leg, opened, resumes.
function resume(received = 0) {
  const leg = sockets.at(-1);
  leg.open();
  leg.receive(`_heartbeat resumed ${received}`);
  return leg;
}

const CHECK = (count) => `_heartbeat received ${count}`;
