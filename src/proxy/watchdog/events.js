// What every websocket has for its user beside its connection: event handlers, constants and the type of binary data.

class WebSocketEvents extends EventTarget {
  #binaryType = "blob";

  get binaryType() {
    return this.#binaryType;
  }

  set binaryType(type) {
    if (type === "blob" || type === "arraybuffer") this.#binaryType = type;
  }
}

// A handler is called in the order in which it and the listeners were set (WHATWG HTML §8.1.8.1).
for (const type of ["open", "message", "error", "close"]) {
  const handlers = new WeakMap();
  const listener = function (event) {
    handlers.get(this).call(this, event);
  };
  Object.defineProperty(WebSocketEvents.prototype, `on${type}`, {
    enumerable: true,
    configurable: true,
    get() {
      return handlers.get(this) ?? null;
    },
    set(handler) {
      if (typeof handler === "function") {
        handlers.set(this, handler);
        this.addEventListener(type, listener);
      } else {
        handlers.delete(this);
        this.removeEventListener(type, listener);
      }
    },
  });
}

// The frontend must see a WebSocket: `instanceof` and the constants. All that the native class reads from a socket of
// its own is replaced above and in the subclass.
Object.setPrototypeOf(WebSocketEvents.prototype, NativeWebSocket.prototype);
