// The socket that the frontend sees, and connections that end with their leg. All of the served script runs.

test("the frontend sees a WebSocket", () => {
  install();
  const { socket, events } = connect();
  equal([socket instanceof WebSocket, socket instanceof window.WebSocket], [true, true]);
  equal([socket.readyState, socket.protocol, socket.extensions, socket.bufferedAmount], [0, "", "", 0]);
  equal([socket.url, socket.CLOSED, window.WebSocket.OPEN], [URL_OF_APP, 3, 1]);
  sockets[0].open();
  equal([socket.readyState, socket.protocol, events], [1, "streamlit", [["open"]]]);
  sockets[0].end(1000);
  equal([socket.readyState, events.at(-1)], [3, ["close", 1000, true]]);
});

test("only the websocket of Streamlit's messages is wrapped", () => {
  install();
  for (const [url, protocols] of [["ws://app.test/_stcore/stream", undefined], ["ws://app.test/_stcore/stream", ["other"]], ["ws://app.test/_stcore/streams", ["streamlit"]]]) {
    equal(new window.WebSocket(url, protocols) === sockets.at(-1), true, url);
  }
  equal(sockets.map(({ url }) => url.includes("_heartbeat")), [false, false, false]);
});

test("handlers and listeners are called in the order in which they were set", () => {
  install();
  const { socket } = connect();
  const calls = [];
  equal(socket.onopen, null);
  socket.onopen = () => calls.push("replaced");
  socket.addEventListener("open", () => calls.push("listener"));
  socket.onopen = function () {
    calls.push(this === socket ? "handler" : "other this");
  };
  socket.onclose = () => calls.push("removed");
  socket.onclose = null;
  sockets[0].open();
  sockets[0].end(1000);
  equal(calls, ["handler", "listener"]);
});

test("binary data come as the frontend requested them", () => {
  const { socket, events, leg } = live();
  leg.receive(bytes(1));
  socket.binaryType = "blob";
  socket.binaryType = "invalid";
  leg.receive(bytes(2, 3));
  leg.receive("text");
  equal(events[0], ["message", bytes(1)]);
  equal([events[1][1] instanceof Blob, events[1][1].size], [true, 2]);
  equal(events[2], ["message", "text"]);
});

test("a socket that is not open throws on send, a closed one ignores it", () => {
  install();
  const { socket, events } = connect();
  let error;
  try {
    socket.send("x");
  } catch (thrown) {
    error = thrown;
  }
  equal(error?.message, "InvalidStateError");
  sockets[0].open();
  sockets[0].end(1000);
  socket.send("x");
  socket.close();
  equal([sockets[0].sent, events.length], [[], 2]);
});

test("a plain leg: heartbeats follow the first message and each interval", async () => {
  const { leg, events } = connected(bytes(1));
  equal(leg.sent, [HEARTBEAT]);
  await advance(20_000);
  equal(leg.sent, [HEARTBEAT, HEARTBEAT, HEARTBEAT]);
  equal(events, []);
});

test("a plain leg whose ack stays out is given up and reported closed in time", async () => {
  const { socket, leg, events } = connected(ACK);
  await advance(2999);
  equal(requests.length, 0);
  await advance(1);
  equal(/^http:\/\/app\.test\/base\/_heartbeat\/alive\?socket=[0-9a-f]{32}&wait=1250$/.test(requests[0].url), true);
  await advance(2000);
  equal([events, requests.slice(1).map(({ method }) => method)], [[], Array(6).fill("HEAD")]);
  await advance(200);
  equal([events, leg.closed, socket.readyState], [[["close", 1006, false]], [4000], 3]);
  leg.receive(bytes(1));
  leg.end();
  equal(events.length, 1);
  equal(requests.every(({ signal }) => signal.aborted), true);
  const second = connect();
  equal(sockets[1].url.endsWith(".watchdog.resume"), true);
  sockets[1].open();
  sockets[1].end();
  equal(second.events.length, 3);
  connect();
  equal(sockets[2].url.endsWith(".watchdog.resume"), false, "the second was not dead");
});

test("a plain leg that closes while it is given up closes once", async () => {
  const { leg, events } = connected(ACK);
  await advance(5100);
  leg.end();
  await advance(1000);
  equal(events, [["error"], ["close", 1006, false]]);
});

test("an ack that overtakes the sidecar's response ends the wait", async () => {
  let respond;
  answerRequest = () => new Promise((resolve) => (respond = resolve));
  const { leg, events } = connected(ACK, { interval: "1000000000" });
  await advance(3500);
  leg.receive(ACK);
  respond({ ok: true, text: async () => "progress\n" });
  await advance(60_000);
  equal(events.filter(([type]) => type === "close"), []);
});

test("a plain leg over which bytes still arrive is kept", async () => {
  answerRequest = async () => ({ ok: true, text: async () => "progress\n" });
  const { events } = connected(ACK);
  await advance(60_000);
  equal(events, []);
});

test("a plain leg is kept if the page has never received an ack", async () => {
  const { events } = connected(bytes(1));
  await advance(60_000);
  equal(events, []);
});

test("a plain leg whose heartbeats are acked is kept", async () => {
  const { leg, events } = connected(ACK);
  for (let n = 0; n < 10; n++) {
    leg.receive(ACK);
    await advance(10_000);
  }
  equal(events.filter(([type]) => type !== "message"), []);
});

test("a page that reconnected without acks stays with its second connection", async () => {
  connected(ACK);
  await advance(5200);
  const { events } = connect();
  sockets[1].open();
  sockets[1].receive(bytes(1));
  await advance(5200);
  equal(events.at(-1), ["close", 1006, false], "the connection before had received an ack");
  const third = connect();
  sockets[2].open();
  sockets[2].receive(bytes(1));
  await advance(60_000);
  equal(third.events.at(-1)[0], "message");
});

test("in mode host only the host's heartbeats start the timer, with the host's timeout", async () => {
  const { socket, leg, events } = connected(ACK, { mode: "host" });
  await advance(60_000);
  equal(leg.sent, []);
  socket.send(HEARTBEAT);
  await advance(60_000);
  equal(events, [], "without a timeout");
  const request = { stCommVersion: 1, type: "SEND_APP_HEARTBEAT", ackTimeoutMilliseconds: 2000 };
  for (const data of [undefined, { ...request, type: "OTHER" }, { ...request, stCommVersion: 2 }]) {
    window.dispatchEvent(new MessageEvent("message", { data }));
    socket.send(HEARTBEAT);
    await advance(60_000);
    equal(events, [], "not a request");
  }
  window.dispatchEvent(new MessageEvent("message", { data: request }));
  socket.send(HEARTBEAT);
  await advance(2200);
  equal(events, [["close", 1006, false]]);
});

test("a plain leg's errors and closes pass as they are", () => {
  const { leg, events } = connected(bytes(1));
  leg.end(1006);
  equal(events, [["error"], ["close", 1006, false]]);
  equal(sockets.length, 1);
});

test("a leg that dies before its first message is the end", () => {
  install();
  const { events } = connect();
  sockets[0].end();
  equal(events, [["error"], ["close", 1006, false]]);
});
