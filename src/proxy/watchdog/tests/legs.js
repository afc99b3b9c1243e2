// Resumable connections: the legs behind the socket that the frontend sees. All of the served script runs.

test("the tag offers resumption with a new token for each leg", () => {
  const { leg } = live();
  const pattern = /^ws:\/\/app\.test\/base\/_stcore\/stream\?_heartbeat=[0-9a-f]{32}\.resume$/;
  equal(pattern.test(leg.url), true, leg.url);
  leg.end();
  equal(pattern.test(sockets[1].url), true, sockets[1].url);
});

test("a lost leg is replaced at once and the frontend sees nothing", async () => {
  const { socket, events, leg } = live();
  socket.send(bytes(1));
  leg.receive(bytes(7));
  leg.end();
  socket.send(bytes(2));
  equal([socket.readyState, socket.bufferedAmount > 0], [1, true]);
  equal(sockets[1].given.protocols, ["streamlit", "xsrf", `resume.${SECRET}.1.1`]);
  sockets[1].open();
  equal(sockets[1].sent, [], "nothing before `resumed`");
  sockets[1].receive("_heartbeat resumed 0");
  equal(sockets[1].sent, [bytes(1), HEARTBEAT, bytes(2)]);
  sockets[1].receive(bytes(8));
  socket.send(bytes(3));
  equal(sockets[1].sent.slice(-2), [bytes(3), CHECK(2)]);
  await advance(4000);
  equal(sockets.length, 2, "it is not given up");
  equal(events, [["message", bytes(7)], ["message", bytes(8)]]);
  equal(socket.bufferedAmount, 0);
});

test("a replaced leg is lost", () => {
  const { leg } = live();
  leg.end(4001);
  equal(sockets.length, 2);
});

test("a lost leg's later events are ignored", async () => {
  const { events, leg } = live();
  await advance(15_000);
  equal([leg.closed, sockets.length], [[4000], 2]);
  leg.receive(bytes(1));
  leg.end(1000);
  resume();
  equal(events, []);
});

test("a leg that does not answer a message of the frontend is given up", async () => {
  const { socket, leg } = live();
  await advance(1000);
  socket.send(bytes(1));
  socket.send(bytes(2));
  equal(leg.sent, [bytes(1), CHECK(0), bytes(2)], "one check at a time");
  await advance(4999);
  equal(sockets.length, 1);
  await advance(1);
  equal([sockets.length, leg.closed], [2, [4000]]);
});

test("a live leg is checked each interval and given up if the answer stays out", async () => {
  const { leg, events } = live();
  await advance(10_000);
  equal(leg.sent, [CHECK(0)].concat([HEARTBEAT]));
  leg.receive(CHECK(1));
  await advance(10_000);
  equal(sockets.length, 1);
  await advance(4999);
  equal([sockets.length, requests.length], [1, 1]);
  await advance(1);
  equal([sockets.length, leg.closed, requests.length], [2, [4000], 7]);
  equal(events, []);
});

test("a live leg over which bytes still arrive is kept", async () => {
  answerRequest = async () => ({ ok: true, text: async () => "progress\n" });
  live();
  await advance(60_000);
  equal(sockets.length, 1);
});

test("acks of heartbeats do not decide about a live leg", async () => {
  const { leg } = live();
  leg.receive(ACK);
  for (let n = 0; n < 6; n++) {
    await advance(10_000);
    leg.receive(CHECK(0));
  }
  equal(sockets.length, 1);
  await advance(10_000);
  leg.receive(ACK);
  await advance(5000);
  equal(sockets.length, 2, "the check was not answered");
});

test("in mode host a live leg carries checks and no heartbeats", async () => {
  const { leg } = live({ mode: "host" });
  leg.receive(bytes(1));
  await advance(10_000);
  equal(leg.sent, [CHECK(1)]);
});

test("much that was received is confirmed, and no answer is awaited", async () => {
  const { leg } = live();
  leg.receive(new ArrayBuffer(40_000));
  equal(leg.sent, [HEARTBEAT, "_heartbeat confirm 1"]);
  await advance(5000);
  equal(sockets.length, 1);
});

test("further attempts wait longer, up to 5 s, and hanging ones are given up", async () => {
  const { leg } = live({ interval: "1000000000" });
  const begun = clock.now;
  leg.end();
  const times = [];
  for (let seen = 1; clock.now < begun + 60_000; await advance(10)) {
    for (; seen < sockets.length; seen++) times.push(clock.now - begun);
  }
  const expected = [0, 3250, 6750, 10750, 15750, 23750, 36750, 51750];
  equal(times.length, expected.length);
  times.forEach((time, n) => equal(Math.abs(time - expected[n]) <= 100, true, `${times}: `));
  equal(sockets.slice(1, -1).map(({ closed }) => closed), Array(7).fill([4000]));
});

// A browser that delays websockets after failed ones, and whose network is dead until `revive`.
function firefox() {
  navigator.userAgent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
  let isDead = true;
  const waiting = [];
  answerRequest = (_url, signal) =>
    new Promise((resolve, reject) => {
      signal.onAbort(() => reject(new Error("aborted")));
      if (isDead) waiting.push(resolve);
      else resolve({});
    });
  const { leg, socket, events } = live({ interval: "1000000000" });
  const revive = () => {
    isDead = false;
    waiting.forEach((resolve) => resolve({}));
  };
  return { leg, socket, events, revive };
}

test("in Firefox a further leg is made only when the server responds, and the first one at once", async () => {
  const { leg, revive } = firefox();
  leg.end();
  equal([sockets.length, requests.length], [2, 0]);
  await advance(60_000);
  equal(sockets.length, 2, "no other one while the network is dead");
  const times = requests.map(({ method, signal }) => `${method} ${signal.aborted}`);
  equal(times, [...Array(6).fill("HEAD true"), "HEAD false"], "as many requests as other browsers make legs");
  revive();
  await advance(0);
  equal(sockets.length, 3);
  sockets[2].open();
  sockets[2].receive("_heartbeat resumed 0");
  await advance(60_000);
  equal([sockets.length, requests.length], [3, 7], "nothing is left of the attempts");
});

test("in Firefox a request that fails is an attempt that fails", async () => {
  const { leg } = firefox();
  answerRequest = () => Promise.reject(new Error("refused"));
  leg.end();
  sockets[1].end();
  await advance(1000);
  equal([sockets.length, requests.length], [2, 2], "after 250 and 500 ms");
});

for (const isClosed of [false, true]) {
  test(`in Firefox a request ends with its attempt, when ${isClosed ? "the frontend closes" : "another begins"}`, async () => {
    const { leg, socket, revive } = firefox();
    leg.end();
    sockets[1].end();
    await advance(250);
    equal([sockets.length, requests.length], [2, 1]);
    if (isClosed) socket.close();
    else window.dispatchEvent(new Event("online"));
    revive();
    await advance(0);
    equal([sockets.length, requests[0].signal.aborted], [isClosed ? 2 : 3, true]);
  });
}

test("refused attempts wait too", async () => {
  const { leg } = live();
  leg.end();
  sockets[1].end();
  equal(sockets.length, 2);
  await advance(249);
  equal(sockets.length, 2);
  await advance(1);
  equal(sockets.length, 3);
});

test("attempts that fail again soon after they resumed wait as well", async () => {
  const { leg } = live();
  leg.end();
  resume().end();
  equal(sockets.length, 2);
  await advance(250);
  const third = resume();
  third.receive(CHECK(0));
  third.end();
  equal(sockets.length, 4, "the sidecar had answered");
});

for (const [name, wake] of [
  ["the network returns", () => window.dispatchEvent(new Event("online"))],
  ["the page is shown", () => window.dispatchEvent(new Event("pageshow"))],
  ["the tab becomes visible", () => document.dispatchEvent(new Event("visibilitychange"))],
]) {
  test(`a lost connection is attempted, and a live one checked, when ${name}`, async () => {
    const { leg } = live();
    wake();
    equal(leg.sent, [CHECK(0)]);
    leg.end();
    wake();
    equal(sockets.length, 2, "an attempt is under way");
    for (let n = 1; n <= 3; n++) {
      sockets.at(-1).end();
      await advance(250);
    }
    equal(sockets.length, 4, "the third attempt waits longer");
    wake();
    equal(sockets.length, 5);
    await advance(2999);
    equal(sockets.length, 5, "and no other one soon after it");
    sockets.at(-1).end();
    equal(sockets.length, 6, "the waits start again");
  });
}

test("a tab that becomes hidden attempts nothing", () => {
  const { leg } = live();
  document.hidden = true;
  document.dispatchEvent(new Event("visibilitychange"));
  equal(leg.sent, []);
});

test("after a sleep the answer has its time before the leg is given up", async () => {
  const { leg } = live();
  await advance(10_000);
  sleep(3_600_000);
  await advance(0);
  equal([sockets.length, requests.length], [1, 0]);
  leg.receive(CHECK(1));
  await advance(9000);
  equal(sockets.length, 1);
});

test("a dead leg is given up although every timer is late", async () => {
  const { leg } = live({ interval: "1000000000" });
  window.dispatchEvent(new Event("online"));
  for (let n = 0; n < 3; n++) {
    sleep(60_000);
    await advance(0);
  }
  equal([sockets.length, leg.closed], [2, [4000]]);
});

test("after the window the frontend gets a close event and the next connection counts as replacing a dead one", async () => {
  const { socket, events, leg } = live();
  leg.end();
  await advance(75_000);
  equal([events, socket.readyState], [[["close", 1006, false]], 3]);
  equal(window.listenerCount() + document.listenerCount(), 3, "those of main.js and of the notice remain");
  equal(clock.timers, []);
  connect();
  equal(sockets.at(-1).url.endsWith(".watchdog.resume"), true);
});

test("a session that is unknown ends the connection", () => {
  const { events, leg } = live();
  leg.end();
  sockets[1].open();
  sockets[1].end(4004);
  equal(events, [["close", 1006, false]]);
});

test("the app's close passes as it is", () => {
  const { events, leg } = live();
  leg.end(1012, "restart");
  equal([events, sockets.length], [[["close", 1012, true]], 1]);
});

test("a leg that opens and stays silent is given up, the third ends the connection", async () => {
  const { events, leg } = live();
  leg.end();
  for (let n = 1; n <= 3; n++) {
    equal(events, []);
    sockets[n].open();
    await advance(4000);
  }
  equal(events, [["close", 1006, false]]);
  equal(sockets.length, 4);
});

test("heartbeats of the script do not pile up while the connection is lost", async () => {
  const { leg } = live();
  leg.end();
  await advance(25_000);
  equal(resume().sent, []);
});

test("a close while connecting is the native one", () => {
  install();
  const { socket, events } = connect();
  socket.close();
  equal([socket.readyState, sockets[0].closed], [2, []]);
  sockets[0].end();
  equal(events, [["error"], ["close", 1006, false]]);
});

test("a close of a live connection goes over the leg as it is", () => {
  const { socket, events, leg } = live();
  socket.close(3001, "why");
  socket.send(bytes(1));
  equal([socket.readyState, leg.closed, leg.sent], [2, [3001, "why"], []]);
  leg.end(3001);
  equal([events, socket.readyState, sockets.length], [[["close", 3001, true]], 3, 1]);
});

test("a close of a page that has missed an ack parks the session", async () => {
  const { socket, events, leg } = live({ mode: "host" });
  socket.send(HEARTBEAT);
  leg.receive(ACK);
  socket.send(HEARTBEAT);
  socket.close();
  equal([leg.closed, socket.readyState, events.length], [[4000], 2, 1]);
  await advance(0);
  equal([events.at(-1), socket.readyState, sockets.length], [["close", 1006, false], 3, 1]);
});

test("a close with an acked heartbeat, or with a code, ends the session", () => {
  const { socket, leg } = live({ mode: "host" });
  socket.send(HEARTBEAT);
  leg.receive(ACK);
  socket.close();
  equal(leg.closed, []);
  leg.end(1005);
  const second = connect();
  sockets[1].open();
  sockets[1].receive(GREETING);
  second.socket.send(HEARTBEAT);
  second.socket.close(1000);
  equal(sockets[1].closed, [1000]);
});

test("a closed connection whose leg then dies is not resumed", async () => {
  const { socket, events, leg } = live();
  window.dispatchEvent(new Event("online"));
  socket.close();
  await advance(30_000);
  equal(events, [], "the leg has not reported its close");
  leg.end();
  equal([events.at(-1), sockets.length], [["close", 1006, false], 1]);
});

for (const attempting of [false, true]) {
  test(`a close while lost is reported soon, ${attempting ? "during" : "between"} attempts`, async () => {
    const { socket, events, leg } = live();
    leg.end();
    if (!attempting) sockets[1].end();
    socket.close();
    equal([socket.readyState, events], [2, []]);
    equal(sockets[1].closed, attempting ? [4000] : undefined);
    await advance(60_000);
    equal([socket.readyState, events, sockets.length], [3, [["close", 1006, false]], 2]);
  });
}

test("the frontend may close and send within its handlers", async () => {
  const { socket, leg } = live();
  socket.onmessage = ({ data }) => (data instanceof ArrayBuffer ? socket.send(bytes(9)) : socket.close());
  leg.receive(bytes(1));
  equal(leg.sent, [HEARTBEAT, bytes(9), CHECK(1)]);
  leg.receive("close now");
  equal(leg.closed, []);
  socket.onclose = () => socket.close();
  leg.end(1005);
  equal(socket.readyState, 3);
});

test("a session that outlives many losses stays in order", () => {
  const { socket, events, leg } = live();
  let current = leg;
  for (let n = 1; n <= 50; n++) {
    socket.send(bytes(n));
    if (n % 2 === 0) current.receive(CHECK(2 * Math.floor(n / 4)));
    current.receive(bytes(n));
    current.receive(CHECK(0));
    current.end();
    current = resume(n + 1);
  }
  equal(events.map(([, data]) => data), Array.from({ length: 50 }, (_, n) => bytes(n + 1)));
  equal(current.sent, []);
});

test("a message that was too old to be sent again is left out", async () => {
  const { socket, leg } = live({ maxAge: "1000" });
  leg.end();
  socket.send(bytes(1));
  await advance(2000);
  socket.send(bytes(2));
  equal(resume().sent, [bytes(2)]);
});
