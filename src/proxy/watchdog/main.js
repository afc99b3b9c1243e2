// Installs the watchdog in the page: replaces the websocket of Streamlit's messages, and listens to the host page.

let hostTimeout; // from the host's message that the page handles now

// The page decides whether it trusts its host. The timeout is used only if the page then sends a heartbeat.
window.addEventListener("message", ({ data }) => {
  const isRequest = data?.stCommVersion === 1 && data.type === "SEND_APP_HEARTBEAT";
  hostTimeout = isRequest ? data.ackTimeoutMilliseconds : undefined;
});

window.WebSocket = new Proxy(NativeWebSocket, {
  construct: (target, args, newTarget) =>
    isStream(...args) ? new StreamSocket(...args) : Reflect.construct(target, args, newTarget),
});

function isStream(url, protocols) {
  try {
    const { pathname } = new URL(url, document.baseURI);
    return STREAM.test(pathname) && Array.isArray(protocols) && protocols[0] === "streamlit";
  } catch {
    return false; // the native constructor throws the error
  }
}
