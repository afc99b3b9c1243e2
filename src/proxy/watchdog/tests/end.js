// The pure end of a connection: greeting, counts, copies, resuming and ends.

const SECRET = "5".repeat(48);
const GREET = `_heartbeat resumable ${SECRET} 1000 60000`;
const LOST_CLOSE = { code: 1006, reason: "", wasClean: false };

function bytes(...values) {
  return new Uint8Array(values).buffer;
}

// A connection that has been greeted.
function live(maxAge) {
  const end = new End(maxAge);
  equal(end.onMessage(GREET, 0), [["answered"], ["greeted", undefined]]);
  return end;
}

// The same, after its leg was lost and another attempt was made.
function attempted(end, now = 0) {
  equal(end.onLost(now), [["drop"], ["lost"], ["retry"]]);
  return end.attempt();
}

function actions(list) {
  return list.map(([action]) => action);
}

test("messages before the greeting are sent at once and counted", () => {
  const end = new End();
  equal(end.send(bytes(1), 0), [["send", bytes(1)]]);
  end.onMessage(GREET, 0);
  equal(end.send(bytes(2), 0), [["send", bytes(2)]]);
  attempted(end);
  equal(end.onMessage("_heartbeat resumed 0", 0), [["resumed"], ["send", bytes(1)], ["send", bytes(2)]]);
});

test("without a greeting the first message passes and the connection ends with its leg", () => {
  for (const first of [bytes(1), "text", "_heartbeat resumable x", "_heartbeat resumed 0", "_heartbeat received 0"]) {
    const end = new End();
    equal(end.onMessage(first, 0), [["greeted", undefined], ["deliver", first]]);
    equal(end.onMessage(GREET, 0), [["deliver", GREET]]);
    equal(end.send(bytes(1), 0), [["send", bytes(1)]]);
    equal(end.keptBytes, 0);
    equal(end.onClose({ code: 1001, reason: "r", wasClean: true }, 0), [["end", { code: 1001, reason: "r", wasClean: true }]]);
  }
});

test("a greeting that says plain is not delivered, and the connection ends with its leg", () => {
  for (const [greeting, count] of [["_heartbeat plain", undefined], ["_heartbeat plain taken 3", 3]]) {
    const end = new End(1000);
    end.send(bytes(1), 0);
    equal(end.onMessage(greeting, 0), [["greeted", count]]);
    for (const at of [500, 1400, 1600]) equal(end.send(bytes(at / 100), at), [["send", bytes(at / 100)]]);
    const copies = [{ data: bytes(14), at: 1400, number: 3 }, { data: bytes(16), at: 1600, number: 4 }];
    equal(end.onLost(1700), [["drop"], ["died", copies], ["end", LOST_CLOSE]], "those that are not too old");
  }
});

test("a greeting that took over a connection is resumable too", () => {
  const end = new End();
  end.onMessage(`${GREET} taken 3`, 0);
  equal(end.state, "live");
});

test("a leg that is lost before its first message ends the connection", () => {
  equal(new End().onLost(0), [["drop"], ["end", LOST_CLOSE]]);
  const close = { code: 1006, reason: "", wasClean: false };
  equal(new End().onClose(close, 0), [["end", close]]);
});

test("data messages are delivered and counted, control messages neither", () => {
  const end = live();
  equal(end.onMessage(bytes(1), 0), [["deliver", bytes(1)]]);
  equal(end.onMessage("text", 0), [["deliver", "text"]]);
  equal(end.onMessage("_heartbeat received 0", 0), [["answered"]]);
  equal(end.onMessage("_heartbeat later-version", 0), []);
  equal(end.onMessage(`_heartbeat ${"x".repeat(115)}`, 0).length, 1, "longer than a control message");
  equal(end.check(), [["check", "_heartbeat received 3"]]);
});

test("each 32 KiB of received data are confirmed", () => {
  const end = live();
  const half = new ArrayBuffer(16 * 1024);
  equal(actions(end.onMessage(half, 0)), ["deliver"]);
  equal(end.onMessage(half, 0), [["deliver", half], ["send", "_heartbeat confirm 2"]]);
  equal(actions(end.onMessage(half, 0)), ["deliver"]);
  equal(end.check(), [["check", "_heartbeat received 3"]]);
  equal(actions(end.onMessage(half, 0)), ["deliver"], "counted from the last confirmation");
});

test("confirmed messages are not sent again", () => {
  const end = live();
  for (let n = 1; n <= 3; n++) end.send(bytes(n), 0);
  end.onMessage("_heartbeat received 1", 0);
  attempted(end);
  equal(end.onMessage("_heartbeat resumed 2", 0), [["resumed"], ["send", bytes(3)]]);
});

test("the attempts are numbered and carry the secret and the received count", () => {
  const end = live();
  end.onMessage(bytes(1), 0);
  equal(attempted(end), `resume.${SECRET}.1.1`);
  equal(end.onLost(0), [["drop"], ["retry"]]);
  equal(end.attempt(), `resume.${SECRET}.2.1`);
  end.onMessage("_heartbeat resumed 0", 0);
  end.onMessage(bytes(2), 0);
  equal(attempted(end), `resume.${SECRET}.3.2`);
});

test("what the frontend sends while the connection is lost goes out behind what came before", () => {
  const end = live();
  end.send(bytes(1), 0);
  equal(end.onLost(0), [["drop"], ["lost"], ["retry"]]);
  equal(end.send(bytes(2), 0), []);
  end.attempt();
  equal(end.send(bytes(3), 0), [], "before `resumed` nothing is sent");
  equal(end.onMessage("_heartbeat resumed 0", 0), [["resumed"], ...[1, 2, 3].map((n) => ["send", bytes(n)])]);
  equal(end.send(bytes(4), 0), [["send", bytes(4)]]);
});

test("copies do not change with the frontend's buffers", () => {
  const end = live();
  const whole = new Uint8Array([0, 1, 2, 3]);
  end.send(whole.subarray(1, 3), 0);
  end.send(new DataView(whole.buffer, 3), 0);
  end.send(whole.buffer, 0);
  whole.fill(9);
  attempted(end);
  const [, ...sends] = end.onMessage("_heartbeat resumed 0", 0);
  equal(sends.map(([, data]) => data), [bytes(1, 2), bytes(3), bytes(0, 1, 2, 3)]);
});

test("an outbox above the buffer is dropped, and resumable once all of it was received", () => {
  for (const [received, isResumable] of [[0, false], [1, false], [2, true], [3, true], [4, false]]) {
    const end = live();
    end.send(new ArrayBuffer(600), 0);
    end.send(new ArrayBuffer(600), 0);
    equal(end.keptBytes, 0);
    end.send(bytes(3), 0);
    attempted(end);
    const got = end.onMessage(`_heartbeat resumed ${received}`, 0);
    const expected = received === 2 ? ["resumed", "send"] : ["resumed"];
    equal(actions(got), isResumable ? expected : ["drop", "ended", "died", "end"], `${received} received:`);
  }
});

test("a message counts 8 bytes more than its payload", () => {
  const end = live();
  end.send(new ArrayBuffer(992), 0);
  equal(end.keptBytes, 1000);
  end.onMessage("_heartbeat received 1", 0);
  equal(end.keptBytes, 0);
  end.send(new ArrayBuffer(993), 0);
  equal(end.keptBytes, 0);
  end.send("text", 0);
  end.send(new Blob(["12345"]), 0);
  equal(end.keptBytes, 12 + 8 + 5 + 8);
});

test("a lost connection whose outbox overflows ends", () => {
  const end = live();
  end.onLost(0);
  equal(end.send(new ArrayBuffer(500), 0), []);
  equal(end.send(new ArrayBuffer(500), 0), [["drop"], ["ended"], ["died", []], ["end", LOST_CLOSE]]);
  equal(end.send(bytes(1), 0), []);
});

test("a first message that does not resume ends the connection", () => {
  for (const first of [bytes(1), GREET, "_heartbeat plain", "_heartbeat received 0", "_heartbeat resumed", "_heartbeat resumed 1"]) {
    const end = live();
    attempted(end);
    equal(end.onMessage(first, 0), [["drop"], ["ended"], ["died", []], ["end", LOST_CLOSE]]);
  }
});

test("a confirmation of what was not sent ends the connection", () => {
  const end = live();
  end.send(bytes(1), 0);
  equal(actions(end.onMessage("_heartbeat received 2", 0)), ["drop", "died", "end"]);
});

test("a late confirmation of less changes nothing", () => {
  const end = live();
  for (let n = 1; n <= 3; n++) end.send(bytes(n), 0);
  end.onMessage("_heartbeat received 2", 0);
  end.onMessage("_heartbeat received 1", 0);
  attempted(end);
  equal(actions(end.onMessage("_heartbeat resumed 1", 0)), ["drop", "ended", "died", "end"], "its copy is gone");
});

test("a leg without a close frame and a replaced leg are lost, every other close is the end", () => {
  for (const state of ["live", "lost"]) {
    const end = () => {
      const made = live();
      if (state === "lost") attempted(made);
      return made;
    };
    for (const code of [1006, 4001]) equal(actions(end().onClose({ code }, 0)).at(-1), "retry", `${code}:`);
    for (const code of [1000, 1001, 1005, 1011, 1012, 4000]) {
      equal(end().onClose({ code, reason: "r", wasClean: true }, 0).at(-1), ["end", { code, reason: "r", wasClean: true }]);
    }
    equal(end().onClose({ code: 4004, reason: "r", wasClean: true }, 0).at(-1), ["end", LOST_CLOSE]);
  }
});

test("after the window the connection ends", () => {
  const end = live();
  end.onLost(1000);
  equal(end.onLost(60_999), [["drop"], ["retry"]]);
  equal(end.onLost(61_000), [["drop"], ["ended"], ["died", []], ["end", LOST_CLOSE]]);
});

test("the window starts again with each loss", () => {
  const end = live();
  attempted(end, 0);
  end.onMessage("_heartbeat resumed 0", 50_000);
  attempted(end, 50_000);
  equal(end.onLost(100_000), [["drop"], ["retry"]]);
});

test("the third leg in a row that opens and stays silent ends the connection", () => {
  const end = live();
  attempted(end);
  equal(end.onSilent(0), [["drop"], ["retry"]]);
  equal(end.onLost(0), [["drop"], ["retry"]], "one that does not open is not silent");
  equal(end.onSilent(0), [["drop"], ["retry"]]);
  equal(end.onSilent(0), [["drop"], ["retry"]]);
  equal(end.onSilent(0), [["drop"], ["ended"], ["died", []], ["end", LOST_CLOSE]]);
});

test("a message that is too old is not sent again, and the counts agree afterwards", () => {
  const end = live(1000);
  for (const [n, at] of [[1, 0], [2, 500], [3, 1500]]) end.send(bytes(n), at);
  attempted(end, 1600);
  equal(end.onMessage("_heartbeat resumed 1", 1600), [["resumed"], ["send", bytes(3)]]);
  equal(end.keptBytes, 9);
  equal(end.onMessage("_heartbeat received 2", 0), [["answered"]], "one resent, one received before");
  equal(end.keptBytes, 0);
  equal(actions(end.onMessage("_heartbeat received 3", 0)), ["drop", "died", "end"], "nothing more was sent");
});

test("the values of inputs that are too old are sent without their triggers, and the inputs reported", () => {
  const end = live(1000);
  const click = bytes(0x5a, 9, 0x12, 7, 0x0a, 5, 0x0a, 1, 0x61, 0x10, 1);
  end.send(click, 0);
  end.send(bytes(3), 1000);
  attempted(end);
  const values = new Uint8Array([0x5a, 2, 0x12, 0]);
  const resumed = [["resumed"], ["send", values], ["send", bytes(3)], ["unsent", "age", 1]];
  equal(end.onMessage("_heartbeat resumed 0", 1600), resumed);
});

test("a message of exactly the maximum age is sent again", () => {
  const end = live(1000);
  end.send(bytes(1), 0);
  attempted(end);
  equal(end.onMessage("_heartbeat resumed 0", 1000), [["resumed"], ["send", bytes(1)]]);
});

test("the frontend's close is the end", () => {
  const end = live();
  equal(end.onFrontendClose(), [["drop"], ["died", []], ["end", LOST_CLOSE]]);
  equal(end.onClose(LOST_CLOSE, 0), [["end", LOST_CLOSE]]);
  equal(end.send(bytes(1), 0), []);
  equal(end.onMessage(bytes(1), 0), []);
  const lost = live();
  lost.onLost(0);
  equal(lost.onFrontendClose(), [["drop"], ["ended"], ["died", []], ["end", LOST_CLOSE]]);
});
